"""The primary: one port or none, and nobody who waits for its leases."""

import os
import socket
from pathlib import Path

import pytest
import trio

from supervisor.command import PRIMARY
from supervisor.errors import StartFailed
from supervisor.placement import CPU
from supervisor.primary import NoLeases, OnePort, make_primary
from tests.fakes.serving import free_port
from tests.fakes.world import World


def test_the_primary_has_its_own_port_or_none() -> None:
    port = free_port()
    book = OnePort(port)
    assert book.take(None) == port
    book.give_back(port)
    with socket.create_server(("127.0.0.1", port)), pytest.raises(StartFailed) as refused:
        book.take(port)
    assert str(refused.value).startswith(f"port {port} (OLLAMA_PORT) is held by process {os.getpid()} (")


async def test_nobody_waits_for_its_leases() -> None:
    leases = NoLeases()
    with trio.fail_after(5):
        await leases.wait_drained(PRIMARY)
    assert (leases.inflight(PRIMARY), leases.progress_at(PRIMARY), leases.idle_since(PRIMARY)) == (0, None, None)


def test_it_has_no_gpu_no_store_to_wait_for_and_the_settings_port(tmp_path: Path) -> None:
    house = World().house(tmp_path, OLLAMA_PORT=str(free_port()))
    primary = make_primary(house)
    assert (primary.spec.id, primary.placement, primary.house.store) == (PRIMARY, CPU, None)
    assert primary.house.ports.take(None) == house.settings.ollama_port
    assert house.store is not None, "the workers' house is not changed"
