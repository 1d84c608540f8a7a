"""One request from arrival to its last byte: lease, upstream, relay, retry. Both lanes call this.

The client's leaving arrives here as cancellation.
"""

from collections.abc import AsyncIterable
from typing import Protocol

import structlog
import trio

from gateway.admission import Admission
from gateway.affinity import Life
from gateway.ending import End, end_of, is_stream
from gateway.errors import (
    ConnectFailed,
    Fault,
    FirstByteTimeout,
    LoadFailed,
    ModelLethal,
    PrimaryAway,
    RunnerDied,
    Stalled,
    WorkerLost,
    WorkerRefused,
)
from gateway.headers import Headers, framing_of, request_headers, response_headers
from gateway.lethal import LethalModels
from gateway.metrics import Metrics
from gateway.noted import Noted
from gateway.ollama import ERROR_BYTES, ERROR_STARTS, Ask, full_name, load_failed, runner_died, tokens_of
from gateway.phases import Unnoted, WorkerNotes
from gateway.relayed import Relayed
from gateway.request import Reply, Request, end_broken, own_headers
from gateway.retry import RetryBudget, Tries
from gateway.slots import Lease, WorkerSlots
from gateway.upstream import Answer, Upstream

log = structlog.get_logger("gateway")

PRIMARY = "primary"

# How long the supervisor may take to notice that a worker is gone; it takes a few milliseconds.
LOSS_NOTICED_S = 0.25

# An answer of fewer tokens says little of how fast its worker is.
PACE_TOKENS = 4


class WorkerWatch(Protocol):
    """Who hears that a request made no progress: the supervisor, which sees only real requests' silence from here."""

    def no_progress(self, worker_id: str, ready_at: float, phase: str, silent_s: float) -> None:
        """A request got no byte for `silent_s` seconds, in its phase "first byte" or "stall".

        `ready_at` (trio's clock) is when the life that was asked became ready: a newer process of that worker is
        not to blame.
        """

    def runner_died(self, worker_id: str, ready_at: float) -> None:
        """An answer of that life of the worker said that its runner died."""


class _Unwatched:
    """Nobody wants to know."""

    def no_progress(self, worker_id: str, ready_at: float, phase: str, silent_s: float) -> None:
        """Nobody to tell."""

    def runner_died(self, worker_id: str, ready_at: float) -> None:
        """Nobody to tell."""


