"""Tries a running gateway: more workers, many requests at once, and what became of each (make test-gateway).

Spawns workers, fires concurrent streamed requests at them, shows where each was answered, how long it queued
and how the load was shared, and prunes the workers again. Exit status 1 if a request was lost, or if a ready
worker got none although the others had too few slots for all of them.
"""

import json
import os
import signal
import ssl
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import click
import httpx
import trio
from rich.console import Console
from rich.table import Table

READY = ("IDLE", "BUSY")
READY_TIMEOUT_S = 600.0
SILENCE_TIMEOUT_S = 660.0  # a little more than the gateway's own FIRST_BYTE_TIMEOUT_S
ADMIN_TIMEOUT_S = 30.0
RETRY_FOR_S = 300.0  # a request that gets 503 for so long is lost
POLL_S = 0.2
DEFAULT_REQUESTS = 24
BAR_WIDTH = 30


class GivenUp(Exception):
    """The trial cannot go on."""


@dataclass(frozen=True, slots=True)
class Stream:
    """What an answer's lines add up to. `fault` is None for a complete answer."""

    tokens: int
    fault: str | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one request. Times count from its first sending, times of a lost one may be missing."""

    number: int
    worker: str | None = None
    queue_ms: float | None = None
    attempts: int | None = None
    first_token_s: float | None = None
    total_s: float = 0.0
    tokens: int = 0
    retries: int = 0
    fault: str | None = None


@dataclass(frozen=True, slots=True)
class Share:
    """How many of the answered requests one worker got; `part` is 0 to 1."""

    worker: str
    count: int
    part: float


@dataclass(slots=True)
class Plan:
    """What to ask, and how often."""

    workers: int
    requests: int | None
    concurrency: int | None
    model: str | None
    tokens: int
    prompt: str
    keep: bool


@dataclass(slots=True)
class Trial:
    """What has happened so far."""

    spawned: list[str] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    max_depth: int = 0
    interrupted: bool = False


# --- Pure


def is_token(line: str) -> bool:
    """Whether a line of a stream carries text."""
    try:
        value = json.loads(line)
    except ValueError:
        return False
    return isinstance(value, dict) and bool(value.get("response") or value.get("thinking"))


def judge(lines: Iterable[str]) -> Stream:
    """Judge a streamed answer by its lines: it is complete only with `"done":true` as the last."""
    tokens, done = 0, False
    for line in lines:
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError:
            return Stream(tokens, f"a line that is not JSON: {line[:60]!r}")
        if not isinstance(value, dict):
            return Stream(tokens, f"a line that is not a JSON object: {line[:60]!r}")
        if "error" in value:
            return Stream(tokens, str(value["error"]))
        if done:
            return Stream(tokens, "a line after the end")
        done = value.get("done") is True
        tokens += bool(value.get("response") or value.get("thinking"))
        if done:
            tokens = value.get("eval_count", tokens)
    return Stream(tokens, None if done else "the stream ended before it was done")


def retry_after_s(headers: Mapping[str, str]) -> float:
    """How long a 503 asks to wait: its Retry-After in seconds, else 1."""
    try:
        return max(0.1, float(headers.get("retry-after", "1")))
    except ValueError:
        return 1.0


def error_text(status: int, body: str) -> str:
    """The sentence in an error's body, in Ollama's or OpenAI's form, with the status."""
    try:
        error = json.loads(body)["error"]
        return f"{status}: {error['message'] if isinstance(error, dict) else error}"
    except (ValueError, KeyError, TypeError):
        return f"{status}: {body.strip()[:100]}"


def balance(outcomes: Iterable[Outcome], ready: Sequence[str]) -> list[Share]:
    """How the answered requests were shared; ready workers without one are in it, with 0."""
    counts = Counter(dict.fromkeys(ready, 0))
    counts.update(outcome.worker for outcome in outcomes if outcome.worker and not outcome.fault)
    total = counts.total()
    return [Share(worker, count, count / total if total else 0.0) for worker, count in sorted(counts.items())]


def passed_over(shares: Iterable[Share], slots: Mapping[str, int], at_once: int) -> list[str]:
    """The workers that got nothing although the others had too few slots for `at_once` requests."""
    total = sum(slots.values())
    return [share.worker for share in shares if not share.count and at_once > total - slots.get(share.worker, total)]


def sentences(group: BaseExceptionGroup[BaseException]) -> list[str]:
    """What the exceptions in a group say, those in inner groups too."""
    found = []
    for error in group.exceptions:
        found += sentences(error) if isinstance(error, BaseExceptionGroup) else [str(error)]
    return found


