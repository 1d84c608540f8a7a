"""The admin API: what the operator sees and changes over HTTP (contract.md has the table)."""

import json
from collections.abc import AsyncIterator, Sequence
from typing import Any, Literal, Protocol

import trio
from quart import Blueprint, Response, current_app, request
from werkzeug.exceptions import HTTPException

from gateway.admin_asks import NotUnderstood, PruneAsk, SpawnAsk, TraefikAsk, line_count, truth, understood
from gateway.admission import Admission
from gateway.auth import refusal
from gateway.forwarded import Origin, TrustedProxies
from gateway.headers import Headers
from gateway.traefik import Domains, traefik_document

# The longest that ?wait=1 waits; the answer then says what state things are in.
WAIT_TIMEOUT_S = 900.0
# Where the application keeps the admin API's token, which may change while it runs; None: loopback only.
TOKEN_KEY = "ADMIN_TOKEN"  # noqa: S105 - a name
# And its TrustedProxies, and Domains.
PROXIES_KEY = "TRUSTED_PROXIES"
DOMAINS_KEY = "TRAEFIK_DOMAINS"

Row = dict[str, Any]


Refusal = Literal["not_understood", "not_found", "no_room"]
STATUS: dict[Refusal, int] = {"not_understood": 400, "not_found": 404, "no_room": 409}


class FleetAdmin(Protocol):
    """What the admin API needs of the supervisor. Rows are JSON objects.

    It may raise errors of its own, whose text is for the operator; `refusal_of` says what kind each is.
    """

    def refusal_of(self, error: Exception) -> Refusal | None:
        """Return what kind of refusal an error is; None for one that is no refusal but a bug."""
        ...

    def instances(self) -> list[Row]:
        """Every worker."""
        ...

    def instance(self, worker_id: str) -> Row:
        """One worker."""
        ...

    def primary(self) -> Row:
        """The primary, and what the model store is doing."""
        ...

    def spawn(self, gpu: str | int | None, count: int, slots: int | None) -> list[str]:
        """Add workers; return their ids."""
        ...

    def prune(self, ids: Sequence[str] | None, gpu: str | int | None, *, idle: bool, force: bool) -> list[str]:
        """Remove workers; return their ids."""
        ...

    def order(self, worker_id: str, verb: str) -> None:
        """Carry out drain, cordon, uncordon or restart."""

    async def wait_settled(self, ids: Sequence[str]) -> None:
        """Return when each worker is ready, has failed or is gone."""

    async def wait_gone(self, ids: Sequence[str]) -> None:
        """Return when each worker is gone."""

    def gpus(self) -> Row:
        """The GPUs, and why there are none."""
        ...

    def quarantine(self, gpu: str) -> Row:
        """Take a GPU out of use."""
        ...

    def release(self, gpu: str) -> Row:
        """Let a GPU be used again."""
        ...

    def log_lines(self, worker_id: str, count: int) -> list[str]:
        """Return the last lines of a worker's log."""
        ...

    def follow_log(self, worker_id: str, count: int) -> AsyncIterator[str]:
        """Yield the last lines of a worker's log, then each new one. Ends by cancellation."""
        ...

    def events(self) -> list[Row]:
        """What happened, oldest first."""
        ...

    def follow_events(self) -> AsyncIterator[Row]:
        """Yield what happened, then each thing as it happens. Ends by cancellation."""
        ...


def answered(value: Any, status: int = 200) -> Response:
    """Return a JSON answer with a line's end, for people with curl."""
    return Response(json.dumps(value) + "\n", status=status, content_type="application/json")


def make_admin(fleet: FleetAdmin, admission: Admission) -> Blueprint:
    """Return the blueprint of /admin. Every request is checked by gateway.auth before its view runs.

    The application that has it says under TOKEN_KEY, PROXIES_KEY and DOMAINS_KEY in its config what the token is, whose
    word about a client counts, and which names lead here.
    """
    admin = Blueprint("admin", __name__, url_prefix="/admin")

    @admin.before_request
    async def check() -> Response | None:
        headers = [(name.lower().encode("latin1"), value.encode("latin1")) for name, value in request.headers]
        said = refusal(headers, _origin(headers), current_app.config[TOKEN_KEY])
        if said is None:
            return None
        answer = answered({"error": said.sentence}, said.status)
        if said.status == 401:
            answer.headers["WWW-Authenticate"] = "Bearer"
        return answer

    @admin.errorhandler(Exception)
    async def refused(error: Exception) -> Response:
        if isinstance(error, HTTPException):
            return answered({"error": f"{error.name.lower()}: {request.method} {request.path}"}, error.code or 500)
        kind = "not_understood" if isinstance(error, NotUnderstood) else fleet.refusal_of(error)
        if kind is None:
            raise error
        return answered({"error": str(error)}, STATUS[kind])

    _add_fleet(admin, fleet, admission)
    _add_worker(admin, fleet)
    _add_gpus(admin, fleet)
    _add_history(admin, fleet)
    admin.get("/traefik")(_traefik)
    return admin


