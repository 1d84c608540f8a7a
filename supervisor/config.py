"""Settings: what each name means, its default and its limits; read once, frozen, all faults reported at once.

Pure: the environment and the lines of `.env` are handed in. An empty value counts as not set, so that
`NAME=` in a file switches a setting back to its default. docs: `.env.example`, held to this file by a test.
"""

import difflib
import ipaddress
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ByteSize, ConfigDict, Field, SecretStr, TypeAdapter, ValidationError

from supervisor.domains import domains, in_both
from supervisor.errors import BadConfiguration

# Linux gives client sockets ports from here up (net.ipv4.ip_local_port_range), and Ollama's runners take theirs
# there too: a worker's own port above it may be taken at any moment.
EPHEMERAL_PORTS_FROM = 32768
# The most workers that get ports beside each other.
WORKER_PORTS = 512

# The most workers there are at one time.
MOST_WORKERS = 256
MOST_SLOTS = 1024

# Names that the contract reserves for what this version does not do yet.
RESERVED = frozenset(["FRONTEND_PORT", "NEXTAUTH_URL", "NEXTAUTH_SECRET"])
# Read by client.sh and the scripts, and welcome in the same file.
CLIENT_NAMES = frozenset({"CHIMERA_URL", "CHIMERA_API_KEY", "CHIMERA_CA"})
# A worker's variables that Chimera itself decides: WORKER_ENV may not contradict it.
MANAGED_BY = {
    "OLLAMA_HOST": "WORKER_PORT_BASE",
    "OLLAMA_MODELS": "OLLAMA_MODELS",
    "OLLAMA_NUM_PARALLEL": "WORKER_SLOTS",
    "OLLAMA_NOPRUNE": "nothing: the primary alone prunes the shared store",
    "CUDA_VISIBLE_DEVICES": "WORKERS",
    "CUDA_DEVICE_ORDER": "nothing: workers are pinned by UUID",
    "OLLAMA_VULKAN": "nothing: Vulkan sees GPUs that a worker must not use",
    "ROCR_VISIBLE_DEVICES": "nothing: this version pins NVIDIA GPUs only",
    "HIP_VISIBLE_DEVICES": "nothing: this version pins NVIDIA GPUs only",
    "CHIMERA_WORKER": "nothing: it is Chimera's own mark",
}


def _workers(value: object) -> object:
    """Read `auto`, or `gpu:0=1,gpu:GPU-ab12=2,cpu=1` into ((gpu or cpu, count), …); None is auto."""
    if not isinstance(value, str):
        return value
    if value.strip().lower() == "auto":
        return None
    pairs: list[tuple[str, int]] = []
    for part in value.split(","):
        name, equals, count = (piece.strip() for piece in part.partition("="))
        gpu = name.removeprefix("gpu:")
        if not equals or not re.fullmatch(r"\d{1,9}", count) or not (name.lower() == "cpu" or (name != gpu and gpu)):
            raise ValueError(f"{part.strip()!r} is not gpu:INDEX=N, gpu:UUID=N or cpu=N; or write auto alone")
        pairs.append((gpu, int(count)))
    asked = sum(count for _, count in pairs)
    if asked > MOST_WORKERS:
        raise ValueError(f"{asked} workers are asked for; {MOST_WORKERS} is the most")
    return tuple(pairs)


def _worker_env(value: object) -> object:
    """Read `K=V,K=V`; a comma not followed by `NAME=` belongs to the value before it."""
    if not isinstance(value, str):
        return value
    pairs: list[tuple[str, str]] = []
    for number, part in enumerate(re.split(r",(?=\s*[A-Za-z_][A-Za-z0-9_]*=)", value), start=1):
        name, equals, text = part.strip().partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise ValueError(f"part {number} is not NAME=VALUE")  # never the part itself: it may be a secret
        if name in MANAGED_BY:
            raise ValueError(f"{name} is set by Chimera for each worker; what decides it: {MANAGED_BY[name]}")
        pairs.append((name, text))
    return tuple(pairs)


