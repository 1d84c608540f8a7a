"""The root: wires the supervisor to the gateway, and takes both down in order. The only file that imports both.

Up: lock, sweep, listen, GPUs, primary, store, fleet, gateway. Down: stop accepting, answer waiting tickets 503,
let leases end (at most DRAIN_TIMEOUT_S), stop workers (group TERM, then KILL), the primary last. A second signal
goes straight to the stop. Nothing waits for a client that does not read. In between SIGHUP takes new settings.
"""

import faulthandler
import gc
import logging
import random
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import structlog
import trio
from msgspec.structs import asdict

from gateway.access import AccessLog, Fields, Which, json_line, local_line, sentence
from gateway.admission import Admission
from gateway.app import make_app
from gateway.asgi import App, AsgiLane
from gateway.book import Book, Tracer
from gateway.connections import bound_by_descriptors, fit_descriptors
from gateway.database import Damaged, DatabaseFault
from gateway.database_look import look_at
from gateway.door import Door, PortTaken, listen, run_gateway
from gateway.exchange import Exchange
from gateway.forwarded import TrustedProxies
from gateway.front import Front
from gateway.hosts import names_of
from gateway.keyring import Keyring
from gateway.labels import ModelLabels
from gateway.metrics import Metrics
from gateway.page import ByHost, no_page
from gateway.pulls import Pulls
from gateway.rescue import Opened, open_keys
from gateway.retune import Tunable, Tuning
from gateway.stamps import utc_ms_text
from gateway.tls import server_context
from gateway.traefik import Domains
from gateway.upstream import Upstream
from supervisor import doctor, journal
from supervisor.activation import check_handed, handed_sockets
from supervisor.certificate import Certificate
from supervisor.cgroup import find_delegated
from supervisor.change import Plan, Reach
from supervisor.cli_doctor import GatewaysPart
from supervisor.comeback import comeback_of
from supervisor.command import PRIMARY
from supervisor.config import WORKER_PORTS, Settings, workers_text
from supervisor.doctor import Finding
from supervisor.errors import StartRefused, SupervisorError
from supervisor.events import EventLog
from supervisor.fleet import Fleet
from supervisor.gpu import GpuReader, watch_gpus
from supervisor.gpu_events import watch_events
from supervisor.house import House, WorkerSpec
from supervisor.lines import LineWriter
from supervisor.locate import Ollama
from supervisor.lock import locked
from supervisor.log_keeper import LogKeeper
from supervisor.logfiles import append, write_own
from supervisor.logs import form_of
from supervisor.news import News
from supervisor.notes import WorkerLogNotes
from supervisor.notify import notifier_of
from supervisor.operator import Operator
from supervisor.orders import HEEDED, Orders, has_terminal
from supervisor.placement import CPU, Placement, wanted_fleet
from supervisor.probe import PortBook, Prober, port_holder, port_is_free
from supervisor.reload import Reload, outcome_directory
from supervisor.roll import Roll
from supervisor.service import Service, outlook
from supervisor.state_file import set_aside
from supervisor.store import ModelStore, full_name
from supervisor.strays import end_strays
from supervisor.sweep import sweep
from supervisor.usage import UsageMeter
from supervisor.wanted import QuarantineFile, WantedFile
from supervisor.ward import Ward
from supervisor.welcome import welcome
from supervisor.worker import OnePort, Worker

log = structlog.get_logger("chimera")

# Two small models answer two people at once; one worker would show nothing of what a fleet is for.
EMBEDDED_CPU_WORKERS = 2
# How many objects are made, beyond those that have gone, before the youngest are looked at: a few hundred requests' at
# once, not ten's.
GARBAGE_THRESHOLD = 20_000
# How long the thread that writes the access lines waits for a journald that does not read; then they are dropped.
JOURNAL_WAIT_S = 1.0
# After the workers are told to stop: what the primary and the last connections may take.
SHUTDOWN_GRACE_S = 5.0


class _NoLeases:
    """The primary's side of `Leases`: it never infers, so nobody ever waits for it."""

    def worker_ready(self, worker_id: str, *, port: int, slots: int, models: frozenset[str], cordoned: bool) -> None:
        """Nobody to tell."""

    def worker_lost(self, worker_id: str) -> None:
        """Nobody to tell."""

    def cordon(self, worker_id: str) -> None:
        """Nobody to tell."""

    def uncordon(self, worker_id: str) -> None:
        """Nobody to tell."""

    def avoid(self, worker_id: str, *, avoided: bool) -> None:
        """Nobody to tell."""

    def worker_models(self, worker_id: str, models: frozenset[str]) -> None:
        """Nobody to tell."""

    def inflight(self, worker_id: str) -> int:
        """None, ever."""
        return 0

    def progress_at(self, worker_id: str) -> float | None:
        """Never."""
        return None

    def idle_since(self, worker_id: str) -> float | None:
        """Not a worker in service."""
        return None

    async def wait_drained(self, worker_id: str) -> None:
        """It is."""
        await trio.lowlevel.checkpoint()


