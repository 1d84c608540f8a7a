"""What the text of one setting may be: each form, and that no fault repeats what may be a secret."""

import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor import config_values
from supervisor.config_values import MANAGED_BY
from supervisor.errors import BadConfiguration
from tests.fakes.settings import SECRET, faults, load

READ = [
    (config_values.workers, "auto", None),
    (config_values.workers, "gpu:0=1,cpu=2", (("0", 1), ("cpu", 2))),
    (config_values.worker_env, "A=1,2,B=x=y", (("A", "1,2"), ("B", "x=y"))),
    (config_values.models, "a, b:c ,", ("a", "b:c")),
    (config_values.networks, "10.0.0.0/8,::1/128", ("10.0.0.0/8", "::1")),
    (config_values.host, "[::1]", "::1"),
    (config_values.directory, "/srv", "/srv"),
    (config_values.choice, " Json ", "json"),
]


@pytest.mark.parametrize(("reader", "text", "value"), READ)
def test_each_form_is_read(reader: Callable[[object], object], text: str, value: object) -> None:
    assert reader(text) == value


READERS = dict.fromkeys(
    [*(reader for reader, _, _ in READ), config_values.token, config_values.url, config_values.database_url]
)


@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_text_is_a_default_and_taken_as_it_is(reader: Callable[[object], object]) -> None:
    assert reader(None) is None
    assert reader(()) == ()


@pytest.mark.parametrize(
    ("reader", "text", "fault"),
    [
        (config_values.workers, "cpu", "'cpu' is not gpu:INDEX=N"),
        (
            config_values.networks,
            "a,0.0.0.0/0",
            "'a' is not an address or a network such as 10.0.0.0/8; '0.0.0.0/0' is",
        ),
        (config_values.host, "my host", "'my host' is not an address or host name"),
        (config_values.directory, "srv", "'srv' is not an absolute path"),
    ],
)
def test_a_fault_says_what_was_written_and_what_would_do(
    reader: Callable[[object], object], text: str, fault: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(fault)):
        reader(text)


@pytest.mark.parametrize("token", ["x", "correct horse", "!~", "a" * 500])
def test_a_token_is_what_a_header_can_carry(token: str) -> None:
    secret = load(ADMIN_TOKEN=token).admin_token
    assert secret is not None
    assert secret.get_secret_value() == token


@pytest.mark.parametrize(
    "url",
    [
        "sqlite:////srv/my keys.db",
        f"postgres://me:{SECRET}@db/chimera",
        f"postgresql://me:{SECRET}@db:5432/chimera?sslmode=require",
        f"postgresql+psycopg://me:{SECRET}@[::1]/chimera",
    ],
)
def test_a_database_is_sqlite_or_postgresql(url: str) -> None:
    loaded = load(DATABASE_URL=url)
    assert loaded.database_url is not None
    assert loaded.database_url.get_secret_value() == url


def test_what_chimera_manages_cannot_be_contradicted() -> None:
    for name in MANAGED_BY:
        assert faults(WORKER_ENV=f"{name}=1")[0].startswith(f"WORKER_ENV: {name} is set by Chimera")


# -- secrets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "worker_env",
    [
        SECRET,
        f"1KEY={SECRET}",
        f"A=1,9B={SECRET},OLLAMA_HOST={SECRET}",
        f"={SECRET}",
        f"API-KEY={SECRET}",
        f"OLLAMA_HOST={SECRET}",
    ],
)
def test_a_fault_never_repeats_what_may_be_a_secret(worker_env: str) -> None:
    for fault in faults(WORKER_ENV=worker_env, ADMIN_TOKEN=f"{SECRET} "):
        assert SECRET not in fault


def test_a_fault_of_a_databases_url_does_not_repeat_it() -> None:
    for url in (f"mysql://me:{SECRET}@h/d", SECRET, f"postgresql:/me:{SECRET}@h/d", f"postgresql://me:{SECRET}\n@h"):
        assert SECRET not in str(faults(DATABASE_URL=url))


@given(st.text(max_size=40) | st.from_regex(r"[0-9a-z:=,./ \-]{0,20}", fullmatch=True))
def test_no_worker_env_leaks_in_its_faults(text: str) -> None:
    told = ""
    try:
        load(WORKER_ENV=f"{text}{SECRET}")
    except BadConfiguration as error:
        told = str(error)
    assert SECRET not in told