def seconds(value: float | None) -> str:
    """A time for people, in seconds."""
    return "-" if value is None else f"{value:.2f} s"


# --- Asking the gateway


class Gateway:
    """The gateway under trial, with the tokens of the environment."""

    def __init__(self, url: str, client: httpx.AsyncClient) -> None:
        self.url = url
        self.client = client
        self.admin_headers = bearer("ADMIN_TOKEN")
        self.headers = bearer("CHIMERA_API_KEY")

    async def call(self, method: str, path: str, body: Any = None) -> Any:
        """An answer's JSON. Raises GivenUp with one clear sentence."""
        headers = self.admin_headers if path.startswith("/admin/") else self.headers
        try:
            response = await self.client.request(method, path, json=body, headers=headers, timeout=ADMIN_TIMEOUT_S)
        except httpx.ConnectError:
            start = "start it with 'make run' or 'make start-all', or set CHIMERA_URL"
            raise GivenUp(f"no gateway at {self.url}: {start}") from None
        except httpx.HTTPError as error:
            raise GivenUp(f"{method} {self.url}{path}: {str(error) or type(error).__name__}") from error
        if response.is_error:
            holds = "ADMIN_TOKEN holds the token" if path.startswith("/admin/") else "CHIMERA_API_KEY holds the key"
            hint = f" ({holds})" if response.status_code in (401, 403) else ""
            raise GivenUp(f"{method} {path}: {error_text(response.status_code, response.text)}{hint}")
        return response.json()

    async def instances(self) -> list[dict[str, Any]]:
        """Every worker."""
        rows: list[dict[str, Any]] = (await self.call("GET", "/admin/instances"))["instances"]
        return rows

    async def ask(self, number: int, plan: Plan) -> Outcome:
        """Send one request; 503 is sent again when it says. Never raises for what the gateway does."""
        began = trio.current_time()
        retries = 0
        while True:
            try:
                outcome, wait_s = await self._once(number, plan, began)
            except httpx.HTTPError as error:
                outcome = Outcome(number, fault=f"{type(error).__name__}: {error}")
                wait_s = None
            total_s = trio.current_time() - began
            if wait_s is None or total_s + wait_s > RETRY_FOR_S:
                facts = {name: getattr(outcome, name) for name in Outcome.__slots__}
                return Outcome(**{**facts, "total_s": total_s, "retries": retries})
            retries += 1
            await trio.sleep(wait_s)

    async def _once(self, number: int, plan: Plan, began: float) -> tuple[Outcome, float | None]:
        """One sending: its outcome, and after how many seconds to send again, if at all."""
        # Prompts differ from their first word on: a shared beginning would be a reason to share a worker.
        body = {"model": plan.model, "prompt": f"{number}. {plan.prompt}", "options": {"num_predict": plan.tokens}}
        lines: list[str] = []
        first_s = None
        async with self.client.stream("POST", "/api/generate", json=body, headers=self.headers) as response:
            if response.status_code != 200:
                text = (await response.aread()).decode(errors="replace")
                wait_s = retry_after_s(response.headers) if response.status_code == 503 else None
                return Outcome(number, fault=error_text(response.status_code, text)), wait_s
            async for line in response.aiter_lines():
                lines.append(line)
                if first_s is None and is_token(line):
                    first_s = trio.current_time() - began
        stream = judge(lines)
        answered = response.headers
        queue_ms, attempts = answered.get("x-chimera-queue-ms"), answered.get("x-chimera-attempts")
        return Outcome(
            number,
            worker=answered.get("x-chimera-worker"),
            queue_ms=None if queue_ms is None else float(queue_ms),
            attempts=None if attempts is None else int(attempts),
            first_token_s=first_s,
            tokens=stream.tokens,
            fault=stream.fault,
        ), None


def bearer(variable: str) -> dict[str, str]:
    """The Authorization header with a token of the environment, if it is set."""
    token = os.environ.get(variable)
    return {"Authorization": f"Bearer {token}"} if token else {}