@asynccontextmanager
async def background(task: Callable[..., Awaitable[object]], *args: Any, started: bool = False) -> AsyncIterator[Any]:
    """Run a task for the block; leaving it cancels the task and waits for its end. Yields what it started with."""
    async with trio.open_nursery() as nursery:
        value: Any = None
        if started:
            value = await nursery.start(task, *args)
        else:
            nursery.start_soon(task, *args)
        yield value
        nursery.cancel_scope.cancel()


async def run(
    settings: Settings, ollama: Ollama, environ: Mapping[str, str], reread: Callable[[], Settings] | None = None
) -> None:
    """Run Chimera until a signal asks it to end. `reread` reads the settings anew, for SIGHUP; None: it cannot.

    Raises StartRefused before anything is started when it cannot run here: the state directory is in use, a port
    is taken; BadConfiguration when systemd's socket is not where the settings say. Cancellation ends everything at
    once, workers included.
    """
    faulthandler.enable()  # where the loop hung, when systemd's watchdog ends it (SIGABRT): lines, no values
    service = Service(notifier_of(environ), comeback_of(environ))
    with locked(settings.state_dir), trio.open_signal_receiver(*HEEDED) as signals:
        async with background(service.run, started=True), trio.open_nursery() as nursery:
            orders = Orders()
            nursery.start_soon(orders.heed, signals, has_terminal())
            refused: SupervisorError | None = None
            try:
                if await _come_back(service, environ, orders.stop):
                    await _begin(settings, ollama, environ, reread or (lambda: settings), orders, service)
            except SupervisorError as error:  # out of the nurseries as it is, not in a group
                refused = error
            nursery.cancel_scope.cancel()
    if refused is not None:
        raise refused
    log.info("stopped")


async def _come_back(service: Service, environ: Mapping[str, str], stop: trio.Event) -> bool:
    """Wait as long as the failures before this start ask for; False: it is to stop meanwhile."""
    back_off = comeback_of(environ).begin()
    delay_s = back_off.delay_s(random.random())  # noqa: S311 - jitter
    if delay_s:
        service.status(f"failed {back_off.failures} times in a row; starts in {delay_s:.0f} s")
        log.warning("starting later: it has failed before", failures=back_off.failures, in_s=round(delay_s, 1))
    with trio.move_on_after(delay_s):
        await stop.wait()
        service.stops("stopping", 0.0)
    return not stop.is_set()


async def _begin(
    settings: Settings, ollama: Ollama, environ: Mapping[str, str], reread: Callable[[], Settings], orders: Orders,
    service: Service,
) -> None:  # fmt: skip
    """Refuse what cannot work before anything is started, then run all."""
    sockets = _listen(settings, environ)
    events = EventLog()
    certificate = Certificate(server_context, settings, events)
    service.status("ending what a former run left behind")
    if left := await sweep(settings.state_dir, stop_timeout_s=settings.stop_timeout_s):
        events.record("leftovers_ended", level="warning", processes=left, cause="a former run left them behind")
    _refuse_taken_primary_port(settings)
    opened = await trio.to_thread.run_sync(_open_keys, settings)
    if opened.happened is not None:
        events.record(opened.happened.event, level="error", **opened.happened.fields)
    keyring = Keyring(opened.store, required=settings.api_keys_required, keys=opened.keys)
    await _run_all(settings, ollama, environ, sockets, events, certificate, keyring, orders, service, reread)


