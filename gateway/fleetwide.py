"""Answers made of many workers': which models are loaded where, and loading or unloading on all of them."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import structlog
import trio

from gateway.errors import ConnectFailed, FirstByteTimeout, Stalled, WorkerLost
from gateway.exchange import Exchange, Reply, Request
from gateway.headers import Headers, request_headers, response_headers
from gateway.ollama import Ask, Kind, full_name
from gateway.phases import Try
from gateway.slots import WorkerSlots

log = structlog.get_logger("gateway")

PS_TIMEOUT_S = 5.0


def merged_ps(answers: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Return one /api/ps answer of the models of many workers, by worker id.

    One row per model, as clients expect; its memory is what all copies take together, it expires when the last
    copy does, and `workers` (ours) says where the copies are.
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
            row["expires_at"] = max(str(row.get("expires_at", "")), str(model.get("expires_at", "")))
    return {"models": list(rows.values())}


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
    """Asks every worker that is ready."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    async def ps(self, request: Request, reply: Reply) -> None:
        """Answer /api/ps for the whole fleet. A worker that does not answer in time is left out, and logged."""
        answers: dict[str, list[dict[str, Any]]] = {}

        async def ask(worker: WorkerSlots) -> None:
            with trio.move_on_after(PS_TIMEOUT_S):
                answered = await self._one(worker, request, "GET", b"/api/ps", None)
                models = models_of(answered[2]) if answered is not None and answered[0] == 200 else None
                if models is not None:
                    answers[worker.id] = models
                    return
            log.warning("worker left out of /api/ps", worker=worker.id)

        workers = sorted(self._exchange.admission.ready(), key=lambda worker: (len(worker.id), worker.id))
        async with trio.open_nursery() as nursery:
            for worker in workers:
                nursery.start_soon(ask, worker)
        in_order = {worker.id: answers[worker.id] for worker in workers if worker.id in answers}
        body = json.dumps(merged_ps(in_order)).encode()
        await self._answer(request, reply, 200, [(b"content-type", b"application/json; charset=utf-8")], body)

    async def load(self, request: Request, ask: Ask, body: bytes, reply: Reply) -> None:
        """Load or unload a model on every ready worker (an unload: on those that hold it, else on one).

        The client gets one answer: the first refusal if there is any, else the first worker's. With no worker
        ready, the request waits in the queue for one like any other.
        """
        workers = self._concerned(ask)
        if not workers:
            await self._exchange.infer(request, ask, body, reply)
            return
        answers: dict[str, tuple[int, Headers, bytes]] = {}

        async def one(worker: WorkerSlots) -> None:
            answered = await self._one(worker, request, "POST", request.target, body)
            if answered is not None:
                answers[worker.id] = answered
                if answered[0] < 400:
                    worker.learn(full_name(ask.model) if ask.model else None, loaded=ask.kind is Kind.LOAD)
                    if ask.model:
                        worker.load_options[full_name(ask.model)] = ask.load_options

        async with trio.open_nursery() as nursery:
            for worker in workers:
                nursery.start_soon(one, worker)
        in_order = [(worker.id, answers[worker.id]) for worker in workers if worker.id in answers]
        if not in_order:
            raise WorkerLost("every worker was lost while it loaded")
        worker_id, chosen = next((pair for pair in in_order if pair[1][0] >= 400), in_order[0])
        request.worker_id = worker_id
        status, headers, answer = chosen
        own = [(b"x-chimera-worker", ",".join(name for name, _ in in_order).encode())]
        await self._answer(request, reply, status, [*headers, *own], answer)

    def _concerned(self, ask: Ask) -> Sequence[WorkerSlots]:
        ready = self._exchange.admission.ready()
        if ask.kind is not Kind.UNLOAD:
            return ready
        name = full_name(ask.model) if ask.model else None
        return [worker for worker in ready if worker.holds(name)] or ready[:1]

    async def _one(
        self, worker: WorkerSlots, request: Request, method: str, target: bytes, body: bytes | None
    ) -> tuple[int, Headers, bytes] | None:
        """Return one worker's whole answer, or None when it gave none."""
        framing: Headers = [] if body is None else [(b"content-length", str(len(body)).encode())]
        # Without a body the question is ours, and so are its headers: the answer is read here (no compression).
        given = [] if body is None else request.headers
        headers = request_headers(given, port=worker.port, request_id=request.id, framing=framing)
        try:
            if body is None:
                return await self._whole(worker, method, target, headers, None, None)
            with self._exchange.noted(request, worker.id) as tried:
                return await self._whole(worker, method, target, headers, body, tried)
        except (ConnectFailed, WorkerLost, FirstByteTimeout, Stalled) as fault:
            if body is not None:  # a load; /api/ps has no need of the runner, and its silence shows in probes
                self._exchange.tell_silence(worker, fault)
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

    async def _answer(self, request: Request, reply: Reply, status: int, headers: Headers, body: bytes) -> None:
        length = (b"content-length", str(len(body)).encode())
        await reply.start(status, [*headers, length, (b"x-request-id", request.id.encode())])
        if request.method != "HEAD":
            await reply.write(body)
        await reply.end()
