"""What a person reads when the first workers are ready."""

import io
from pathlib import Path
from typing import Any, cast

import pytest
import trio
import trio.testing

from supervisor import welcome as welcome_module
from supervisor.config_load import load_settings
from supervisor.embedded import Embedded
from supervisor.locate import Ollama
from supervisor.operator import Operator
from supervisor.welcome import text, welcome

OLLAMA = Ollama(Path("/bin/ollama"))


class Rows:
    """An operator of whom only the rows are asked."""

    def __init__(self, *states: str, unplaced: tuple[str, ...] = ()) -> None:
        self.states = states
        self.unplaced = unplaced

    def gpus(self) -> dict[str, Any]:
        return {"gpus": [], "unplaced": list(self.unplaced)}

    def instances(self) -> list[dict[str, Any]]:
        return [
            {"id": f"w{number}", "state": state, "gpu": None, "port": 11500, "slots": 4, "models": ["tiny:latest"]}
            for number, state in enumerate(self.states, start=1)
        ]


def said(*states: str, ollama: Ollama = OLLAMA, **names: str) -> str:
    return text(load_settings({"HOME": "/h"} | names, {}), cast("Operator", Rows(*states)), ollama)


def test_it_says_where_things_are_and_what_to_type() -> None:
    lines = said("IDLE", "BUSY")
    assert "Chimera is ready: 2 workers at http://127.0.0.1:8000\n" in lines
    assert "  w1    CPU, port 11500, 4 slots, tiny:latest\n" in lines
    assert '  ./client.sh generate --prompt "Why is the sky blue?"\n' in lines
    assert "OLLAMA_HOST=http://127.0.0.1:8000 " in lines


def test_one_worker_is_no_plural_and_another_port_is_in_the_commands() -> None:
    lines = said("IDLE", GATEWAY_PORT="9000")
    assert "1 worker at http://127.0.0.1:9000\n" in lines
    assert "  CHIMERA_URL=http://127.0.0.1:9000 ./client.sh list\n" in lines


def test_a_worker_that_is_not_ready_says_so() -> None:
    lines = said("IDLE", "BACKOFF")
    assert "Chimera is ready: 1 worker at" in lines
    assert "  w2    CPU, port 11500, 4 slots, (BACKOFF)\n" in lines


def test_an_empty_fleet_says_how_to_fill_it() -> None:
    assert "add a worker with: chimera spawn" in said()


def test_the_cpu_build_is_named() -> None:
    embedded = Ollama(Path("/o"), Embedded(Path("/o"), "gemma3:270m", Path("/m")))
    assert "the CPU build of Ollama with gemma3:270m" in said("IDLE", ollama=embedded)


@pytest.mark.parametrize(
    ("states", "settled"),
    [
        ((), True),
        (("IDLE",), True),
        (("CORDONED",), True),
        (("STARTING",), False),
        (("IDLE", "WARMING"), False),
        (("STOPPING", "IDLE"), False),
        (("BACKOFF",), False),
        (("BACKOFF", "IDLE"), True),
        (("QUARANTINED", "BUSY"), True),
    ],
)
async def test_it_waits_until_each_worker_is_ready_or_has_failed_beside_a_ready_one(
    monkeypatch: pytest.MonkeyPatch, states: tuple[str, ...], settled: bool
) -> None:
    monkeypatch.setattr(welcome_module, "POLL_S", 0.001)
    rows, out = Rows(*states), io.StringIO()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(welcome, load_settings({"HOME": "/h"}, {}), cast("Operator", rows), OLLAMA, out)
        await trio.testing.wait_all_tasks_blocked()
        assert bool(out.getvalue()) is settled
        rows.states = ("IDLE",)
    assert out.getvalue().count("Chimera is ready") == 1


def test_a_place_of_workers_that_is_not_here_is_said() -> None:
    lines = text(
        load_settings({"HOME": "/h"}, {}), cast("Operator", Rows(unplaced=("WORKERS: there is no GPU '0'",))), OLLAMA
    )
    assert "  WORKERS: there is no GPU '0'\n  add a worker with: chimera spawn\n" in lines


def test_a_welcome_that_has_no_room_stops_nothing() -> None:
    with Path("/dev/full").open("w") as full:
        trio.run(welcome, load_settings({"HOME": "/h"}, {}), cast("Operator", Rows("IDLE")), OLLAMA, full)
        full.flush()  # what could not be written is not tried again
