"""The root: wires the supervisor to the gateway, and takes both down in order.

Up: lock, sweep, listen, GPUs, primary, store, fleet, gateway. Down: stop accepting, answer waiting tickets 503,
let leases end (at most DRAIN_TIMEOUT_S), stop workers (group TERM, then KILL), the primary last. A second signal
goes straight to the stop. Nothing waits for a client that does not read. In between SIGHUP takes new settings.

Only the root imports both packages: this file, for the order; `root_refusals`, for what is tried before anything is
started; `root_gateway`, for what each setting is to the gateway. The supervisor's own wiring is in `supervision`.
"""

import faulthandler
import gc
import logging
import random
import sys
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import structlog
import trio

from gateway.admission import Admission
from gateway.door import Door
from gateway.keyring import Keyring
from gateway.tls import server_context
from gateway.upstream import Upstream
from supervisor.alongside import alongside
from supervisor.certificate import Certificate
from supervisor.cgroup import find_delegated
from supervisor.change import Plan
from supervisor.comeback import comeback_of
from supervisor.config import Settings
from supervisor.errors import SupervisorError
from supervisor.events import EventLog
from supervisor.locate import Ollama
from supervisor.lock import locked
from supervisor.notify import notifier_of
from supervisor.orders import HEEDED, Orders, has_terminal
from supervisor.reload import Reload, outcome_directory
from supervisor.roll import Roll
from supervisor.root_gateway import Gateway
from supervisor.root_refusals import opened_keys, refuse_taken_primary_port, sockets_of
from supervisor.service import Service, outlook
from supervisor.supervision import Supervision
from supervisor.sweep import sweep
from supervisor.welcome import welcome

log = structlog.get_logger("chimera")

# How many objects are made, beyond those that have gone, before the youngest are looked at: a few hundred requests' at
# once, not ten's.
GARBAGE_THRESHOLD = 20_000
# After the workers are told to stop: what the primary and the last connections may take.
SHUTDOWN_GRACE_S = 5.0


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
        async with alongside(service.run, started=True), trio.open_nursery() as nursery:
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
    sockets = sockets_of(settings, environ)
    events = EventLog()
    certificate = Certificate(server_context, settings, events)
    service.status("ending what a former run left behind")
    if left := await sweep(settings.state_dir, stop_timeout_s=settings.stop_timeout_s):
        events.record("leftovers_ended", level="warning", processes=left, cause="a former run left them behind")
    refuse_taken_primary_port(settings)
    opened = await trio.to_thread.run_sync(opened_keys, settings)
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
    upstream = Upstream(first_byte_timeout_s=settings.first_byte_timeout_s, stall_timeout_s=settings.stall_timeout_s)
    admission = Admission(
        settings.queue_size, settings.queue_timeout_s, chance.random, upstream.forget, settings.queue_bytes
    )
    cgroups = await trio.to_thread.run_sync(find_delegated, environ)
    supervision = Supervision(settings, ollama, environ, admission, events, chance.random, cgroups)
    gateway = Gateway(settings, admission, upstream, keyring, certificate, supervision)
    house, operator = supervision.house, supervision.operator

    async with AsyncExitStack() as stack:
        await gateway.begin(stack)
        await supervision.begin(stack)
        door = await gateway.open(stack, sockets)
        _spare_the_collector()
        events.record("gateway_listens", url=settings.shown_url)
        if "NOTIFY_SOCKET" not in environ:  # a service has nobody to welcome
            await stack.enter_async_context(alongside(welcome, settings, operator, ollama, sys.stdout))
        take = partial(_take, supervision, gateway, certificate)
        renewal = Reload(reread, house, take, service, events, outcome_directory(environ, settings.state_dir))
        await stack.enter_async_context(alongside(renewal.run, orders.reload))
        await stack.enter_async_context(alongside(Roll(supervision.fleet, supervision.store, service, events).run))
        service.serves(
            lambda: outlook(operator.instances(), operator.primary(), int(admission.queue()["depth"]),
                            house.settings.shown_url)
        )  # fmt: skip
        await orders.stop.wait()
        limits = house.settings
        service.stops("stopping: answers under way may end", limits.drain_timeout_s + limits.stop_timeout_s)
        await _drain(limits.drain_timeout_s, admission, door, orders.at_once)
        service.status("stopping the workers")


def _take(supervision: Supervision, gateway: Gateway, certificate: Certificate, change: Plan) -> None:
    """Let new settings count, in one step. Raises a SupervisorError to refuse them, and then nothing has changed."""
    now = change.settings
    shown = certificate.read(now)
    supervision.take(change)
    certificate.show(now, shown)
    gateway.retune(now)
    logging.getLogger().setLevel(now.log_level.upper())


def _spare_the_collector() -> None:
    """Have the garbage collector look at what requests make, not at what was imported and set up: that stays.

    Looking at all of it again and again was a twentieth of what a short request cost (docs/performance.md).
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(GARBAGE_THRESHOLD, *gc.get_threshold()[1:])


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


if __name__ == "__main__":
    from supervisor.cli import main

    main()
