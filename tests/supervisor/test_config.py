"""Settings: what each may be and means, one row each; and `.env.example`, which documents them."""

import re
from pathlib import Path
from typing import Any

import pytest

from supervisor.config import CLIENT_NAMES, NAMES, RESERVED, Settings
from supervisor.config_load import load_settings
from supervisor.config_values import MOST_WORKERS
from supervisor.env_file import read_dotenv
from tests.fakes.settings import HOME, PAIR, SECRET, faults, load

EXAMPLE = Path(__file__).parents[2] / ".env.example"


def field_of(name: str) -> str:
    return next(field for field, info in Settings.model_fields.items() if info.alias == name)


GOOD: list[tuple[str, str, Any]] = [
    ("GATEWAY_HOST", "0.0.0.0", "0.0.0.0"),
    ("GATEWAY_HOST", "[::]", "::"),
    ("GATEWAY_HOST", "gpu-box.local", "gpu-box.local"),
    ("GATEWAY_PORT", "1", 1),
    ("GATEWAY_PORT", "65535", 65535),
    ("TRAEFIK_API_DOMAIN", "api.example.com", ("api.example.com",)),
    (
        "TRAEFIK_FRONTEND_DOMAIN",
        " Page.Example.com., xn--bcher-kva.example ,",
        ("page.example.com", "xn--bcher-kva.example"),
    ),
    ("OLLAMA_BIN", "/opt/ollama", Path("/opt/ollama")),
    ("OLLAMA_BIN", "bin/ollama", Path("bin/ollama")),
    ("OLLAMA_PORT", "11435", 11435),
    ("OLLAMA_MODELS", "/srv/models", Path("/srv/models")),
    ("REQUIRED_MODEL", "llama3.2:3b", ("llama3.2:3b",)),
    ("REQUIRED_MODEL", " a, b:c ,", ("a", "b:c")),
    ("WORKERS", "auto", None),
    ("WORKERS", " AUTO ", None),
    ("WORKERS", "cpu=2", (("cpu", 2),)),
    ("WORKERS", "gpu:0=1,gpu:GPU-ab12=2, cpu = 1", (("0", 1), ("GPU-ab12", 2), ("cpu", 1))),
    ("WORKERS", "cpu=0", (("cpu", 0),)),
    ("WORKER_PORT_BASE", "1024", 1024),
    ("WORKER_PORT_BASE", "32255", 32255),
    ("WORKER_SLOTS", "1024", 1024),
    ("WORKER_ENV", "A=1", (("A", "1"),)),
    ("WORKER_ENV", "A=1,2,3, B_2=x=y,C=", (("A", "1,2,3"), ("B_2", "x=y"), ("C", ""))),
    ("QUEUE_SIZE", "0", 0),
    ("QUEUE_BYTES", "64MiB", 64 * 1024**2),
    ("LOAD_OPTIONS", "Pin", "pin"),
    ("QUEUE_TIMEOUT_S", "0.5", 0.5),
    ("FIRST_BYTE_TIMEOUT_S", "86400", 86400.0),
    ("STALL_TIMEOUT_S", "1e2", 100.0),
    ("START_TIMEOUT_S", "2.5", 2.5),
    ("HANG_TIMEOUT_S", "5", 5.0),
    ("CANARY_AFTER_S", "0", 0.0),
    ("WORKER_MEMORY_LIMIT_BYTES", "16GiB", 16 * 1024**3),
    ("MAX_BODY_BYTES", "1024", 1024),
    ("MAX_CONNECTIONS", "1", 1),
    ("MAX_BODY_BYTES", "1.5GiB", 3 * 512 * 1024**2),
    ("DRAIN_TIMEOUT_S", "1", 1.0),
    ("STOP_TIMEOUT_S", "0.1", 0.1),
    ("API_KEYS_REQUIRED", "True", True),
    ("API_KEYS_REQUIRED", " off ", False),
    ("TRUSTED_PROXIES", "127.0.0.1", ("127.0.0.1",)),
    ("TRUSTED_PROXIES", " 10.0.0.0/8 ,FD00:0::/8,, ::1/128,", ("10.0.0.0/8", "fd00::/8", "::1")),
    ("TRAEFIK_FRONTEND_DOMAIN", " Chat.example.org,chat.example.org, b-2.local,", ("chat.example.org", "b-2.local")),
    ("STATE_DIR", "/var/lib/chimera", Path("/var/lib/chimera")),
    ("LOG_DIR", "/var/log/chimera", Path("/var/log/chimera")),
    ("LOG_MAX_BYTES", "64MiB", 64 * 1024**2),
    ("LOG_LEVEL", " DEBUG ", "debug"),
    ("LOG_FORMAT", "Json", "json"),
    ("MAX_CONNECTIONS", "10", 10),
    ("ACCESS_LOG", "Errors", "errors"),
    ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318", "http://collector:4318"),
    ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "https://collector/v1/traces", "https://collector/v1/traces"),
]

