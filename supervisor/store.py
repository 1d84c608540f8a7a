"""The model store: what is in it, and bringing in what is required. The primary alone writes to it."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import httpx
import structlog
import trio

from supervisor.errors import ModelUnavailable
from supervisor.events import EventLog
from supervisor.probe import Prober
from supervisor.restart import BackOff
from supervisor.tls import no_tls
from supervisor.words import Trouble

log = structlog.get_logger("store")

# Between two lines of a pull's progress; a registry that says nothing for longer is gone.
PULL_SILENCE_S = 120.0
CREATE_TIMEOUT_S = 600.0


def full_name(model: str) -> str:
    """Return a model's name as Ollama lists it: `llama3` is `llama3:latest`."""
    last = model.rsplit("/", 1)[-1]
    return model if ":" in last else f"{model}:latest"


@dataclass(slots=True)
class _Attempt:
    """One bringing-in of a model, for all who ask for it; neither done nor at fault: its task was cancelled."""

    over: trio.Event = field(default_factory=trio.Event)
    done: bool = False
    fault: str | None = None


@dataclass(slots=True)
class PullProgress:
    """How far a pull is, over all layers seen so far, and at which tenths of it there is something to report."""

    layers: dict[str, tuple[int, int]] = field(default_factory=dict)  # digest -> bytes done, bytes in all
    _reported: int = 0

    @property
    def done_bytes(self) -> int:
        """Bytes that are there."""
        return sum(done for done, _ in self.layers.values())

    @property
    def total_bytes(self) -> int:
        """Bytes of the layers seen so far."""
        return sum(total for _, total in self.layers.values())

    @property
    def percent(self) -> int:
        """The share that is there; a layer that is met later lowers it."""
        return 100 * self.done_bytes // self.total_bytes if self.total_bytes else 0

    def take(self, line: Mapping[str, object]) -> bool:
        """Take one of Ollama's status lines; say whether another tenth has been completed."""
        digest, total, done = line.get("digest"), line.get("total"), line.get("completed", 0)
        if not isinstance(digest, str) or not isinstance(total, int) or not isinstance(done, int):
            return False
        known = self.layers.get(digest)
        self.layers[digest] = (done, total)
        if known is None or known[1] != total:
            # the tenths of a larger whole are counted from where it stands
            self._reported = min(self._reported, self.percent // 10)
        tenths = self.percent // 10
        if tenths <= self._reported:
            return False
        self._reported = tenths
        return True


class ModelStore:
    """Makes required models present, through the primary."""

    def __init__(self, prober: Prober, port: int, ollama: Path, recipes: Mapping[str, Path], events: EventLog) -> None:
        """`recipes` are models that are made here, from a Modelfile on this machine, instead of pulled."""
        self._prober = prober
        self._port = port
        self._ollama = ollama
        self._recipes = {full_name(model): path for model, path in recipes.items()}
        self._events = events
        self._present = trio.Event()
        self._under_way: dict[str, _Attempt] = {}
        self.trouble: Trouble | None = None
        self.progress: str | None = None

    @property
    def problem(self) -> str | None:
        """What is wrong and what is done about it, in one line, or None."""
        trouble = self.trouble
        return f"{trouble.what}; {trouble.tried}, {self.progress or trouble.next}" if trouble is not None else None

    @property
    def present(self) -> bool:
        """Whether every required model is in the store."""
        return self._present.is_set()

    async def wait_present(self) -> None:
        """Return when every required model is in the store."""
        await self._present.wait()

    def require_anew(self) -> None:
        """Other models are required now: none counts as present until `keep` has looked."""
        if self._present.is_set():
            self._present = trio.Event()

    async def keep(self, models: Sequence[str], random_unit: Callable[[], float]) -> None:
        """Bring in what is missing; a failure is retried with back-off for as long as it takes. The store's task.

        Cancellation ends a pull where it is; Ollama goes on from there next time.
        """
        for model in models:
            await self._keep_at_it(full_name(model), random_unit)
            self.trouble = self.progress = None
        self._present.set()

    async def _keep_at_it(self, model: str, random_unit: Callable[[], float]) -> None:
        back_off = BackOff()
        while True:
            if self.trouble is not None:
                self.trouble = replace(self.trouble, next="it is being tried again now")
            try:
                await self.bring_in(model)
                return
            except ModelUnavailable as error:
                since = self.trouble.since if self.trouble is not None else datetime.now(UTC)
                back_off = back_off.failed(ready_for_s=0)
                tried, delay_s = back_off.failures, back_off.delay_s(random_unit())
                times = "once" if tried == 1 else f"{tried} times"
                self.progress = None
                self.trouble = Trouble(str(error), since, f"tried {times}", f"another try in {delay_s:.0f} s")
                self._events.record(
                    "model_unavailable", level="error", model=model, cause=str(error), tried=tried,
                    retry_in_s=round(delay_s, 1),
                )  # fmt: skip
                await trio.sleep(delay_s)

    async def bring_in(self, model: str) -> None:
        """Make a model present; who asks for one that is on its way already waits for that. Raises ModelUnavailable.

        Cancellation ends the pull, unless others wait for it: then one of them goes on with it.
        """
        model = full_name(model)
        while (attempt := self._under_way.get(model)) is not None:
            await attempt.over.wait()
            if attempt.done:
                return
            if attempt.fault is not None:
                raise ModelUnavailable(attempt.fault)
        attempt = self._under_way[model] = _Attempt()
        try:
            await self._ensure(model)
            attempt.done = True
        except ModelUnavailable as error:
            attempt.fault = str(error)
            raise
        finally:
            del self._under_way[model]
            attempt.over.set()

    async def _ensure(self, model: str) -> None:
        stored = await self._prober.stored(self._port)
        if stored is None:
            raise ModelUnavailable("the primary does not answer /api/tags")
        if model in stored:
            return
        recipe = self._recipes.get(model)
        self._events.record("model_missing", model=model, bring_in="create" if recipe else "pull")
        if recipe:
            await self._create(model, recipe)
        else:
            await self._pull(model)
        self._events.record("model_present", model=model)

    async def _create(self, model: str, recipe: Path) -> None:
        """Run `ollama create`, whose HTTP form differs between Ollama's versions while its command line does not."""
        self.progress = f"creating {model}"
        environ = dict(os.environ) | {"OLLAMA_HOST": f"127.0.0.1:{self._port}"}
        environ.setdefault("HOME", "/")
        done = None
        try:
            with trio.move_on_after(CREATE_TIMEOUT_S):
                done = await trio.run_process(
                    [str(self._ollama), "create", model, "-f", str(recipe)],
                    env=environ, capture_stdout=True, capture_stderr=True, check=False,
                )  # fmt: skip
        except OSError as error:
            raise ModelUnavailable(f"{model} cannot be created: {self._ollama}: {error.strerror}") from error
        if done is None:
            raise ModelUnavailable(f"{model} was not created within {CREATE_TIMEOUT_S:g} s")
        if done.returncode != 0:
            lines = [line for line in done.stderr.decode("utf-8", "replace").splitlines() if line.strip()]
            raise ModelUnavailable(f"{model} cannot be created: {(lines or ['no reason given'])[-1].strip()}")

    async def _pull(self, model: str) -> None:
        """Have the primary pull, and follow what it says."""
        url = f"http://127.0.0.1:{self._port}/api/pull"
        timeout = httpx.Timeout(10, read=PULL_SILENCE_S)
        last: dict[str, object] = {}
        fault: str | None = None
        share = PullProgress()
        self._events.record("model_pull", model=model, phase="started")
        try:
            async with (
                httpx.AsyncClient(trust_env=False, timeout=timeout, verify=no_tls()) as client,
                client.stream("POST", url, json={"model": model}) as answer,
            ):
                async for line in answer.aiter_lines():
                    # read to the end, whatever it says: httpx's generators must not be left half way
                    if fault is None and line.strip():
                        last, fault = _read(line)
                        self.progress = _progress(model, last)
                        if share.take(last):
                            self._record_share(model, "under way", share)
        except httpx.HTTPError as error:
            raise ModelUnavailable(f"{model} cannot be pulled: {str(error) or type(error).__name__}") from error
        if fault is None and last.get("status") != "success":
            fault = f"the answer ended with {last.get('status')!r}"
        if fault is not None:
            raise ModelUnavailable(f"{model} cannot be pulled: {fault}")
        self._record_share(model, "complete", share)

    def _record_share(self, model: str, phase: str, share: PullProgress) -> None:
        self._events.record(
            "model_pull", model=model, phase=phase, percent=share.percent, done_bytes=share.done_bytes,
            total_bytes=share.total_bytes,
        )  # fmt: skip


def _read(line: str) -> tuple[dict[str, object], str | None]:
    """Return a line's JSON object, and what is wrong: Ollama's own error, or that the line is none of Ollama's."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        return {}, f"the primary said {line[:80]!r}"
    return value, str(value["error"]) if "error" in value else None


def _progress(model: str, line: Mapping[str, object]) -> str:
    total, done = line.get("total"), line.get("completed")
    share = f" {100 * done // total} %" if isinstance(total, int) and isinstance(done, int) and total else ""
    return f"pulling {model}: {line.get('status', '')}{share}"