async def spawn(gateway: Gateway, trial: Trial, count: int, console: Console) -> None:
    """Spawn `count` workers at once and wait until they are ready. Raises GivenUp if one will not be."""
    with trio.CancelScope(shield=True):  # Ctrl-C must not part us from the ids of what we have spawned
        answer = await gateway.call("POST", "/admin/instances/spawn", {"count": count})
        trial.spawned = [str(row["id"]) for row in answer["instances"]]
    deadline = trio.current_time() + READY_TIMEOUT_S
    with console.status("") as status:
        while True:
            states = {row["id"]: row for row in await gateway.instances() if row["id"] in trial.spawned}
            if len(states) == count and all(row["state"] in READY for row in states.values()):
                return
            text = ", ".join(f"{name} {row['state']}" for name, row in states.items())
            hopeless = len(states) < count or any(row["state"] == "QUARANTINED" for row in states.values())
            if hopeless or trio.current_time() > deadline:
                raise GivenUp(f"the spawned workers did not become ready: {text or 'they are gone'}")
            status.update(f"waiting for the workers: {text}")
            await trio.sleep(POLL_S)


async def prune(gateway: Gateway, trial: Trial) -> None:
    """Prune what was spawned, also after Ctrl-C. The gateway drains the workers by itself."""
    if trial.spawned:
        with trio.CancelScope(shield=True):
            await gateway.call("POST", "/admin/instances/prune", {"ids": trial.spawned})


async def watch_queue(gateway: Gateway, trial: Trial) -> None:
    """Keep the deepest the queue has been. Cancellation ends it."""
    while True:
        queue = (await gateway.call("GET", "/admin/instances"))["queue"]
        trial.max_depth = max(trial.max_depth, queue["depth"])
        await trio.sleep(POLL_S)


async def fire(gateway: Gateway, trial: Trial, plan: Plan, requests: int, at_once: int) -> None:
    """Send all requests, at most `at_once` at a time, while the queue is watched."""
    limit = trio.CapacityLimiter(at_once)

    async def one(number: int) -> None:
        async with limit:
            trial.outcomes.append(await gateway.ask(number, plan))

    async with trio.open_nursery() as watching:
        watching.start_soon(watch_queue, gateway, trial)
        async with trio.open_nursery() as asking:
            for number in range(1, requests + 1):
                asking.start_soon(one, number)
        watching.cancel_scope.cancel()


# --- What a person reads


def requests_table(outcomes: Sequence[Outcome]) -> Table:
    """One row per request."""
    table = Table(title="Requests", title_justify="left")
    table.add_column("#", justify="right")
    table.add_column("worker", no_wrap=True)
    for name in ("queued", "attempts", "first token", "total", "tokens"):
        table.add_column(name, justify="right")
    table.add_column("outcome")
    for outcome in sorted(outcomes, key=lambda outcome: outcome.number):
        good = "ok" if not outcome.retries else f"ok, retried after 503: {outcome.retries}"
        table.add_row(
            str(outcome.number),
            outcome.worker or "-",
            seconds(None if outcome.queue_ms is None else outcome.queue_ms / 1000),
            str(outcome.attempts or "-"),
            seconds(outcome.first_token_s),
            seconds(outcome.total_s),
            str(outcome.tokens),
            good if outcome.fault is None else f"[red]lost: {outcome.fault}[/red]",
        )
    return table


def balance_table(shares: Iterable[Share]) -> Table:
    """One row per worker."""
    table = Table(title="Balance", title_justify="left")
    table.add_column("worker", no_wrap=True)
    table.add_column("requests", justify="right")
    table.add_column("share", justify="right")
    table.add_column("")
    for share in shares:
        table.add_row(share.worker, str(share.count), f"{share.part:.0%}", "█" * round(share.part * BAR_WIDTH))
    return table


def report(console: Console, trial: Trial, ready: Mapping[str, int], at_once: int, wall_s: float) -> bool:
    """Print the tables and the verdict; return whether all is well. `ready` gives each worker's slots."""
    shares = balance(trial.outcomes, list(ready))
    console.print(requests_table(trial.outcomes))
    console.print(balance_table(shares))
    lost = [outcome for outcome in trial.outcomes if outcome.fault is not None]
    retried = sum(outcome.retries > 0 for outcome in trial.outcomes)
    tokens = sum(outcome.tokens for outcome in trial.outcomes)
    count = len(trial.outcomes)
    console.print(
        f"{count} requests in {wall_s:.1f} s: {count / wall_s:.2f} requests/s, {tokens / wall_s:.1f} tokens/s"
    )
    console.print(f"queue: at most {trial.max_depth} waiting; retried after 503: {retried}; lost: {len(lost)}")
    if at_once <= sum(ready.values()):
        console.print(f"{at_once} requests at once for {sum(ready.values())} slots: nothing had to wait")
    idle = passed_over(shares, ready, at_once) if len(ready) > 1 else []
    for worker in idle:
        console.print(f"[red]{worker} was ready and got no request[/red]")
    good = not lost and not idle
    console.print("[green]all answered[/green]" if good else "[red]failed[/red]")
    return good