BAD: list[tuple[str, str, str]] = [
    ("GATEWAY_HOST", "my host", "'my host' is not an address or host name"),
    ("GATEWAY_PORT", "0", "must be greater than or equal to 1 (it is '0')"),
    ("GATEWAY_PORT", "65536", "less than or equal to 65535"),
    ("GATEWAY_PORT", "http", "must be a whole number (it is 'http')"),
    ("GATEWAY_PORT", "8000.5", "must be a whole number (it is '8000.5')"),
    ("GATEWAY_PORT", "11434", "11434 is GATEWAY_PORT too"),
    ("TLS_CERT", "server.pem", "'server.pem' is not an absolute path"),
    ("TLS_KEY", "~/key.pem", "'~/key.pem' is not an absolute path"),
    (
        "TRAEFIK_API_DOMAIN",
        "https://api.example.com",
        "is not a host name such as api.example.org: write it without https://",
    ),
    ("TRAEFIK_FRONTEND_DOMAIN", "page.example.com:443", "is not a host name"),
    ("OLLAMA_PORT", "11600", "lies among the workers' ports (11500 to 12011"),
    ("OLLAMA_PORT", "-1", "greater than or equal to 1"),
    ("OLLAMA_MODELS", "~/models", "is not an absolute path"),
    ("WORKERS", "2", "is not gpu:INDEX=N"),
    ("WORKERS", "cpu", "is not gpu:INDEX=N"),
    ("WORKERS", "0=1", "is not gpu:INDEX=N"),
    ("WORKERS", "gpu:=1", "is not gpu:INDEX=N"),
    ("WORKERS", "cpu=-1", "is not gpu:INDEX=N"),
    ("WORKERS", "cpu=1,", "is not gpu:INDEX=N"),
    ("WORKERS", "auto,cpu=1", "write auto alone"),
    ("WORKERS", "cpu=257", f"257 workers are asked for; {MOST_WORKERS} is the most"),
    ("WORKERS", "cpu=200,gpu:0=57", "257 workers are asked for"),
    ("WORKERS", "cpu=" + "9" * 5000, "is not gpu:INDEX=N"),
    ("WORKER_PORT_BASE", "1023", "greater than or equal to 1024"),
    ("WORKER_PORT_BASE", "32256", "less than 32256"),
    ("WORKER_SLOTS", "0", "greater than or equal to 1"),
    ("WORKER_SLOTS", "1025", "less than or equal to 1024"),
    ("WORKER_ENV", "A", "part 1 is not NAME=VALUE"),
    ("WORKER_ENV", "A=1,B=2,OLLAMA_HOST=x", "OLLAMA_HOST is set by Chimera for each worker; what decides it: WORKER_"),
    ("QUEUE_SIZE", "-1", "greater than or equal to 0"),
    ("QUEUE_BYTES", "1023", "greater than or equal to 1024"),
    ("LOAD_OPTIONS", "drop", "must be 'pass' or 'pin'"),
    ("QUEUE_TIMEOUT_S", "0", "greater than 0"),
    ("QUEUE_TIMEOUT_S", "nan", "finite number"),
    ("QUEUE_TIMEOUT_S", "inf", "finite number"),
    ("FIRST_BYTE_TIMEOUT_S", "86401", "less than or equal to 86400"),
    ("STALL_TIMEOUT_S", "2 min", "must be a number (it is"),
    ("START_TIMEOUT_S", "0", "greater than 0"),
    ("HANG_TIMEOUT_S", "soon", "must be a number"),
    ("CANARY_AFTER_S", "-1", "greater than or equal to 0"),
    ("WORKER_MEMORY_LIMIT_BYTES", "1", "greater than or equal to 67108864"),
    ("MAX_CONNECTIONS", "0", "greater than or equal to 1"),
    ("MAX_BODY_BYTES", "1023", "greater than or equal to 1024"),
    ("MAX_BODY_BYTES", "lots", "could not parse value and unit from byte string"),
    ("DRAIN_TIMEOUT_S", "-5", "greater than 0"),
    ("STOP_TIMEOUT_S", "ten", "must be a number"),
    ("ADMIN_TOKEN", " padded", "must be printable ASCII characters, with no space at either end"),
    ("ADMIN_TOKEN", "pässwort", "must be printable ASCII characters, with no space at either end"),
    ("API_KEYS_REQUIRED", "maybe", "must be true or false (it is"),
    ("DATABASE_URL", "chimera.db", "must be sqlite:////ABSOLUTE/PATH or postgresql://USER:PASSWORD@HOST/NAME"),
    ("DATABASE_URL", "sqlite:///chimera.db", "must be sqlite:////ABSOLUTE/PATH"),
    ("DATABASE_URL", "mysql://u:p@h/d", "must be sqlite:////ABSOLUTE/PATH"),
    ("DATABASE_URL", "sqlite:////a\nb", "must be sqlite:////ABSOLUTE/PATH"),
    ("TRUSTED_PROXIES", "proxy.local", "'proxy.local' is not an address or a network such as 10.0.0.0/8"),
    ("TRUSTED_PROXIES", "*", "'*' is not an address"),
    ("TRUSTED_PROXIES", "10.0.0.0/33", "'10.0.0.0/33' is not an address"),
    ("TRUSTED_PROXIES", "fe80::1%eth0", "'fe80::1%eth0' is not an address"),
    ("TRUSTED_PROXIES", "10.1.2.3/8", "'10.1.2.3/8' is an address within 10.0.0.0/8; write that, or the address alone"),
    ("TRUSTED_PROXIES", "::ffff:10.0.0.1", "'::ffff:10.0.0.1' is IPv4 written as IPv6; write it as IPv4"),
    ("TRUSTED_PROXIES", "::1,0.0.0.0/0", "'0.0.0.0/0' is everybody; name the proxies"),
    ("TRUSTED_PROXIES", "a,::/0", "'a' is not an address or a network such as 10.0.0.0/8; '::/0' is everybody"),
    ("TRAEFIK_API_DOMAIN", "a_b,-c", "'a_b' is not a host name such as api.example.org; '-c' is not a host name"),
    ("TRAEFIK_FRONTEND_DOMAIN", "a`) || Path(`/", "is not a host name"),
    ("TRAEFIK_FRONTEND_DOMAIN", ".".join(["a" * 63] * 4), "is not a host name"),
    ("STATE_DIR", "state", "'state' is not an absolute path"),
    ("STATE_DIR", "/a\0b", "has a NUL character"),
    ("LOG_DIR", "./logs", "is not an absolute path"),
    ("LOG_MAX_BYTES", "16MB", "greater than or equal to 16777216"),
    ("LOG_LEVEL", "verbose", "must be 'debug', 'info', 'warning' or 'error' (it is 'verbose')"),
    ("MAX_CONNECTIONS", "0", "greater than or equal to 1"),
    ("LOG_FORMAT", "xml", "must be 'auto', 'console', 'json' or 'journal'"),
    ("ACCESS_LOG", "some", "must be 'auto', 'on', 'errors' or 'off'"),
    ("OTEL_EXPORTER_OTLP_ENDPOINT", "user:secret@collector", "must be a URL"),
    ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "grpc://user:secret@collector:4317", "must be a URL"),
]