async def _run_all(
    settings: Settings, ollama: Ollama, environ: Mapping[str, str], sockets: list[Any], events: EventLog,
    certificate: Certificate, keyring: Keyring, orders: Orders, service: Service, reread: Callable[[], Settings],
) -> None:  # fmt: skip
    """Bring everything up, wait for the word to stop, take everything down; the stack unwinds in reverse order."""
    chance = random.Random()  # noqa: S311 - jitter and ties, not secrets
    prober, meter = Prober(), UsageMeter()
    metrics = Metrics(ModelLabels(lambda: _models_here(house.settings, fleet)), lambda: certificate.ends_at_s)
    upstream = Upstream(first_byte_timeout_s=settings.first_byte_timeout_s, stall_timeout_s=settings.stall_timeout_s)
    admission = Admission(
        settings.queue_size, settings.queue_timeout_s, chance.random, upstream.forget, settings.queue_bytes
    )
    recipes = {ollama.embedded.model: ollama.embedded.modelfile} if ollama.embedded else {}
    store = ModelStore(prober, settings.ollama_port, ollama.path, recipes, events)
    ward = Ward(events, QuarantineFile(settings.state_dir, events))
    house = House(
        settings, ollama.path, environ, prober, admission, events, PortBook(settings.worker_port_base, WORKER_PORTS),
        store, ward, meter.latest_of, lambda: len(fleet.workers), chance.random,
        cgroups=await trio.to_thread.run_sync(find_delegated, environ),
    )  # fmt: skip
    primary = Worker(
        WorkerSpec(PRIMARY, CPU, 1), replace(house, leases=_NoLeases(), ports=OnePort(settings.ollama_port), store=None)
    )
    wanted = WantedFile(settings.state_dir, workers_text(settings.workers), events)
    fleet = Fleet(house, admission, wanted)
    ward.admit(fleet)
    operator = Operator(fleet, primary, store, meter, events, ward)
    log_files: LineWriter[Path] = LineWriter("workers' logs", append)
    own_log: LineWriter[None] = LineWriter("the access log", _own_log(settings))
    notes = WorkerLogNotes(lambda worker_id: settings.log_dir / f"{worker_id}.log", log_files, _now_utc)
    exchange = Exchange(admission, upstream, metrics, settings.ollama_port, fleet, notes)
    token = settings.admin_token.get_secret_value() if settings.admin_token else None
    proxies = TrustedProxies(settings.trusted_proxies)
    pages = make_app(operator, admission, metrics, token, keyring, proxies, _domains(settings), lambda: book.access)
    pulls = Pulls(exchange)

    async with AsyncExitStack() as stack:
        for writer in (log_files, own_log):
            await stack.enter_async_context(background(writer.run, started=True))
        book = Book(metrics, _access_log(settings, own_log), _tracer(settings, stack))
        front = Front(
            exchange, pulls, metrics, max_body_bytes=settings.max_body_bytes,
            pin_load_options=settings.load_options == "pin", keyring=keyring, book=book, proxies=proxies,
            page_names=names_of(settings.page_domains),
        )  # fmt: skip
        stack.push_async_callback(prober.aclose)
        stack.callback(upstream.close)
        await stack.enter_async_context(background(upstream.run))
        reader = GpuReader()
        stack.push_async_callback(reader.close)
        await stack.enter_async_context(background(partial(watch_gpus, reader, ward.publish), started=True))
        await stack.enter_async_context(
            background(partial(watch_events, ward.happened, letting_go=reader.letting_go), started=True)
        )
        ward.restore()
        await stack.enter_async_context(background(meter.watch, partial(_leaders, primary, fleet)))
        await stack.enter_async_context(background(primary.run))
        models_changed = News()
        keeping = partial(_keep_models, primary, store, house, chance.random, models_changed)
        await stack.enter_async_context(background(keeping))
        placements = _placements(settings, ollama, ward, fleet)
        await stack.enter_async_context(background(fleet.run, placements, started=True))
        keeper = LogKeeper(settings.log_dir, lambda: frozenset(fleet.workers), lambda: house.settings.log_max_bytes)
        await stack.enter_async_context(background(keeper.run))
        known = partial(_known_pids, meter)
        await stack.enter_async_context(background(end_strays, lambda: ward.reading, known, settings.state_dir, events))
        await stack.enter_async_context(background(pulls.run, started=True))
        await stack.enter_async_context(background(keyring.run, started=True))
        serving = partial(
            run_gateway, ByHost(front, AsgiLane(front, cast("App", pages)), no_page), sockets, express=front,
            tls=lambda: certificate.context, stall_timeout_s=settings.stall_timeout_s,
            max_connections=fit_descriptors(settings.max_connections), refused=metrics.refused_at_door,
        )  # fmt: skip
        await stack.enter_async_context(background(certificate.run))
        door: Door = await stack.enter_async_context(background(serving, started=True))
        _spare_the_collector()
        events.record("gateway_listens", url=settings.shown_url)
        if "NOTIFY_SOCKET" not in environ:  # a service has nobody to welcome
            await stack.enter_async_context(background(welcome, settings, operator, ollama, sys.stdout))
        tunable = Tunable(admission, front, book, door.connections, pages, keyring)

        def apply(change: Plan) -> None:
            before, now = house.settings, change.settings
            shown = certificate.read(now)
            house.settings = primary.house.settings = now
            if change.names(Reach.FLEET):
                try:
                    fleet.refit(_placements(now, ollama, ward, fleet), workers_text(now.workers))
                except SupervisorError:
                    house.settings = primary.house.settings = before
                    raise
            certificate.show(now, shown)
            tunable.retune(_tuning(now, own_log))
            logging.getLogger().setLevel(now.log_level.upper())
            if now.worker_slots != before.worker_slots:
                fleet.resize(before.worker_slots, now.worker_slots)
            if now.required_models != before.required_models:
                store.require_anew()
                models_changed.tell()

        renewal = Reload(reread, house, apply, service, events, outcome_directory(environ, settings.state_dir))
        await stack.enter_async_context(background(renewal.run, orders.reload))
        await stack.enter_async_context(background(Roll(fleet, store, service, events).run))
        service.serves(
            lambda: outlook(operator.instances(), operator.primary(), int(admission.queue()["depth"]),
                            house.settings.shown_url)
        )  # fmt: skip
        await orders.stop.wait()
        limits = house.settings
        service.stops("stopping: answers under way may end", limits.drain_timeout_s + limits.stop_timeout_s)
        await _drain(limits.drain_timeout_s, admission, door, orders.at_once)
        service.status("stopping the workers")