def _models(value: object) -> object:
    if not isinstance(value, str):
        return value
    return tuple(name.strip() for name in value.split(",") if name.strip())


def _networks(value: object) -> object:
    """Read addresses and networks, `10.0.0.0/8,::1`, into their usual form; all that is wrong is named."""
    if not isinstance(value, str):
        return value
    networks: list[str] = []
    faults: list[str] = []
    for part in filter(None, map(str.strip, value.split(","))):
        try:
            if "%" in part:
                raise ValueError("a zone is of one machine alone")
            network = ipaddress.ip_network(part, strict=False)
        except ValueError:
            faults.append(f"{part!r} is not an address or a network such as 10.0.0.0/8")
            continue
        if "/" in part and network.network_address != ipaddress.ip_interface(part).ip:
            faults.append(f"{part!r} is an address within {network}; write that, or the address alone")
        elif network.version == 6 and network.network_address.ipv4_mapped:
            faults.append(f"{part!r} is IPv4 written as IPv6; write it as IPv4")
        elif network.prefixlen == 0:
            faults.append(f"{part!r} is everybody; name the proxies")
        networks.append(str(network.network_address if network.num_addresses == 1 else network))
    if faults:
        raise ValueError("; ".join(faults))
    return tuple(networks)


def _host(value: object) -> object:
    if isinstance(value, str) and not re.fullmatch(r"[0-9A-Za-z_.:-]+", value.strip("[]")):
        raise ValueError(f"{value!r} is not an address or host name")
    return value.strip().strip("[]") if isinstance(value, str) else value


def _directory(value: object) -> object:
    if isinstance(value, str) and not value.startswith("/"):
        raise ValueError(f"{value!r} is not an absolute path")
    return value


def _token(value: object) -> object:
    """A bearer token goes into a header as it is."""
    if isinstance(value, str) and not re.fullmatch(r"[!-~]([ -~]*[!-~])?", value):
        raise ValueError("must be printable ASCII characters, with no space at either end")
    return value


def _url(value: object) -> object:
    # never the text itself: a URL may hold a password
    if isinstance(value, str) and not re.fullmatch(r"https?://[!-~]+", value):
        raise ValueError("must be a URL that begins with http:// or https:// (OTLP over HTTP, usually port 4318)")
    return value


def _database_url(value: object) -> object:
    """Look at its beginning only: the rest may be a secret, and is for the database's driver to judge."""
    if isinstance(value, str) and not re.match(r"(sqlite:////|postgres(ql)?(\+psycopg)?://)[^\x00-\x1f\x7f]+\Z", value):
        raise ValueError("must be sqlite:////ABSOLUTE/PATH or postgresql://USER:PASSWORD@HOST/NAME")
    return value


def _choice(value: object) -> object:
    return value.strip().lower() if isinstance(value, str) else value


# never repeated in a fault: WORKER_ENV may hold a key, a URL a password
SECRETS = frozenset(
    {"ADMIN_TOKEN", "WORKER_ENV", "DATABASE_URL", "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"}
)

Port = Annotated[int, Field(ge=1, le=65535)]
Seconds = Annotated[float, Field(gt=0, le=86400, allow_inf_nan=False)]
Directory = Annotated[Path, BeforeValidator(_directory)]
Domains = Annotated[tuple[str, ...], BeforeValidator(domains)]