class Exchange:
    """Carries out requests, for a worker or for the primary."""

    def __init__(
        self,
        admission: Admission,
        upstream: Upstream,
        metrics: Metrics,
        primary_port: int,
        watch: WorkerWatch | None = None,
        notes: WorkerNotes | None = None,
    ) -> None:
        """`watch` is told of requests that made no progress, `notes` of every request and its worker."""
        self.admission = admission
        self.upstream = upstream
        self.metrics = metrics
        self.primary_port = primary_port
        self._watch = watch or _Unwatched()
        self._budget = RetryBudget()
        self._lethal = LethalModels()
        self._notes = notes or Unnoted()

    async def infer(self, request: Request, ask: Ask, body: bytes, reply: Reply) -> None:
        """Have a worker answer: wait for a slot, relay, and try another worker while nothing has been sent.

        Raises a Fault of gateway.errors while nothing has been sent; after that the stream is ended with an
        error line here. Cancellation ends the wait or closes the worker's connection, and gives the slot back.
        """
        model = full_name(ask.model) if ask.model else None
        ticket = self.admission.ticket(
            model, request.caller, ask.prefix, load_options=ask.load_options, priority=request.priority,
            body_bytes=len(body), most_tokens=ask.most_tokens, request_id=request.id, notice=request.notice,
        )  # fmt: skip
        request.phases.queued_at = ticket.since
        request.unloads = ask.unloads
        tries = Tries(ticket)
        self._budget.request()
        self.refuse_lethal(model)
        while True:
            tries.attempts = request.attempts = request.attempts + 1
            async with self.admission.lease(ticket) as lease:
                request.waited_s = ticket.waited_s
                request.worker_id = lease.worker_id
                self.metrics.leased(request.waited_s)
                try:
                    with self.noted(request, lease.worker_id, ticket.granted_at):
                        await self._relay_lease(request, lease, tries, body, reply)
                    return
                except (ConnectFailed, WorkerLost, WorkerRefused, LoadFailed, RunnerDied, FirstByteTimeout,
                        Stalled) as fault:  # fmt: skip
                    self.tell_silence(lease.worker, fault)
                    if not reply.started and not isinstance(fault, LoadFailed):
                        self.admission.failed(lease)
                        self.lost_loading(lease.worker, model, fault)
                    if reply.started or not self._budget.allows(trio.current_time()):
                        raise
                    if not tries.another(lease, fault, others=self._others(tries, lease)):
                        raise
                    lost = fault
            self._budget.spend()
            self.metrics.retried()
            log.warning("request tried again", request=request.id, worker=request.worker_id, cause=str(lost))
            if not await self._another_chance(ticket.excluded):
                raise lost
            self.refuse_lethal(model)

    def refuse_lethal(self, model: str | None) -> None:
        """Raise ModelLethal for a model that has ended the workers that loaded it, until it may be tried again.

        A worker that has it loaded all the same (its file was mended) shows that there is no reason any more.
        """
        if model is None or not self._lethal:
            return
        paused_s = self._lethal.paused_s(model, trio.current_time())
        if paused_s is not None and not any(model in one.loaded for one in self.admission.dispatcher.ready()):
            raise ModelLethal(paused_s)

    def lost_loading(self, worker: WorkerSlots, model: str | None, fault: Fault) -> None:
        """A worker has failed before its first byte: was it lost, and had nobody this model loaded?"""
        fleet = (worker, *self.admission.dispatcher.ready())
        if model is None or not isinstance(fault, WorkerLost) or any(model in one.loaded for one in fleet):
            return
        self._lethal.ended_a_worker(model, trio.current_time())
        log.warning("worker lost while it loaded a model", worker=worker.id, model=model)

    def noted(self, request: Request, worker_id: str, now: float) -> Noted:
        """Note one try at a worker, from `now`, when it is given the request, to its end, however that comes."""
        return Noted(request, worker_id, now, self._notes, None if worker_id == PRIMARY else self.metrics)

    def tell_silence(self, worker: WorkerSlots, fault: Fault) -> None:
        """Tell the watch of a request that got no byte of this life of a worker; other faults are none of its news."""
        if isinstance(fault, FirstByteTimeout | Stalled):
            phase = "first byte" if isinstance(fault, FirstByteTimeout) else "stall"
            self._watch.no_progress(worker.id, worker.ready_at, phase, fault.silent_s)

    def _others(self, tries: Tries, lease: Lease) -> bool:
        return self.admission.dispatcher.untried(tries.tried(lease))

    def _elsewhere(self, tries: Tries, lease: Lease) -> bool:
        return self._others(tries, lease) and self._budget.allows(trio.current_time())

    async def _another_chance(self, tried: frozenset[Life]) -> bool:
        """Say whether it makes sense to try again: there is another worker, or the tried ones are being replaced."""
        if self.admission.dispatcher.untried(tried):
            return True
        await trio.sleep(LOSS_NOTICED_S)
        return all(worker.life not in tried for worker in self.admission.dispatcher.ready())

    async def _relay_lease(self, request: Request, lease: Lease, tries: Tries, body: bytes, reply: Reply) -> None:
        framing: Headers = [(b"content-length", str(len(body)).encode())]
        headers = request_headers(request.headers, port=lease.port, request_id=request.id, framing=framing)
        async with self.upstream.exchange(lease.port, request.method, request.target, headers, body) as answer:
            if answer.status in (502, 503, 504) and tries.after_refusal(others=self._elsewhere(tries, lease)):
                raise WorkerRefused(f"{lease.worker_id} answered {answer.status}")
            first = await answer.read()
            now = lease.worker.progress_at = trio.current_time()
            tried = request.phases.tries[-1]
            tried.status, tried.sent_at, tried.first_byte_at = answer.status, answer.sent_at, now
            if answer.status == 500 or (answer.status < 400 and first.startswith(ERROR_STARTS)):
                first = await _error_part(answer, first)
                if answer.status == 500 and load_failed(first[:ERROR_BYTES]):
                    self.admission.cool(lease.worker, lease.model)
                    if tries.after_refusal(others=self._elsewhere(tries, lease)):
                        raise LoadFailed(f"{lease.worker_id} answered that it could not load {lease.model}")
                if runner_died(first[:ERROR_BYTES]):
                    self._watch.runner_died(lease.worker_id, lease.worker.ready_at)
                    if tries.after_runners_death(others=self._elsewhere(tries, lease)):
                        raise RunnerDied(f"{lease.worker_id} answered that its runner died")
            well = answer.status < 400 and not first.startswith(ERROR_STARTS)
            if well or 400 <= answer.status < 500:
                self.admission.answered(lease)
            if well:
                lease.worker.learn(lease.model, loaded=True)  # before any poll can say so
                self._lethal.answered(lease.model or "")
            self.metrics.first_byte(now - request.arrived)
            try:
                await self._relay(request, answer, first, now, reply, lease)
            finally:
                if request.unloads:  # others that use it there hold it by their leases
                    lease.worker.learn(lease.model, loaded=False)

    async def to_primary(self, request: Request, body: bytes | AsyncIterable[bytes] | None, reply: Reply) -> None:
        """Have the primary answer, at once and once. Raises PrimaryAway while nothing has been sent."""
        port = self.primary_port
        if isinstance(body, bytes):
            framing: Headers = [(b"content-length", str(len(body)).encode())]
        else:
            framing = framing_of(request.headers)
        headers = request_headers(request.headers, port=port, request_id=request.id, framing=framing)
        request.attempts += 1
        request.worker_id = PRIMARY
        try:
            with self.noted(request, PRIMARY, trio.current_time()):
                async with self.upstream.exchange(port, request.method, request.target, headers, body) as answer:
                    first, tried = await answer.read(), request.phases.tries[-1]
                    tried.status, tried.sent_at = answer.status, answer.sent_at
                    now = tried.first_byte_at = trio.current_time()
                    await self._relay(request, answer, first, now, reply, None)
        except (ConnectFailed, WorkerLost) as fault:
            if reply.started:
                raise
            raise PrimaryAway(str(fault)) from fault

    async def _relay(
        self, request: Request, answer: Answer, chunk: bytes, now: float, reply: Reply, lease: Lease | None
    ) -> None:
        """Pass an answer on as it comes, its first `chunk` with the head: until then another worker may answer.

        `chunk` came at `now`. `lease` None: it is the primary's.
        """
        await reply.start(answer.status, [*response_headers(answer.headers), *own_headers(request)])
        spent = request.spent if lease is not None else _nothing_spent
        relayed = Relayed(lease.worker if lease is not None else None, request.phases.tries[-1].began_at)
        try:
            await _pass_on(answer, chunk, now, reply, relayed)
            request.phases.tries[-1].last_byte_at = relayed.last_at or now
            if lease is not None:
                self._look_at_end(request, answer, lease, relayed)
        except (WorkerLost, Stalled) as fault:
            if lease is not None:
                self.tell_silence(lease.worker, fault)
            if request.phases.broken is None:
                spent(relayed.chunks)
                self._broken(request, "stalled" if isinstance(fault, Stalled) else "lost", str(fault))
            await end_broken(request, answer.headers, reply, fault, bytes(relayed.tail))
            return
        except BaseException:  # the client left: what it got it had, or nobody who leaves early would ever be counted
            spent(relayed.chunks)
            raise
        await reply.end()

    def _broken(self, request: Request, cause: str, said: str) -> None:
        request.phases.broken = cause
        self.metrics.broken(cause)
        log.warning("answer broken", request=request.id, worker=request.worker_id, cause=said)

    def _look_at_end(self, request: Request, answer: Answer, lease: Lease, relayed: Relayed) -> None:
        """Count the tokens of an answer, and see whether it came to its end. Raises WorkerLost where it did not.

        An error line of the worker's own is an end that the client has seen. Each chunk is a token if the answer does
        not say how many there were.
        """
        phases, tail, chunks = request.phases, bytes(relayed.tail), relayed.chunks
        phases.stream = is_stream(answer.headers)
        prompt, given = tokens_of(tail)
        phases.prompt_tokens, phases.answer_tokens = prompt or None, given or None
        self.metrics.tokens(prompt, given, lease.model)
        tokens = given or (chunks if chunks > 1 else 0)
        request.spent(prompt + tokens)
        if tokens >= PACE_TOKENS:
            self.admission.took(lease, relayed.waited_s / tokens)
        if not phases.stream or answer.status != 200:  # others have no end of their own, 204 and 304 no body at all
            return
        end, last = end_of(request.path, tail)
        if end is End.ERROR:
            self._broken(request, "error_line", "the worker said an error")
            if runner_died(last):
                self._watch.runner_died(lease.worker_id, lease.worker.ready_at)
        elif end is End.MISSING:
            self._broken(request, "no_end", "the worker ended the stream without the word that ends it")
            raise WorkerLost("its stream ended without its last word")


async def _pass_on(answer: Answer, chunk: bytes, now: float, reply: Reply, relayed: Relayed) -> None:
    """Pass on an answer as it comes, first `chunk`, which came at `now`. Raises WorkerLost, Stalled, ClientGone."""
    direct = reply.direct
    full = False

    def take(part: bytes, chunk: bytes, now: float) -> bool:
        nonlocal full
        relayed.came(part, now)
        full = direct is not None and direct.put(part, chunk)
        return full

    while chunk:
        relayed.came(chunk, now)
        await reply.write(chunk)
        if answer.ended:
            return
        if direct is not None:
            await answer.each(take)
            if full:
                full = False
                await direct.room()
        relayed.waits_from(trio.current_time())
        chunk = await answer.read()
        now = trio.current_time()


def _nothing_spent(tokens: int) -> None:
    """What the primary gives has no tokens."""


async def _error_part(answer: Answer, first: bytes) -> bytes:
    """Read on in what looks like an error until it is all there: its line, or its body, or ERROR_BYTES of it."""
    while len(first) < ERROR_BYTES and not (first.endswith(b"\n") and answer.status != 500):
        more = await answer.read()
        if not more:
            break
        first += more
    return first