def _access_log(settings: Settings, writer: LineWriter[None]) -> AccessLog | None:
    """Return what writes the access lines; they are of level info, and go where that level goes."""
    form = form_of(settings.log_format)
    which: Which = ("errors" if form == "console" else "on") if settings.access_log == "auto" else settings.access_log
    if which == "off" or settings.log_level in ("warning", "error"):
        return None
    lines = {"console": local_line, "json": json_line, "journal": _journal_entry}
    return AccessLog(partial(writer.put, None), which, form=lines[form], now=_wall_s)


def _journal_entry(fields: Fields, _at_s: float) -> str:
    """Return a request's line as an entry of the journal, which has its own clock."""
    return journal.entry("info", sentence(fields), {**asdict(fields), "event": "request", "logger": "access"})


def _own_log(settings: Settings) -> Callable[[None, Sequence[str]], None]:
    """Return what writes the access lines, in a thread, to where Chimera's other lines go."""
    if form_of(settings.log_format) == "journal":
        return journal.Journal(wait_s=JOURNAL_WAIT_S).write
    return write_own


def _tracer(settings: Settings, stack: AsyncExitStack) -> Tracer | None:
    """Return what makes traces, None where nobody wants any: then OpenTelemetry is not even imported."""
    if settings.traces_url is None:
        return None
    try:
        from gateway.tracing import Tracing

        tracing = Tracing(settings.traces_url)
    except (ImportError, ValueError) as error:  # a package is missing, or one of its own variables is wrong
        log.error("no traces: OpenTelemetry refused; look at its variables (OTEL_…)", cause=type(error).__name__)
        return None
    stack.push_async_callback(tracing.aclose)
    return tracing


