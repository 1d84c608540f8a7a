"""Listening sockets from the service manager, handed to a process as systemd hands them."""

import os
import re
import socket
import subprocess
import sys

import pytest

from supervisor.activation import addresses_of, check_handed, handed_sockets
from supervisor.errors import BadConfiguration

# LISTEN_PID is the process's own number, which its parent cannot know before.
CHILD = """
import os, socket
from supervisor.activation import handed_sockets
os.environ["LISTEN_PID"] = str(os.getpid())
(sock,) = handed_sockets(os.environ)
print(sock.getsockname(), os.get_inheritable(sock.fileno()), flush=True)
client, _ = sock.accept()
client.sendall(b"served")
"""


def test_a_handed_socket_is_listened_on_and_no_child_gets_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
        waiting = socket.create_connection(address)  # before the process is there: it waits in the backlog
        script = f"import os; os.dup2({listener.fileno()}, 3, inheritable=True)\n{CHILD}"
        child = subprocess.Popen(
            [sys.executable, "-c", script], pass_fds=[listener.fileno()], env=dict(os.environ) | {"LISTEN_FDS": "1"},
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        waiting.settimeout(30)
        assert waiting.recv(100) == b"served"
        out, _ = child.communicate(timeout=30)
        waiting.close()
    assert out == f"{address} False\n"


@pytest.mark.parametrize(
    "environ", [{}, {"LISTEN_FDS": "1"}, {"LISTEN_FDS": "1", "LISTEN_PID": "1"}, {"LISTEN_FDS": "x", "LISTEN_PID": "1"}]
)
def test_what_is_meant_for_another_process_is_left_alone(environ: dict[str, str]) -> None:
    assert handed_sockets(environ) == []


def test_no_more_than_systemd_says_is_taken() -> None:
    assert handed_sockets({"LISTEN_FDS": "0", "LISTEN_PID": str(os.getpid())}) == []


def test_a_socket_where_the_settings_say_will_do() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        check_handed([listener], "127.0.0.1", port)
        check_handed([listener], "localhost", port)  # ::1 too, but not every machine has that
        assert addresses_of("127.0.0.1", port) == [("127.0.0.1", port)]


def test_a_socket_elsewhere_is_refused_with_both_addresses_and_the_cure() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        text = (
            f"GATEWAY_PORT: it is 127.0.0.1:1, but chimera.socket listens on 127.0.0.1:{port}; run `sudo chimera units"
        )
        with pytest.raises(BadConfiguration, match=re.escape(text)):
            check_handed([listener], "127.0.0.1", 1)


def test_a_host_that_is_no_address_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(BadConfiguration, match=r"^GATEWAY_HOST: 'nowhere' is no address here: unknown$"):
        check_handed([], "nowhere", 1)


def unknown(*_: object, **__: object) -> None:
    raise socket.gaierror(socket.EAI_NONAME, "unknown")


def test_a_socket_of_another_kind_is_none() -> None:
    left, right = socket.socketpair()
    with left, right, pytest.raises(BadConfiguration, match="listens on no address"):
        check_handed([left], "127.0.0.1", 1)