def _add_fleet(admin: Blueprint, fleet: FleetAdmin, admission: Admission) -> None:
    """Add the calls about all workers, and the queue."""

    @admin.get("/instances")
    async def instances() -> Response:
        return answered({"instances": fleet.instances(), "queue": admission.queue(), "primary": fleet.primary()})

    @admin.get("/queue")
    async def queue() -> Response:
        return answered({"queue": admission.queue(), "tickets": admission.tickets()})

    @admin.post("/instances/spawn")
    async def spawn() -> Response:
        ask = understood(SpawnAsk, request.args.to_dict(), await request.get_data(as_text=False))
        ids = fleet.spawn(ask.gpu, ask.count, ask.slots)
        if ask.wait:
            with trio.move_on_after(WAIT_TIMEOUT_S):
                await fleet.wait_settled(ids)
        rows = [row for row in fleet.instances() if row["id"] in ids]
        return answered({"instances": rows}, 202)

    @admin.post("/instances/prune")
    async def prune() -> Response:
        ask = understood(PruneAsk, request.args.to_dict(), await request.get_data(as_text=False))
        ids = fleet.prune(ask.ids, ask.gpu, idle=ask.idle, force=ask.force)
        if ask.wait:
            with trio.move_on_after(WAIT_TIMEOUT_S):
                await fleet.wait_gone(ids)
        return answered({"pruned": ids}, 202)


def _add_worker(admin: Blueprint, fleet: FleetAdmin) -> None:
    """Add the calls about one worker."""

    @admin.get("/instances/<worker_id>")
    async def instance(worker_id: str) -> Response:
        return answered(fleet.instance(worker_id))

    @admin.delete("/instances/<worker_id>")
    async def remove(worker_id: str) -> Response:
        ask = understood(PruneAsk, request.args.to_dict(), await request.get_data(as_text=False))
        return answered({"pruned": fleet.prune([worker_id], None, idle=False, force=ask.force)}, 202)

    @admin.post("/instances/<worker_id>/<any(drain,cordon,uncordon,restart):verb>")
    async def order(worker_id: str, verb: str) -> Response:
        fleet.order(worker_id, verb)
        return answered(fleet.instance(worker_id), 202)


def _add_gpus(admin: Blueprint, fleet: FleetAdmin) -> None:
    """Add the calls about GPUs."""

    @admin.get("/gpus")
    async def gpus() -> Response:
        return answered(fleet.gpus())

    @admin.post("/gpus/<gpu>/quarantine")
    async def quarantine(gpu: str) -> Response:
        return answered(fleet.quarantine(gpu), 202)

    @admin.post("/gpus/<gpu>/release")
    async def release(gpu: str) -> Response:
        return answered(fleet.release(gpu), 202)


def _add_history(admin: Blueprint, fleet: FleetAdmin) -> None:
    """Add the calls that tell what has happened, and may go on telling it."""

    @admin.get("/instances/<worker_id>/logs")
    async def logs(worker_id: str) -> Response:
        count = line_count(request.args.get("n", "200"))
        if not truth(request.args.get("follow")):
            lines = await trio.to_thread.run_sync(fleet.log_lines, worker_id, count)
            return Response("".join(f"{line}\n" for line in lines), content_type="text/plain; charset=utf-8")
        fleet.instance(worker_id)  # refused before the answer begins
        return _streamed(_lines(fleet.follow_log(worker_id, count)), "text/plain; charset=utf-8")

    @admin.get("/events")
    async def events() -> Response:
        kind = "application/x-ndjson"
        if not truth(request.args.get("follow")):
            return Response("".join(json.dumps(row) + "\n" for row in fleet.events()), content_type=kind)
        return _streamed(_json_lines(fleet.follow_events()), kind)


async def _traefik() -> Response:
    ask = understood(TraefikAsk, request.args.to_dict(), b"")
    url = request.host_url.rstrip("/")  # whoever asks reaches us by it
    document = traefik_document(
        _domains(), url, entry_points=[name for name in ask.entrypoints.split(",") if name],
        resolver=ask.resolver or None, tls=ask.tls,
    )  # fmt: skip
    if not document:
        return answered({"error": "no name leads here: set TRAEFIK_API_DOMAIN or TRAEFIK_FRONTEND_DOMAIN"}, 404)
    return answered(document)


def _origin(headers: Headers) -> Origin:
    proxies: TrustedProxies = current_app.config[PROXIES_KEY]
    return proxies.origin((request.scope.get("client") or ("",))[0], headers)


def _domains() -> Domains:
    domains: Domains = current_app.config[DOMAINS_KEY]
    return domains


def _streamed(lines: AsyncIterator[bytes], content_type: str) -> Response:
    answer = Response(lines, content_type=content_type)
    answer.timeout = None  # Quart would cut it after a minute
    return answer


async def _lines(lines: AsyncIterator[str]) -> AsyncIterator[bytes]:
    async for line in lines:
        yield line.encode() + b"\n"


async def _json_lines(rows: AsyncIterator[Row]) -> AsyncIterator[bytes]:
    async for row in rows:
        yield json.dumps(row).encode() + b"\n"
