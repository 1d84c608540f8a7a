"""What a worker says when asked: HTTP on loopback."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import httpx
import trio

from supervisor.ask import Asker
from supervisor.errors import NotAChatModel, StartFailed
from supervisor.tls import no_tls

PROBE_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Loaded:
    """One model as /api/ps lists it. `context_length` is None in versions that do not tell."""

    name: str
    size_bytes: int
    size_vram_bytes: int
    expires_at: datetime | None
    context_length: int | None


class Prober:
    """Asks workers by port. One for the whole supervisor; close it with `aclose`."""

    def __init__(self) -> None:
        self._asker = Asker()
        # trust_env off: a proxy from the environment must never stand between Chimera and its own workers
        self._client = httpx.AsyncClient(
            trust_env=False, timeout=PROBE_TIMEOUT_S, limits=httpx.Limits(max_connections=None), verify=no_tls()
        )

    async def aclose(self) -> None:
        """Close the connections."""
        self._asker.close()
        await self._client.aclose()

    async def version(self, port: int, timeout_s: float | None = None) -> str | None:
        """Return the version of the Ollama on `port`, or None when it gives no good answer in time."""
        answer = await self._json(port, "/api/version", PROBE_TIMEOUT_S if timeout_s is None else timeout_s)
        return str(answer["version"]) if isinstance(answer, dict) and "version" in answer else None

    async def ps(self, port: int) -> tuple[Loaded, ...] | None:
        """Return the models loaded on `port`, or None when it gives no good answer in time."""
        answer = await self._json(port, "/api/ps", PROBE_TIMEOUT_S)
        try:
            return tuple(_loaded(model) for model in answer["models"] or [])
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
            return None

    async def stored(self, port: int) -> frozenset[str] | None:
        """Return the names of the models in the store, or None when the primary gives no good answer in time."""
        answer = await self._json(port, "/api/tags", PROBE_TIMEOUT_S)
        try:
            return frozenset(str(model["name"]) for model in answer["models"] or [])
        except (KeyError, TypeError):
            return None

    async def _json(self, port: int, path: str, timeout_s: float) -> Any:
        """Return what was answered, None when that was nothing good in time."""
        with trio.move_on_after(timeout_s):
            body = await self._asker.get(port, path)
            try:
                return None if body is None else json.loads(body)
            except (ValueError, RecursionError):
                return None
        return None

    async def canary(
        self, port: int, model: str, *, context_length: int | None, keep_alive: str | int | None, timeout_s: float
    ) -> str | None:
        """Ask a loaded model for one token; return None when it came, else what went wrong, in one sentence.

        `context_length` is what the model is loaded with, where known: another one would make Ollama load it anew
        (ollama#8903). `keep_alive` None leaves it to Ollama how long the model stays. Raises NotAChatModel for a
        model of which no token can be asked: it generates no text, or has left the store. Cancellation closes the
        connection, which ends the request.
        """
        options = {"num_predict": 1} | ({"num_ctx": context_length} if context_length else {})
        body = {"model": model, "prompt": "hi", "raw": True, "stream": False, "options": options}
        if keep_alive is not None:
            body["keep_alive"] = keep_alive
        with trio.move_on_after(timeout_s):  # httpx's own timeout would begin anew with every byte
            try:
                answer = await self._client.post(f"http://127.0.0.1:{port}/api/generate", json=body, timeout=None)
            except httpx.HTTPError as error:
                return f"the connection broke: {str(error) or type(error).__name__}"
            return _one_token(model, answer)
        return f"no token came within {timeout_s:g} s"

    async def load(self, port: int, model: str, timeout_s: float) -> None:
        """Load a model; returns when it is loaded.

        Raises StartFailed with Ollama's own reason. A model that only embeds refuses /api/generate with 400: it
        is loaded by an embedding of nothing.
        """
        reason = ""
        for path, body in (("/api/generate", {"model": model}), ("/api/embed", {"model": model, "input": ""})):
            try:
                answer = await self._client.post(f"http://127.0.0.1:{port}{path}", json=body, timeout=timeout_s)
            except httpx.TimeoutException as error:
                raise StartFailed(f"{model} was not loaded within {timeout_s:g} s") from error
            except httpx.HTTPError as error:
                raise StartFailed(
                    f"it went away while loading {model}: {str(error) or type(error).__name__}"
                ) from error
            if answer.status_code == 200:
                return
            reason = reason or answer.text.strip()[:300]
            if answer.status_code != 400:
                break
        raise StartFailed(f"{model} cannot be loaded: {reason}")


def _loaded(model: Mapping[str, Any]) -> Loaded:
    context = model.get("context_length")
    return Loaded(
        name=str(model["name"]),
        size_bytes=int(model.get("size") or 0),
        size_vram_bytes=int(model.get("size_vram") or 0),
        expires_at=_moment(model.get("expires_at")),
        context_length=context if isinstance(context, int) and context > 0 else None,
    )


def _one_token(model: str, answer: httpx.Response) -> str | None:
    """Return what is wrong with the answer to a canary, None when nothing is. Raises NotAChatModel."""
    match answer.status_code:
        case 200:
            try:
                whole = answer.json()["done"] is True
            except (ValueError, KeyError, TypeError, RecursionError):
                whole = False
            return None if whole else "its answer has no end"
        case 400:
            raise NotAChatModel(f"{model} generates no text")
        case 404:
            raise NotAChatModel(f"{model} is not in the store")
        case status:
            return f"it answered {status}: {' '.join(answer.text.split())[:300]}"


def _moment(text: object) -> datetime | None:
    """Return Go's RFC 3339 time, which has up to nine digits of a second; None for what is none."""
    try:
        moment = datetime.fromisoformat(str(text))
    except ValueError:
        return None
    return moment if moment.tzinfo is not None else None