async def run_trial(gateway: Gateway, trial: Trial, plan: Plan, console: Console) -> bool:
    """Spawn, fire, report; return whether all is well. Raises GivenUp."""
    await gateway.instances()  # a gateway that is not there is said before anything is done
    if plan.model is None:
        models = (await gateway.call("GET", "/api/tags"))["models"]
        if not models:
            raise GivenUp("the store has no model: ./client.sh pull MODEL")
        plan.model = models[0]["name"]
    if plan.workers:
        await spawn(gateway, trial, plan.workers, console)
    ready = {row["id"]: int(row["slots"]) for row in await gateway.instances() if row["state"] in READY}
    if not ready:
        raise GivenUp("no worker is ready")
    # Enough for every slot and for a queue, if nobody says how many.
    requests = plan.requests or max(DEFAULT_REQUESTS, sum(ready.values()) * 3 // 2)
    at_once = min(requests, plan.concurrency or requests)
    console.print(f"{gateway.url}, model {plan.model}: {requests} requests, {at_once} at once, {len(ready)} workers")
    began = trio.current_time()
    with console.status("asking"):
        await fire(gateway, trial, plan, requests, at_once)
    return report(console, trial, ready, at_once, trio.current_time() - began)


def trusted() -> ssl.SSLContext | bool:
    """Return how an https:// gateway is trusted: by the file CHIMERA_CA, else as httpx does. Raises GivenUp."""
    ca = os.environ.get("CHIMERA_CA")
    if not ca:
        return True
    try:
        context = ssl.create_default_context(cafile=ca)
    except OSError as error:  # ssl.SSLError among them
        raise GivenUp(f"CHIMERA_CA: {ca} cannot be read as a certificate: {error.strerror or error}") from error
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # as curl: the server's own certificate will do
    return context


async def run(url: str, plan: Plan, console: Console) -> bool:
    """The whole trial, with what was spawned pruned at its end. Raises GivenUp."""
    trial = Trial()
    good = False
    loopback = httpx.URL(url).host in ("127.0.0.1", "localhost", "::1")
    timeout = httpx.Timeout(SILENCE_TIMEOUT_S, connect=10.0, pool=None)
    limits = httpx.Limits(max_connections=None)
    async with (
        httpx.AsyncClient(
            base_url=url, timeout=timeout, limits=limits, trust_env=not loopback, verify=trusted()
        ) as client,
        trio.open_nursery() as nursery,
    ):
        gateway = Gateway(url, client)

        async def end_on_signal() -> None:
            with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
                async for _ in signals:
                    trial.interrupted = True
                    nursery.cancel_scope.cancel()

        nursery.start_soon(end_on_signal)
        try:
            good = await run_trial(gateway, trial, plan, console)
        finally:
            if not plan.keep:
                await prune(gateway, trial)
        nursery.cancel_scope.cancel()
    if trial.interrupted:
        raise GivenUp("interrupted")
    return good


@click.command()
@click.option("--workers", type=click.IntRange(min=0), default=2, show_default=True, help="More workers to spawn.")
@click.option("--requests", type=click.IntRange(min=1), help="Default: 24, or 3/2 of the slots if that is more.")
@click.option("--concurrency", type=click.IntRange(min=1), help="Requests at once. Default: all.")
@click.option("--model", help="Default: the first in the store.")
@click.option("--tokens", type=click.IntRange(min=1), default=24, show_default=True, help="num_predict of a request.")
@click.option("--prompt", default="Write a short story about the sea.", show_default=True)
@click.option("--keep", is_flag=True, help="Leave the spawned workers.")
def main(**options: Any) -> None:
    """Try the gateway at CHIMERA_URL (default http://127.0.0.1:8000) with many requests at once."""
    url = os.environ.get("CHIMERA_URL", "http://127.0.0.1:8000").rstrip("/")
    console = Console(width=None if sys.stdout.isatty() else 130)
    good, ends = False, []
    try:
        good = trio.run(run, url, Plan(**options), console)
    except* GivenUp as group:
        ends = sentences(group)
    if ends:
        raise SystemExit(f"test_gateway.py: {ends[0]}")
    raise SystemExit(0 if good else 1)


if __name__ == "__main__":
    main()