def _spare_the_collector() -> None:
    """Have the garbage collector look at what requests make, not at what was imported and set up: that stays.

    Looking at all of it again and again was a twentieth of what a short request cost (docs/performance.md).
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(GARBAGE_THRESHOLD, *gc.get_threshold()[1:])


def _wall_s() -> float:
    return time.time_ns() / 1_000_000_000  # for each request: a datetime takes four times as long


def _now_utc() -> str:
    return utc_ms_text(time.time_ns() // 1_000_000)


def _models_here(settings: Settings, fleet: Fleet) -> set[str]:
    """Return the models that there are for sure, as Ollama lists them: the required ones, and what workers hold."""
    held = (worker.models for worker in fleet.workers.values())
    return {full_name(model) for model in settings.required_models}.union(*held)


def _placements(settings: Settings, ollama: Ollama, ward: Ward, fleet: Fleet) -> list[Placement]:
    """Return where WORKERS wants a worker each; what of it cannot be had is logged, and kept for the operator."""
    cpu_workers = EMBEDDED_CPU_WORKERS if ollama.embedded else 1
    placements, faults = wanted_fleet(settings.workers, ward.reading.gpus, cpu_workers)
    for fault in faults:
        log.error(fault)
    fleet.unplaced = tuple(faults)
    return placements


def _tuning(settings: Settings, own_log: LineWriter[None]) -> Tuning:
    """Return what of the settings the gateway looks at while it runs."""
    return Tuning(
        queue_size=settings.queue_size, queue_bytes=settings.queue_bytes, queue_timeout_s=settings.queue_timeout_s,
        max_body_bytes=settings.max_body_bytes, pin_load_options=settings.load_options == "pin",
        max_connections=settings.max_connections,
        admin_token=settings.admin_token.get_secret_value() if settings.admin_token else None,
        api_keys_required=settings.api_keys_required, trusted_proxies=settings.trusted_proxies,
        domains=_domains(settings), access=_access_log(settings, own_log),
    )  # fmt: skip


def _domains(settings: Settings) -> Domains:
    return Domains(settings.api_domains, settings.page_domains)


async def _keep_models(
    primary: Worker, store: ModelStore, house: House, random_unit: Callable[[], float], changed: News
) -> None:
    """Have the store bring in the required models, anew whenever other ones are required."""
    await primary.wait_ready()
    while True:
        async with background(store.keep, house.settings.required_models, random_unit):
            await changed.wait()


async def _drain(drain_timeout_s: float, admission: Admission, door: Door, again: trio.Event) -> None:
    """Let what runs end in peace: for DRAIN_TIMEOUT_S, or until a second signal."""
    await door.close()
    admission.shut()
    with trio.move_on_after(drain_timeout_s) as patience:
        async with trio.open_nursery() as nursery:

            async def impatience() -> None:
                await again.wait()
                nursery.cancel_scope.cancel()

            nursery.start_soon(impatience)
            await admission.wait_all_drained()
            # The last answers are still on their way to their clients, who may not be reading.
            with trio.move_on_after(SHUTDOWN_GRACE_S):
                await door.wait_empty()
            nursery.cancel_scope.cancel()
    if patience.cancelled_caught:
        log.warning("some answers did not end in time; they are cut", drain_timeout_s=drain_timeout_s)


def _known_pids(meter: UsageMeter) -> frozenset[int]:
    return frozenset().union(*(usage.pids for usage in meter.latest.values()))


def _leaders(primary: Worker, fleet: Fleet) -> dict[str, int]:
    workers = [primary, *fleet.workers.values()]
    return {worker.spec.id: worker.process.pid for worker in workers if worker.process}


def _database_url(settings: Settings) -> str | None:
    return settings.database_url.get_secret_value() if settings.database_url else None


def _open_keys(settings: Settings) -> Opened:
    """Open the database and read the keys. It blocks. Raises StartRefused: without keys nobody's limits would hold."""
    try:
        return open_keys(_database_url(settings), settings.state_dir, set_aside)
    except DatabaseFault as fault:
        raise StartRefused(str(fault)) from fault


def gateways_part() -> GatewaysPart:
    """Return what `chimera doctor` cannot know without the gateway."""
    return _look_at_database, bound_by_descriptors


def database_for(settings: Settings) -> str:
    """Say how the database stands for this version. Raises StartRefused when it cannot be used. Changes nothing.

    A damaged file is no reason: a start puts it back from a copy.
    """
    try:
        return look_at(_database_url(settings), settings.state_dir)
    except Damaged as fault:
        return str(fault)
    except DatabaseFault as fault:
        raise StartRefused(str(fault)) from fault


def _look_at_database(settings: Settings) -> list[Finding]:
    """Say for `chimera doctor` how the database stands. It blocks, and changes nothing."""
    try:
        return [doctor.ok("database", look_at(_database_url(settings), settings.state_dir))]
    except DatabaseFault as problem:
        return [
            doctor.fault("database", str(problem), "chimera config shows DATABASE_URL's place; keys are kept there")
        ]


def _listen(settings: Settings, environ: Mapping[str, str]) -> list[Any]:
    if handed := handed_sockets(environ):
        check_handed(handed, settings.gateway_host, settings.gateway_port)
        return handed
    try:
        return listen(settings.gateway_host, settings.gateway_port)
    except PortTaken as error:
        where = f"{settings.gateway_host}:{settings.gateway_port}"
        holder = f" ({port_holder(settings.gateway_port)} has it)" if "in use" in str(error) else ""
        raise StartRefused(
            f"cannot listen on {where}: {error}{holder}; set GATEWAY_PORT (or GATEWAY_HOST) to another"
        ) from error


def _refuse_taken_primary_port(settings: Settings) -> None:
    if not port_is_free(settings.ollama_port):
        raise StartRefused(
            f"port {settings.ollama_port} is in use by {port_holder(settings.ollama_port)}, and Chimera's primary "
            "needs it: stop that one (systemctl stop ollama), or set OLLAMA_PORT to another port"
        )


if __name__ == "__main__":
    from supervisor.cli import main

    main()
