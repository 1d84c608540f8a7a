"""Calls of the admin API: the gateway's own sentence, one clear line when it is not there or is another program."""

import pytest

from tests.fakes.command_line import Chimera, Gateway, asks, chimera, gateway

__all__ = ["asks", "chimera", "gateway"]  # fixtures


@pytest.mark.parametrize("said", [b"<html>", b"[]", b"\xff"])
@pytest.mark.parametrize("status", [200, 404])
def test_another_program_on_the_port_is_one_clear_line(
    asks: Chimera, gateway: Gateway, said: bytes, status: int
) -> None:
    gateway.says("GET /admin/instances", said, status)
    done = asks("status")
    assert done.exit_code == 1
    assert done.stderr.startswith("chimera: http://127.0.0.1:")
    assert done.stderr.endswith("is another program listening there?\n")
    assert done.stderr.count("\n") == 1


def test_the_token_goes_along(asks: Chimera, gateway: Gateway) -> None:
    asks("gpus", ADMIN_TOKEN="hunter2")
    asks("gpus")
    assert gateway.tokens == ["Bearer hunter2", None]
