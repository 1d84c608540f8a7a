"""Settings: what each name means, its default and its limits; typed and frozen. Pure.

`config_values` reads the text of one, `config_load` brings all together. docs: `.env.example`, held to this file by a
test.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ByteSize, ConfigDict, Field, SecretStr

from supervisor import config_values
from supervisor.domains import domains

# Linux gives client sockets ports from here up (net.ipv4.ip_local_port_range), and Ollama's runners take theirs
# there too: a worker's own port above it may be taken at any moment.
EPHEMERAL_PORTS_FROM = 32768
# The most workers that get ports beside each other.
WORKER_PORTS = 512
MOST_SLOTS = 1024

# Names that the contract reserves for what this version does not do yet.
RESERVED = frozenset(["FRONTEND_PORT", "NEXTAUTH_URL", "NEXTAUTH_SECRET"])
# Read by client.sh and the scripts, and welcome in the same file.
CLIENT_NAMES = frozenset({"CHIMERA_URL", "CHIMERA_API_KEY", "CHIMERA_CA"})
# never repeated in a fault: WORKER_ENV may hold a key, a URL a password
SECRETS = frozenset(
    {"ADMIN_TOKEN", "WORKER_ENV", "DATABASE_URL", "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"}
)

Port = Annotated[int, Field(ge=1, le=65535)]
Seconds = Annotated[float, Field(gt=0, le=86400, allow_inf_nan=False)]
Directory = Annotated[Path, BeforeValidator(config_values.directory)]
Domains = Annotated[tuple[str, ...], BeforeValidator(domains)]


class Settings(BaseModel):
    """The effective settings. Each field's alias is the variable's name; its description is for people."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    gateway_host: Annotated[str, BeforeValidator(config_values.host)] = Field(
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
    required_models: Annotated[tuple[str, ...], BeforeValidator(config_values.models)] = Field(
        (), alias="REQUIRED_MODEL", description="models that must be present; the first is loaded"
    )
    workers: Annotated[tuple[tuple[str, int], ...] | None, BeforeValidator(config_values.workers)] = Field(
        None, alias="WORKERS", description="the wanted fleet at first start; auto: one per GPU, or one on CPU"
    )
    worker_port_base: Annotated[int, Field(ge=1024, lt=EPHEMERAL_PORTS_FROM - WORKER_PORTS)] = Field(
        11500, alias="WORKER_PORT_BASE", description="first port for workers"
    )
    worker_slots: Annotated[int, Field(ge=1, le=MOST_SLOTS)] = Field(
        4, alias="WORKER_SLOTS", description="requests a worker answers at once (OLLAMA_NUM_PARALLEL)"
    )
    worker_env: Annotated[tuple[tuple[str, str], ...], BeforeValidator(config_values.worker_env)] = Field(
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
    load_options: Annotated[Literal["pass", "pin"], BeforeValidator(config_values.choice)] = Field(
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
    admin_token: Annotated[SecretStr | None, BeforeValidator(config_values.token)] = Field(
        None, alias="ADMIN_TOKEN", description="bearer token of the admin API; unset: loopback only"
    )
    api_keys_required: Annotated[bool, BeforeValidator(config_values.choice)] = Field(
        False, alias="API_KEYS_REQUIRED", description="inference needs an API key (chimera keys)"
    )
    trusted_proxies: Annotated[tuple[str, ...], BeforeValidator(config_values.networks)] = Field(
        (), alias="TRUSTED_PROXIES", description="reverse proxies that are believed who their client is"
    )
    database_url: Annotated[SecretStr | None, BeforeValidator(config_values.database_url)] = Field(
        None, alias="DATABASE_URL", description="where keys are kept; unset: a SQLite file in STATE_DIR"
    )
    state_dir: Directory = Field(alias="STATE_DIR", description="what outlives a restart: the fleet, quarantines, keys")
    log_dir: Directory = Field(alias="LOG_DIR", description="the workers' logs")
    log_max_bytes: Annotated[ByteSize, Field(ge=16 * 1024**2)] = Field(
        ByteSize(2 * 1024**3), alias="LOG_MAX_BYTES", description="all logs in LOG_DIR together, such as 2GiB"
    )
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], BeforeValidator(config_values.choice)
    ] = Field("info", alias="LOG_LEVEL", description="debug, info, warning or error")  # fmt: skip
    log_format: Annotated[Literal["auto", "console", "json", "journal"], BeforeValidator(config_values.choice)] = Field(
        "auto",
        alias="LOG_FORMAT",
        description="console, json or journal; auto: console on a terminal, journal in systemd's, else json",
    )
    access_log: Annotated[Literal["auto", "on", "errors", "off"], BeforeValidator(config_values.choice)] = Field(
        "auto",
        alias="ACCESS_LOG",
        description="a line per request: on, errors, off; auto: errors on a terminal, else on",
    )
    otel_endpoint: Annotated[str | None, BeforeValidator(config_values.url)] = Field(
        None,
        alias="OTEL_EXPORTER_OTLP_ENDPOINT",
        description="where OpenTelemetry's data goes; traces to /v1/traces there",
    )
    otel_traces_endpoint: Annotated[str | None, BeforeValidator(config_values.url)] = Field(
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
