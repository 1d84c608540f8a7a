"""Settings as text: all of them, readable back, with no secret in them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.config import NAMES
from supervisor.config_load import load_settings
from supervisor.config_text import effective, workers_text
from tests.fakes.settings import SECRET, load


def test_the_effective_settings_have_every_name_and_read_back_as_the_same() -> None:
    settings = load(
        WORKERS="gpu:0=1,cpu=2", WORKER_ENV="A=1,B=2", REQUIRED_MODEL="a,b:c", QUEUE_TIMEOUT_S="0.25", OLLAMA_BIN="/o"
    )
    assert effective(settings).keys() == NAMES
    assert load_settings(effective(settings), {}) == settings
    assert load_settings(effective(load()), {}) == load()


@pytest.mark.parametrize(
    "name", ["API_KEY", "hf_token", "MY_SECRET", "DB_PASSWORD", "PASSPHRASE", "AWS_CREDENTIALS", "BASIC_AUTH"]
)
def test_the_effective_settings_hide_secrets(name: str) -> None:
    shown = effective(load(ADMIN_TOKEN=SECRET, WORKER_ENV=f"{name}={SECRET},OLLAMA_DEBUG=1"))
    assert SECRET not in repr(shown)
    assert shown["ADMIN_TOKEN"] == "(set, hidden)"
    assert shown["WORKER_ENV"] == f"{name}=(hidden),OLLAMA_DEBUG=1"


def test_the_effective_settings_hide_a_password_in_a_url() -> None:
    shown = effective(load(WORKER_ENV=f"HTTPS_PROXY=http://me:{SECRET}@proxy:1"))
    assert shown["WORKER_ENV"] == "HTTPS_PROXY=(hidden)"


def test_a_databases_url_is_in_no_form_of_the_settings() -> None:
    loaded = load(DATABASE_URL=f"postgres://me:{SECRET}@db/chimera")
    assert effective(loaded)["DATABASE_URL"] == "(set, hidden)"
    assert SECRET not in repr(loaded)


def test_a_password_in_an_endpoint_is_not_shown() -> None:
    told = effective(load(OTEL_EXPORTER_OTLP_ENDPOINT="http://user:secret@c:4318"))
    assert "secret" not in "".join(told.values())


PLACES = st.one_of(st.just("cpu"), st.integers(0, 99).map(str), st.from_regex(r"GPU-[0-9a-f]{1,12}", fullmatch=True))


@given(st.lists(st.tuples(PLACES, st.integers(0, 9)), min_size=1, max_size=20))
def test_workers_as_text_reads_back_as_the_same_fleet(workers: list[tuple[str, int]]) -> None:
    text = workers_text(tuple(workers))
    assert load(WORKERS=text).workers == tuple(workers)


def test_workers_text_of_auto_is_auto() -> None:
    assert workers_text(None) == "auto"
    assert workers_text((("CPU", 1),)) == "cpu=1"