class Settings(BaseModel):
    """The effective settings. Each field's alias is the variable's name; its description is for people."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    gateway_host: Annotated[str, BeforeValidator(_host)] = Field(
        "127.0.0.1", alias="GATEWAY_HOST", description="address the gateway listens on"
    )
    gateway_port: Port = Field(8000, alias="GATEWAY_PORT", description="port the gateway listens on")
    tls_cert: Directory | None = Field(
        None, alias="TLS_CERT", description="certificate in PEM form, with those that signed it: the port speaks HTTPS"
    )
    tls_key: Directory | None = Field(None, alias="TLS_KEY", description="the certificate's private key, in PEM form")
    api_domains: Domains = Field((), alias="TRAEFIK_API_DOMAIN", description="host names of the API")
    page_domains: Domains = Field((), alias="TRAEFIK_FRONTEND_DOMAIN", description="host names of the web page")
    ollama_bin: Path | None = Field(
        None, alias="OLLAMA_BIN", description="the ollama to run; unset: PATH, then CPU build"
    )
    ollama_port: Port = Field(11434, alias="OLLAMA_PORT", description="port of the primary")
    ollama_models: Directory | None = Field(
        None, alias="OLLAMA_MODELS", description="the model store; unset: Ollama's own default"
    )
    required_models: Annotated[tuple[str, ...], BeforeValidator(_models)] = Field(
        (), alias="REQUIRED_MODEL", description="models that must be present; the first is loaded"
    )
    workers: Annotated[tuple[tuple[str, int], ...] | None, BeforeValidator(_workers)] = Field(
        None, alias="WORKERS", description="the wanted fleet at first start; auto: one per GPU, or one on CPU"
    )
    worker_port_base: Annotated[int, Field(ge=1024, lt=EPHEMERAL_PORTS_FROM - WORKER_PORTS)] = Field(
        11500, alias="WORKER_PORT_BASE", description="first port for workers"
    )
    worker_slots: Annotated[int, Field(ge=1, le=MOST_SLOTS)] = Field(
        4, alias="WORKER_SLOTS", description="requests a worker answers at once (OLLAMA_NUM_PARALLEL)"
    )
    worker_env: Annotated[tuple[tuple[str, str], ...], BeforeValidator(_worker_env)] = Field(
        (), alias="WORKER_ENV", description="more variables for workers, K=V,…"
    )
    queue_size: Annotated[int, Field(ge=0, le=1_000_000)] = Field(
        512, alias="QUEUE_SIZE", description="requests that may wait for a slot"
    )
    queue_bytes: Annotated[ByteSize, Field(ge=1024)] = Field(
        ByteSize(1024**3),
        alias="QUEUE_BYTES",
        description="bodies of the requests that wait, all together, such as 1GiB",
    )
    queue_timeout_s: Seconds = Field(300, alias="QUEUE_TIMEOUT_S", description="longest wait for a slot, seconds")
    first_byte_timeout_s: Seconds = Field(
        600, alias="FIRST_BYTE_TIMEOUT_S", description="longest wait for a worker's first byte, seconds"
    )
    stall_timeout_s: Seconds = Field(
        120, alias="STALL_TIMEOUT_S", description="longest silence within an answer, seconds"
    )
    start_timeout_s: Seconds = Field(
        120, alias="START_TIMEOUT_S", description="how long a worker may take to its first answer, seconds"
    )
    hang_timeout_s: Seconds = Field(
        15, alias="HANG_TIMEOUT_S", description="how long a worker may leave probes unanswered or be stopped, seconds"
    )
    canary_after_s: Annotated[float, Field(ge=0, le=86400, allow_inf_nan=False)] = Field(
        300, alias="CANARY_AFTER_S", description="an idle worker is tried with one token after so long; 0: never"
    )
    worker_memory_limit_bytes: Annotated[ByteSize, Field(ge=64 * 1024**2)] | None = Field(
        None, alias="WORKER_MEMORY_LIMIT_BYTES", description="an idle worker with more host memory is restarted"
    )
    load_options: Annotated[Literal["pass", "pin"], BeforeValidator(_choice)] = Field(
        "pass",
        alias="LOAD_OPTIONS",
        description="num_ctx and others that reload a model: pass them on, or pin the model's own",
    )
    max_body_bytes: Annotated[ByteSize, Field(ge=1024)] = Field(
        ByteSize(256 * 1024**2), alias="MAX_BODY_BYTES", description="largest request body, such as 256MiB"
    )
    max_connections: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        4096, alias="MAX_CONNECTIONS", description="clients that may be connected at once"
    )
    drain_timeout_s: Seconds = Field(
        60, alias="DRAIN_TIMEOUT_S", description="how long running answers may take to end, seconds"
    )
    stop_timeout_s: Seconds = Field(
        10, alias="STOP_TIMEOUT_S", description="from SIGTERM to SIGKILL of a worker, seconds"
    )
    admin_token: Annotated[SecretStr | None, BeforeValidator(_token)] = Field(
        None, alias="ADMIN_TOKEN", description="bearer token of the admin API; unset: loopback only"
    )
    api_keys_required: Annotated[bool, BeforeValidator(_choice)] = Field(
        False, alias="API_KEYS_REQUIRED", description="inference needs an API key (chimera keys)"
    )
    trusted_proxies: Annotated[tuple[str, ...], BeforeValidator(_networks)] = Field(
        (), alias="TRUSTED_PROXIES", description="reverse proxies that are believed who their client is"
    )
    database_url: Annotated[SecretStr | None, BeforeValidator(_database_url)] = Field(
        None, alias="DATABASE_URL", description="where keys are kept; unset: a SQLite file in STATE_DIR"
    )
    state_dir: Directory = Field(alias="STATE_DIR", description="what outlives a restart: the fleet, quarantines, keys")
    log_dir: Directory = Field(alias="LOG_DIR", description="the workers' logs")
    log_max_bytes: Annotated[ByteSize, Field(ge=16 * 1024**2)] = Field(
        ByteSize(2 * 1024**3), alias="LOG_MAX_BYTES", description="all logs in LOG_DIR together, such as 2GiB"
    )
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], BeforeValidator(_choice)
    ] = Field("info", alias="LOG_LEVEL", description="debug, info, warning or error")  # fmt: skip
    log_format: Annotated[Literal["auto", "console", "json", "journal"], BeforeValidator(_choice)] = Field(
        "auto",
        alias="LOG_FORMAT",
        description="console, json or journal; auto: console on a terminal, journal in systemd's, else json",
    )
    access_log: Annotated[Literal["auto", "on", "errors", "off"], BeforeValidator(_choice)] = Field(
        "auto",
        alias="ACCESS_LOG",
        description="a line per request: on, errors, off; auto: errors on a terminal, else on",
    )
    otel_endpoint: Annotated[str | None, BeforeValidator(_url)] = Field(
        None,
        alias="OTEL_EXPORTER_OTLP_ENDPOINT",
        description="where OpenTelemetry's data goes; traces to /v1/traces there",
    )
    otel_traces_endpoint: Annotated[str | None, BeforeValidator(_url)] = Field(
        None, alias="OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", description="where traces go, the whole URL"
    )

    @property
    def traces_url(self) -> str | None:
        """Where traces go, None: there are none. As OpenTelemetry's specification of the OTLP exporter has it."""
        if self.otel_traces_endpoint is not None:
            return self.otel_traces_endpoint
        return None if self.otel_endpoint is None else f"{self.otel_endpoint.rstrip('/')}/v1/traces"

    @property
    def local_host(self) -> str:
        """The name or address at which a client on this machine reaches the gateway."""
        return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.gateway_host, self.gateway_host)  # noqa: S104 - compared, not bound

    @property
    def gateway_url(self) -> str:
        """Where a client on this machine reaches the gateway."""
        return self._url_at(self.local_host)

    @property
    def shown_url(self) -> str:
        """The same for people: with TLS, at a name that the certificate is for, where one is set."""
        return self._url_at(self.api_domains[0]) if self.tls_cert and self.api_domains else self.gateway_url

    def _url_at(self, host: str) -> str:
        scheme = "https" if self.tls_cert else "http"
        return f"{scheme}://[{host}]:{self.gateway_port}" if ":" in host else f"{scheme}://{host}:{self.gateway_port}"


