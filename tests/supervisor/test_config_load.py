"""Settings brought together: what overrides what, that all faults come at once, and where folders are."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from supervisor.config import CLIENT_NAMES, NAMES, RESERVED
from supervisor.config_load import default_directories, load_settings
from supervisor.config_text import effective
from supervisor.errors import BadConfiguration
from tests.fakes.settings import HOME, PAIR, faults, load


def test_the_environment_overrides_the_file_and_an_empty_value_is_none() -> None:
    file = {"GATEWAY_PORT": "1111", "QUEUE_SIZE": "7", "WORKER_SLOTS": ""}
    settings = load_settings(HOME | {"GATEWAY_PORT": "2222", "QUEUE_SIZE": ""}, file)
    assert (settings.gateway_port, settings.queue_size, settings.worker_slots) == (2222, 7, 4)


def test_faults_of_the_file_come_with_those_of_the_values() -> None:
    with pytest.raises(BadConfiguration) as refused:
        load_settings(
            HOME, {"GATEWAY_PROT": "1", "OLLAMA_FLASH_ATTENTION": "1", "QUUX": "1", "QUEUE_SIZE": "x"}, ("line",)
        )
    assert refused.value.faults[0] == "line"
    assert "GATEWAY_PROT: not a setting; did you mean GATEWAY_PORT?" in refused.value.faults
    assert (
        "OLLAMA_FLASH_ATTENTION: not a setting; for a worker's variable write WORKER_ENV=OLLAMA_FLASH_ATTENTION=…"
        in refused.value.faults
    )
    assert "QUUX: not a setting; see .env.example for the names there are" in refused.value.faults
    assert refused.value.faults[-1].startswith("QUEUE_SIZE: ")


@pytest.mark.parametrize("name", sorted(RESERVED))
def test_what_is_kept_for_later_is_refused_where_somebody_relies_on_it(name: str) -> None:
    with pytest.raises(BadConfiguration) as refused:
        load_settings(HOME, {name: "yes"})
    assert refused.value.faults == [f"{name}: this version of Chimera does not do that yet; remove it"]
    load_settings(HOME, {name: "off"})
    load_settings(HOME, {name: ""})
    load(**{name: "another program's"})


@pytest.mark.parametrize(("there", "missing"), [("TLS_CERT", "TLS_KEY"), ("TLS_KEY", "TLS_CERT")])
def test_half_a_pair_is_refused_in_the_name_of_the_other_half(there: str, missing: str) -> None:
    assert faults(**{there: PAIR[there]}) == [f"{missing}: not set, but {there} is; set both for HTTPS, or neither"]


def test_a_name_leads_to_one_place() -> None:
    both = faults(TRAEFIK_API_DOMAIN="a.example,b.example", TRAEFIK_FRONTEND_DOMAIN="c.example,B.example.")
    assert both == ["TRAEFIK_FRONTEND_DOMAIN: b.example is in TRAEFIK_API_DOMAIN too; each needs names of its own"]


@pytest.mark.parametrize(
    ("environ", "state", "logs"),
    [
        ({"HOME": "/h"}, "/h/.local/state/chimera", "/h/.local/state/chimera/logs"),
        ({}, "/root/.local/state/chimera", "/root/.local/state/chimera/logs"),
        ({"XDG_STATE_HOME": "/x"}, "/x/chimera", "/x/chimera/logs"),
        ({"HOME": "/h", "XDG_STATE_HOME": "not/absolute"}, "/h/.local/state/chimera", "/h/.local/state/chimera/logs"),
        ({"STATE_DIRECTORY": "/var/lib/c:/b", "LOGS_DIRECTORY": "/var/log/c"}, "/var/lib/c", "/var/log/c"),
        ({"STATE_DIR": "/s"}, "/s", "/s/logs"),
        ({"STATE_DIR": "/s", "LOGS_DIRECTORY": "/var/log/c"}, "/s", "/var/log/c"),
        ({"STATE_DIR": "/s", "LOG_DIR": "/l"}, "/s", "/l"),
    ],
)
def test_directories_have_the_places_that_fit_how_chimera_runs(environ: dict[str, str], state: str, logs: str) -> None:
    settings = load_settings(environ, {})
    assert (str(settings.state_dir), str(settings.log_dir)) == (state, logs)


def test_default_directories_are_absolute_whatever_the_environment_says() -> None:
    assert all(path.startswith("/") for path in default_directories({"HOME": "", "XDG_STATE_HOME": "x"}).values())


TEXT = st.text(max_size=40) | st.from_regex(r"[0-9a-z:=,./ \-]{0,20}", fullmatch=True)


ANY_NAME = st.sampled_from(sorted(NAMES | RESERVED | CLIENT_NAMES | {"HOME", "XDG_STATE_HOME", "STATE_DIRECTORY"}))


@settings(max_examples=60)
@given(st.dictionaries(ANY_NAME, TEXT, max_size=8), st.dictionaries(ANY_NAME | TEXT, TEXT | st.none(), max_size=8))
@example({"GATEWAY_PORT": "８０００"}, {})
@example({"WORKERS": "gpu:٣=1"}, {"GATEWAY_PORT": "1_000"})
@example({"OLLAMA_MODELS": "/\ud800"}, {})
def test_no_text_does_more_than_bad_configuration(environ: dict[str, str], dotenv: dict[str, str | None]) -> None:
    told: list[str] = []
    try:
        loaded = load_settings(environ, dotenv)
    except BadConfiguration as error:
        told = error.faults or ["no fault was told"]
    else:
        assert effective(loaded).keys() == NAMES
    assert [fault for fault in told if not fault.isprintable() or fault == "no fault was told"] == []
