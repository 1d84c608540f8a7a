"""Answers made of many workers': which models are loaded where, and loading or unloading on all of them."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import msgspec
import structlog
import trio

from gateway.affinity import Life
from gateway.errors import ConnectFailed, FirstByteTimeout, Stalled, WorkerLost
from gateway.exchange import Exchange
from gateway.headers import Headers, request_headers, response_headers
from gateway.ollama import ERROR_BYTES, Ask, Kind, full_name, load_failed
from gateway.phases import Try
from gateway.request import Reply, Request, own_headers
from gateway.slots import WorkerSlots

log = structlog.get_logger("gateway")

PS_TIMEOUT_S = 5.0

_WholeAnswer = tuple[int, Headers, bytes]  # status, headers, body


def merged_ps(answers: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Return one /api/ps answer of the models of many workers, by worker id.

    One row per model, as clients expect; its memory is what all copies take together, it expires when the last
    copy does, and `workers` (ours) says where the copies are. What stays longest comes first, as in Ollama's own.
    """
    rows: dict[str, dict[str, Any]] = {}
    for worker_id, models in answers.items():
        for model in models:
            row = rows.get(str(model.get("name")))
            if row is None:
                rows[str(model.get("name"))] = {**model, "workers": [worker_id]}
                continue
            row["workers"].append(worker_id)
            for key in ("size", "size_vram"):
                row[key] = _number(row.get(key)) + _number(model.get(key))
            if _expires(model) > _expires(row):
                row["expires_at"] = model["expires_at"]
    return {"models": sorted(rows.values(), key=_expires, reverse=True)}


_NEVER_SAID = datetime.min.replace(tzinfo=UTC)


def _expires(row: Mapping[str, Any]) -> datetime:
    """Return when a model is unloaded; long ago where the row does not say."""
    try:
        at = datetime.fromisoformat(str(row.get("expires_at")))
    except ValueError:
        return _NEVER_SAID
    return at if at.tzinfo is not None else at.replace(tzinfo=UTC)


def _number(value: object) -> int | float:
    return value if isinstance(value, int | float) else 0


def models_of(body: bytes) -> list[dict[str, Any]] | None:
    """Return the models of an /api/ps answer, or None when it is none."""
    try:
        models = json.loads(body)["models"] or []
    except (ValueError, RecursionError, TypeError, LookupError):
        return None
    return models if isinstance(models, list) and all(isinstance(model, dict) for model in models) else None