NAMES = frozenset(str(field.alias) for field in Settings.model_fields.values())


def default_directories(environ: Mapping[str, str]) -> dict[str, str]:
    """Return STATE_DIR and LOG_DIR where nobody set them: systemd's, else the XDG state folder.

    systemd.exec(5): STATE_DIRECTORY and LOGS_DIRECTORY are colon-separated lists; the first is the unit's own.
    """
    home = environ.get("HOME") or "/root"
    xdg = environ.get("XDG_STATE_HOME", "")
    state_home = Path(xdg) if xdg.startswith("/") else Path(home) / ".local/state"  # a relative one is to be ignored
    state = environ.get("STATE_DIRECTORY", "").split(":")[0] or str(state_home / "chimera")
    logs = environ.get("LOGS_DIRECTORY", "").split(":")[0] or f"{state}/logs"
    return {"STATE_DIR": state, "LOG_DIR": logs}


def state_dir_of(environ: Mapping[str, str], dotenv: Mapping[str, str | None]) -> Path:
    """Return STATE_DIR alone, whatever else is wrong with the settings."""
    return Path(environ.get("STATE_DIR") or dotenv.get("STATE_DIR") or default_directories(environ)["STATE_DIR"])


def load_settings(
    environ: Mapping[str, str], dotenv: Mapping[str, str | None], dotenv_faults: tuple[str, ...] = ()
) -> Settings:
    """Return the settings: environment first, then `.env`, then the defaults.

    `dotenv_faults` are those found before: lines of `.env` that are none, files that settings name. Raises
    BadConfiguration with every fault there is, each naming its variable.
    """
    faults = [*dotenv_faults, *_unknown_names(dotenv), *_reserved_names(dotenv)]
    values = default_directories(environ)
    for name in NAMES:
        text = environ.get(name) or dotenv.get(name)
        if text and "\0" in text:
            faults.append(f"{name}: has a NUL character")
        elif text:
            values[name] = text
    own_log_dir = environ.get("LOG_DIR") or dotenv.get("LOG_DIR") or environ.get("LOGS_DIRECTORY")
    if not own_log_dir and values["STATE_DIR"].startswith("/"):
        values["LOG_DIR"] = f"{values['STATE_DIR']}/logs"
    bad: set[str] = set()
    settings: Settings | None = None
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        for detail in error.errors(include_url=False, include_context=False):
            name = str(detail["loc"][0])
            if name not in bad:
                bad.add(name)
                faults.append(f"{name}: {_plain(detail['msg'], None if name in SECRETS else values.get(name))}")
    faults += [*_port_faults(values, bad), *_half_set(values, bad)]
    if settings is not None:
        faults += in_both(settings.api_domains, settings.page_domains)
    if faults or settings is None:
        raise BadConfiguration(faults)
    return settings


