"""Who has which port: given one by one, never one that a stranger listens on."""

import os
import socket

import pytest

from supervisor.errors import StartFailed
from supervisor.ports import PortBook, owns_port, port_holder, port_is_free
from tests.fakes.house import free_port_base
from tests.fakes.serving import free_port


def test_ports_are_given_one_by_one_and_the_preferred_one_if_it_is_free() -> None:
    base = free_port_base()
    book = PortBook(base, 3)
    assert [book.take(None), book.take(base + 2)] == [base, base + 2]
    assert book.take(base) == base + 1  # somebody has it
    with pytest.raises(StartFailed, match=rf"^every port from {base} to {base + 2} is taken \(WORKER_PORT_BASE\)$"):
        book.take(None)
    book.give_back(base + 1)
    book.give_back(base + 1)
    assert book.take(None) == base + 1


def test_a_port_that_a_stranger_listens_on_is_passed_over() -> None:
    base = free_port_base()
    with socket.create_server(("127.0.0.1", base)):
        assert PortBook(base, 3).take(base) == base + 1


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_a_port_with_a_listener_is_not_free_and_its_holder_is_named(host: str) -> None:
    with socket.create_server((host, 0)) as listener:
        port = listener.getsockname()[1]
        assert not port_is_free(port)
        assert port_holder(port).startswith(f"process {os.getpid()} (")
    assert port_is_free(port)
    assert port_holder(port) == "another process"


def test_a_host_that_is_not_here_is_not_free() -> None:
    assert not port_is_free(free_port(), "192.0.2.1")


async def test_nobody_who_has_gone_owns_a_port() -> None:
    assert not await owns_port(2**22 + 1, 80)