@pytest.mark.parametrize(("name", "text", "value"), GOOD)
def test_good_values_are_read(name: str, text: str, value: object) -> None:
    assert getattr(load(**{name: text}), field_of(name)) == value


@pytest.mark.parametrize(("name", "text", "fault"), BAD, ids=[f"{name}={text[:20]!r}" for name, text, _ in BAD])
def test_bad_values_are_refused_in_one_line_that_names_the_setting(name: str, text: str, fault: str) -> None:
    found = faults(**{name: text})
    assert len(found) == 1
    assert "\n" not in found[0]
    blamed = "OLLAMA_PORT" if fault.startswith("11434 is") else name
    assert found[0].startswith(f"{blamed}: ")
    assert fault in found[0]


def test_the_tables_have_every_setting() -> None:
    own_tests = {"ADMIN_TOKEN", "DATABASE_URL", "TLS_CERT", "TLS_KEY"}  # secrets; what comes in pairs
    assert {name for name, _, _ in GOOD} == NAMES - own_tests
    anything = {"OLLAMA_BIN", "REQUIRED_MODEL"}  # whether they are right shows when they are used
    assert {name for name, _, _ in BAD} == NAMES - anything


def test_all_faults_are_told_at_once_each_with_its_setting() -> None:
    bad = {name: text for name, text, _ in BAD if name not in ("GATEWAY_PORT", "OLLAMA_PORT", "WORKER_PORT_BASE")}
    found = faults(**bad, GATEWAY_PORT="0", OLLAMA_PORT="x", WORKER_PORT_BASE="1")
    assert {fault.split(":")[0] for fault in found} == {name for name, _, _ in BAD}
    assert len(found) == len({name for name, _, _ in BAD})


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000"),
        ("0.0.0.0", "http://127.0.0.1:8000"),
        ("::", "http://[::1]:8000"),
        ("fd00::7", "http://[fd00::7]:8000"),
        ("box", "http://box:8000"),
    ],
)
def test_the_gateways_url_is_one_that_a_client_here_can_use(host: str, url: str) -> None:
    assert load(GATEWAY_HOST=host).gateway_url == url
    assert load(GATEWAY_HOST=host, **PAIR).gateway_url == url.replace("http:", "https:")