def effective(settings: Settings) -> dict[str, str]:
    """Return the settings by variable name, as text, with the secret ones hidden."""
    rows: dict[str, str] = {}
    for name, field in Settings.model_fields.items():
        value = getattr(settings, name)
        rows[str(field.alias)] = _shown(name, value)
    return rows


def workers_text(workers: tuple[tuple[str, int], ...] | None) -> str:
    """Return WORKERS as it would be written in `.env`."""
    if workers is None:
        return "auto"
    return ",".join(f"{'cpu' if gpu.lower() == 'cpu' else f'gpu:{gpu}'}={count}" for gpu, count in workers)


def _shown(name: str, value: Any) -> str:
    if value is None:
        return "auto" if name == "workers" else ""
    if isinstance(value, SecretStr):
        return "(set, hidden)"
    if name in ("otel_endpoint", "otel_traces_endpoint") and ("@" in value or "?" in value):
        return "(set, hidden)"
    if name == "workers":
        return workers_text(value)
    if name == "worker_env":
        # a worker's variable may hold a key
        return ",".join(f"{key}=(hidden)" if _secret(key, text) else f"{key}={text}" for key, text in value)
    if isinstance(value, tuple):
        return ",".join(value)
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value)


def _secret(name: str, text: str) -> bool:
    words = ("KEY", "TOKEN", "SECRET", "PASS", "AUTH", "CREDENTIAL")
    return any(word in name.upper() for word in words) or ("://" in text and "@" in text)


