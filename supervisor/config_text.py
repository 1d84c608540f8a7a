"""The settings as text, as they would be written in `.env`; what is secret is hidden. Pure."""

from typing import Any

from pydantic import SecretStr

from supervisor.config import Settings


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