class Fleetwide:
    """Asks every worker that it concerns."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._loading: Counter[tuple[str, Life]] = Counter()  # loads under way, which no lease shows

    async def ps(self, request: Request, reply: Reply) -> None:
        """Answer /api/ps for the whole fleet. A worker that does not answer in time is left out, and logged.

        A cordoned worker is asked too: what it holds still takes its memory.
        """
        answers: dict[str, list[dict[str, Any]]] = {}

        async def ask(worker: WorkerSlots) -> None:
            with trio.move_on_after(PS_TIMEOUT_S):
                answered = await self._one(worker, request, "GET", b"/api/ps", None)
                models = models_of(answered[2]) if answered is not None and answered[0] == 200 else None
                if models is not None:
                    answers[worker.id] = models
                    return
            log.warning("worker left out of /api/ps", worker=worker.id)

        workers = sorted(self._in_service(), key=lambda worker: (len(worker.id), worker.id))
        async with trio.open_nursery() as nursery:
            for worker in workers:
                nursery.start_soon(ask, worker)
        in_order = {worker.id: answers[worker.id] for worker in workers if worker.id in answers}
        body = msgspec.json.encode(merged_ps(in_order))
        kind = [(b"content-type", b"application/json; charset=utf-8")]
        await self._answer(request, reply, list(in_order), (200, kind, body))

    async def load(self, request: Request, ask: Ask, body: bytes, reply: Reply) -> None:
        """Load or unload a model on every worker that it concerns.

        The client gets one answer. A model is loaded when one worker has it: the first success, or the first refusal
        if all refuse. It is unloaded when nobody has it: the first refusal if there is any. With no worker to ask, the
        request waits in the queue for one like any other. Raises WorkerLost when no worker answered, and what
        `Exchange.infer` raises. Cancellation ends every worker's part. A model that nobody has loaded is loaded by one
        worker first.
        """
        name = full_name(ask.model or "")
        workers = self._concerned(ask.kind, name)
        if not workers:
            await self._exchange.infer(request, ask, body, reply)
            return
        answers: dict[str, _WholeAnswer] = {}

        async def one(worker: WorkerSlots) -> None:
            with self._counted(ask.kind, name, worker):
                answered = await self._one(worker, request, "POST", request.target, body, name)
            if answered is not None:
                answers[worker.id] = answered
                if answered[0] < 400:
                    _learn(worker, ask, name)
                elif answered[0] == 500 and load_failed(answered[2][:ERROR_BYTES]):
                    self._exchange.admission.cool(worker, name)

        rest = list(workers)
        if ask.kind is Kind.LOAD and not any(worker.holds(name) for worker in workers):
            # one first: a damaged model that ends who loads it must not be loaded by all at once
            while rest and not answers:
                self._exchange.refuse_lethal(name)
                await one(rest.pop(0))
        async with trio.open_nursery() as nursery:
            for worker in rest:
                nursery.start_soon(one, worker)
        in_order = {worker.id: answers[worker.id] for worker in workers if worker.id in answers}
        if not in_order:
            raise WorkerLost("every worker was lost while it loaded")
        speakers = _speakers(ask.kind, in_order)
        request.worker_id = speakers[0]
        await self._answer(request, reply, speakers, in_order[speakers[0]])

    def _in_service(self) -> Sequence[WorkerSlots]:
        return self._exchange.admission.dispatcher.ready()

    def _concerned(self, kind: Kind, name: str) -> Sequence[WorkerSlots]:
        """Return whom a load or unload goes to.

        A load: every worker that takes requests, one under suspicion only if all are. An unload: each that holds the
        model or is about to, cordoned or not; everyone if nobody is known to, for what is known is a little old
        (Ollama answers an unload of what it does not hold without loading anything).
        """
        if kind is Kind.UNLOAD:
            workers = self._in_service()
            return [one for one in workers if one.holds(name) or self._loading[name, one.life]] or workers
        workers = self._exchange.admission.ready()
        return [one for one in workers if not one.shunned] or workers

    @contextmanager
    def _counted(self, kind: Kind, name: str, worker: WorkerSlots) -> Iterator[None]:
        """Keep a load in mind while it is under way, so that an unload finds it."""
        under_way = Counter({(name, worker.life): 1} if kind is Kind.LOAD else ())
        self._loading += under_way
        try:
            yield
        finally:
            self._loading -= under_way

    async def _one(
        self, worker: WorkerSlots, request: Request, method: str, target: bytes, body: bytes | None, model: str = ""
    ) -> _WholeAnswer | None:
        """Return one worker's whole answer, or None when it gave none."""
        framing: Headers = [] if body is None else [(b"content-length", str(len(body)).encode())]
        # Without a body the question is ours, and so are its headers: the answer is read here (no compression).
        given = [] if body is None else request.headers
        headers = request_headers(given, port=worker.port, request_id=request.id, framing=framing)
        try:
            if body is None:
                return await self._whole(worker, method, target, headers, None, None)
            with self._exchange.noted(request, worker.id, trio.current_time()) as tried:
                return await self._whole(worker, method, target, headers, body, tried)
        except (ConnectFailed, WorkerLost, FirstByteTimeout, Stalled) as fault:
            if body is not None:  # a load; /api/ps has no need of the runner, and its silence shows in probes
                self._exchange.tell_silence(worker, fault)
                self._exchange.lost_loading(worker, model, fault)
            log.warning("worker gave no answer", worker=worker.id, target=target.decode("latin1"), cause=str(fault))
            return None

    async def _whole(
        self, worker: WorkerSlots, method: str, target: bytes, headers: Headers, body: bytes | None, tried: Try | None
    ) -> tuple[int, Headers, bytes]:
        async with self._exchange.upstream.exchange(worker.port, method, target, headers, body) as answer:
            if tried is not None:
                tried.status, tried.sent_at, tried.first_byte_at = answer.status, answer.sent_at, trio.current_time()
            whole = b""
            while part := await answer.read():
                whole += part
            passed = [pair for pair in response_headers(answer.headers) if pair[0] != b"content-length"]
            return answer.status, passed, whole

    async def _answer(self, request: Request, reply: Reply, workers: Sequence[str], answer: _WholeAnswer) -> None:
        status, headers, body = answer
        request.attempts = 1
        own = [(name, value) for name, value in own_headers(request) if name != b"x-chimera-worker"]
        named = (b"x-chimera-worker", ",".join(workers).encode())
        length = (b"content-length", str(len(body)).encode())
        await reply.start(status, [*headers, length, named, *own])
        if body:
            await reply.write(body)
        await reply.end()


def _speakers(kind: Kind, answers: Mapping[str, _WholeAnswer]) -> list[str]:
    """Return the workers whose answer the client gets, the first one's words: those that did it, or that refused."""
    refused = [worker_id for worker_id, answer in answers.items() if answer[0] >= 400]
    did = [worker_id for worker_id in answers if worker_id not in refused]
    if refused and did:
        log.warning("not every worker did it", what=kind.value, did=",".join(did), refused=",".join(refused))
    return (refused or did) if kind is Kind.UNLOAD else (did or refused)


def _learn(worker: WorkerSlots, ask: Ask, name: str) -> None:
    """Note what a worker has loaded now, before any poll can say so."""
    loaded = ask.kind is Kind.LOAD
    worker.learn(name, loaded=loaded)
    if loaded:
        worker.load_options[name] = ask.load_options
    else:
        worker.load_options.pop(name, None)