def _plain(message: str, written: str | None) -> str:
    """Return pydantic's message in our words, with what was written unless it is there already."""
    message = message.removeprefix("Value error, ").replace("Input should be", "must be")
    for theirs, ours in (("integer", "a whole number"), ("number", "a number"), ("boolean", "true or false")):
        message = re.sub(rf"a valid {theirs}(, .*)?$", ours, message)
    if written is None or repr(written) in message or message.startswith("'"):
        return message
    return f"{message} (it is {written!r})"


def _unknown_names(dotenv: Mapping[str, str | None]) -> list[str]:
    faults: list[str] = []
    for name in dotenv:
        if name in NAMES or name in RESERVED or name in CLIENT_NAMES:
            continue
        close = difflib.get_close_matches(name.upper(), NAMES, n=1, cutoff=0.75)
        if close:
            hint = f"did you mean {close[0]}?"
        elif name.startswith(("OLLAMA_", "CUDA_", "GGML_", "LLAMA_")):
            hint = f"for a worker's variable write WORKER_ENV={name}=…"
        else:
            hint = "see .env.example for the names there are"
        faults.append(f"{name if name.isprintable() else repr(name)}: not a setting; {hint}")
    return faults


def _reserved_names(dotenv: Mapping[str, str | None]) -> list[str]:
    """Refuse what this version cannot do. Not in the environment: other programs use such names."""
    off = {"false", "0", "no", "off"}
    return [
        f"{name}: this version of Chimera does not do that yet; remove it"
        for name in sorted(RESERVED)
        if (text := dotenv.get(name)) and text.strip().lower() not in off
    ]


def _half_set(values: Mapping[str, str], bad: set[str]) -> list[str]:
    """Refuse a certificate without a key, and a key without a certificate: whoever sets one expects protection."""
    pair = ("TLS_CERT", "TLS_KEY")
    missing = [name for name in pair if not values.get(name)]
    if len(missing) != 1 or bad.intersection(pair):
        return []
    (there,) = set(pair).difference(missing)
    return [f"{missing[0]}: not set, but {there} is; set both for HTTPS, or neither"]


def _port_faults(values: Mapping[str, str], bad: set[str]) -> list[str]:
    """Refuse ports of one setting that another needs too."""
    ports: dict[str, int] = {}
    for name in ("GATEWAY_PORT", "OLLAMA_PORT", "WORKER_PORT_BASE"):
        if name not in bad:
            default = next(f.default for f in Settings.model_fields.values() if f.alias == name)
            ports[name] = TypeAdapter(int).validate_python(values.get(name, default))
    faults: list[str] = []
    if ports.get("GATEWAY_PORT") is not None and ports.get("GATEWAY_PORT") == ports.get("OLLAMA_PORT"):
        faults.append(f"OLLAMA_PORT: {ports['OLLAMA_PORT']} is GATEWAY_PORT too; choose another for one of them")
    base = ports.get("WORKER_PORT_BASE")
    for name in ("GATEWAY_PORT", "OLLAMA_PORT"):
        if base is not None and base <= ports.get(name, 0) < base + WORKER_PORTS:
            faults.append(  # noqa: PERF401 - two at most
                f"{name}: {ports[name]} lies among the workers' ports "
                f"({base} to {base + WORKER_PORTS - 1}, see WORKER_PORT_BASE); choose another"
            )
    return faults