# -- HTTPS and host names ----------------------------------------------------------------------------------------------


def test_a_certificate_and_its_key_are_read() -> None:
    settings = load(**PAIR)
    assert (settings.tls_cert, settings.tls_key) == (Path(PAIR["TLS_CERT"]), Path(PAIR["TLS_KEY"]))
    assert (load().tls_cert, load(TLS_CERT="", TLS_KEY="").tls_key) == (None, None)


def test_people_are_told_a_name_that_the_certificate_is_for() -> None:
    names = {"TRAEFIK_API_DOMAIN": "api.example.com,other.example.com"}
    assert load(**PAIR, **names).shown_url == "https://api.example.com:8000"
    assert load(**PAIR).shown_url == load(**PAIR).gateway_url
    assert load(**names).shown_url == "http://127.0.0.1:8000"  # the name is a proxy's


def test_a_secret_is_in_no_form_of_the_settings() -> None:
    assert SECRET not in repr(load(ADMIN_TOKEN=SECRET))


# -- .env.example ----------------------------------------------------------------------------------------------------


def examples() -> list[tuple[str, str]]:
    """The settings as `.env.example` has them, commented out."""
    return re.findall(r"^# ([A-Z][A-Z_]+)=(.*)$", EXAMPLE.read_text(encoding="utf-8"), re.MULTILINE)


def test_the_example_documents_every_setting_and_no_other() -> None:
    assert {name for name, _ in examples()} == NAMES | CLIENT_NAMES
    kept = set(re.findall(r"[A-Z_]{5,}", EXAMPLE.read_text(encoding="utf-8").split("Kept for later")[1]))
    assert kept == RESERVED


def test_the_example_as_it_is_sets_nothing() -> None:
    assert read_dotenv(EXAMPLE) == ({}, ())


UNSET = {"OLLAMA_BIN", "OLLAMA_MODELS", "REQUIRED_MODEL", "WORKER_ENV", "ADMIN_TOKEN", "STATE_DIR", "LOG_DIR",
         "WORKER_MEMORY_LIMIT_BYTES", "DATABASE_URL", "OTEL_EXPORTER_OTLP_ENDPOINT",
         "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "TRUSTED_PROXIES", "TLS_CERT", "TLS_KEY",
         "TRAEFIK_API_DOMAIN", "TRAEFIK_FRONTEND_DOMAIN"}  # fmt: skip


@pytest.mark.parametrize(("name", "text"), [row for row in examples() if row[0] in NAMES])
def test_each_example_can_be_uncommented_and_shows_the_default_where_there_is_one(name: str, text: str) -> None:
    settings = load_settings(HOME, (PAIR if name in PAIR else {}) | {name: text})
    if name not in UNSET and (name, text) != ("WORKERS", "gpu:0=1,gpu:GPU-ab12=2,cpu=1"):
        assert getattr(settings, field_of(name)) == getattr(load(), field_of(name))
    elif name in UNSET:
        before = re.split(rf"^# {name}=", EXAMPLE.read_text(encoding="utf-8"), flags=re.MULTILINE)[0]
        assert (
            name == "WORKER_ENV"
            or "nset" in before.rsplit("\n\n", 1)[1]
            or name in ("REQUIRED_MODEL", "LOG_DIR", "TLS_KEY")
        )


def test_all_examples_together_are_a_good_file(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_text("".join(f"{name}={text}\n" for name, text in examples()), encoding="utf-8")
    values, wrong = read_dotenv(file)
    assert wrong == ()
    load_settings(HOME, values)


@pytest.mark.parametrize(
    ("settings", "url"),
    [
        ({}, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, "http://c:4318/v1/traces"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318/"}, "http://c:4318/v1/traces"),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://t/x"},
            "http://t/x",
        ),
    ],
)
def test_traces_go_where_opentelemetry_says(settings: dict[str, str], url: str | None) -> None:
    assert load(**settings).traces_url == url
