"""The commands for a running Chimera: what they ask of the gateway, and what they print."""

import json
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from supervisor.cli_fleet import fleet_if_there
from supervisor.env_file import settings_from
from tests.fakes.command_line import FLEET, GPUS, WORKER, Chimera, Gateway, asks, chimera, gateway
from tests.fakes.serving import free_port

__all__ = ["asks", "chimera", "gateway"]  # fixtures


def test_status_is_a_table_or_json(asks: Chimera) -> None:
    table = asks("status")
    assert table.exit_code == 0
    assert "1 of 1 ready" in table.stdout
    assert json.loads(asks("status", "--json").stdout) == FLEET | GPUS


def test_gpus_are_a_table_or_json(asks: Chimera) -> None:
    assert asks("gpus").stdout == "GPUs: none (NVML library not found)\n"
    assert json.loads(asks("gpus", "--json").stdout) == GPUS


def test_spawn_says_what_there_is_now(asks: Chimera, gateway: Gateway) -> None:
    gateway.says("POST /admin/instances/spawn", {"instances": [WORKER | {"state": "STARTING"}]}, 202)
    done = asks("spawn", "--gpu", "0", "--count", "2", "--slots", "3")
    assert (done.exit_code, done.stdout) == (0, "w1  cpu  port 11500  STARTING\n")
    asked = {"gpu": "0", "count": 2, "slots": 3, "wait": False}
    assert gateway.asked == [("POST", "/admin/instances/spawn", asked)]
    waited = asks("spawn", "--wait")
    assert waited.exit_code == 1
    assert waited.stderr == "chimera: not every new worker is ready; see: chimera status\n"
    gateway.says("POST /admin/instances/spawn", {"instances": [WORKER]}, 202)
    assert asks("spawn", "--wait").exit_code == 0


@pytest.mark.parametrize(
    ("words", "body"),
    [
        ([], {"ids": None, "gpu": None, "idle": False, "force": False}),
        (["w1", "w2", "--force"], {"ids": ["w1", "w2"], "gpu": None, "idle": False, "force": True}),
        (["--gpu", "cpu", "--idle"], {"ids": None, "gpu": "cpu", "idle": True, "force": False}),
    ],
)
def test_prune_asks_for_what_was_named(asks: Chimera, gateway: Gateway, words: list[str], body: object) -> None:
    gateway.says("POST /admin/instances/prune", {"pruned": ["w1", "w2"]}, 202)
    assert asks("prune", *words).stdout == "pruned w1 w2\n"
    assert gateway.asked[-1][2] == body
    gateway.says("POST /admin/instances/prune", {"pruned": []}, 202)
    assert asks("prune", *words).stdout == "nothing to prune\n"


@pytest.mark.parametrize("verb", ["drain", "cordon", "uncordon", "restart"])
def test_orders_name_their_worker(asks: Chimera, gateway: Gateway, verb: str) -> None:
    gateway.says(f"POST /admin/instances/w1/{verb}", WORKER, 202)
    gateway.says("GET /admin/instances/w1", WORKER | {"state": "CORDONED"})
    assert asks(verb, "w1").stdout == "w1  CORDONED\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["status"], "chimera: interrupted\n"),
        (["spawn", "--wait"], "chimera: interrupted; what was asked for goes on, see: chimera status\n"),
    ],
)
def test_ctrl_c_is_one_line_that_says_what_goes_on(
    asks: Chimera, monkeypatch: pytest.MonkeyPatch, words: list[str], said: str
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("httpx.Client.request", interrupted)
    done = asks(*words)
    assert (done.exit_code, done.stderr) == (1, said)


def test_ctrl_c_is_the_way_to_stop_following(asks: Chimera, monkeypatch: pytest.MonkeyPatch, gateway: Gateway) -> None:
    def interrupted(*_: object) -> Iterator[str]:
        yield "one"
        raise KeyboardInterrupt

    gateway.says("GET /admin/instances/w1/logs?n=200&follow=1", b"one\n")
    monkeypatch.setattr("httpx.Response.iter_lines", interrupted)
    done = asks("logs", "-f", "w1")
    assert (done.exit_code, done.stdout, done.stderr) == (0, "one\n", "")


@pytest.mark.parametrize(("verb", "verdict"), [("quarantine", "quarantined"), ("release", "well")])
def test_orders_name_their_gpu(asks: Chimera, gateway: Gateway, verb: str, verdict: str) -> None:
    row = {"index": 0, "uuid": "GPU-a", "verdict": verdict}
    gateway.says(f"POST /admin/gpus/0%3A1/{verb}", row, 202)
    assert asks(verb, "0:1").stdout == f"GPU 0 GPU-a  {verdict}\n"


def test_events_are_lines_for_people_or_for_programs(asks: Chimera, gateway: Gateway) -> None:
    event = {"at": "2001-02-03T04:05:06.789+00:00", "event": "worker_hung", "worker": "w1", "cause": "it is stopped"}
    gateway.says("GET /admin/events?follow=0", (json.dumps(event) + "\n").encode())
    (line,) = asks("events").stdout.splitlines()
    assert line.startswith("2001-02-03")
    assert line.split("  ")[1:] == ["worker hung", *[""] * 6, " worker=w1", "it is stopped"]
    assert json.loads(asks("events", "--json").stdout) == event


def test_logs_are_printed(asks: Chimera, gateway: Gateway) -> None:
    gateway.says("GET /admin/instances/w1/logs?n=5&follow=0", "one\nzwölf\n".encode())
    assert asks("logs", "w1", "-n", "5").stdout == "one\nzwölf\n"
    gateway.says("GET /admin/instances/w1/logs?n=200&follow=1", b"one\n")
    assert asks("logs", "w1", "-f").stdout == "one\n"


@pytest.mark.parametrize("words", [["logs", "w9"], ["drain", "w9"]])
def test_a_refusal_is_the_gateways_own_sentence(asks: Chimera, gateway: Gateway, words: list[str]) -> None:
    sentence = {"error": "there is no worker 'w9'; workers here: w1"}
    gateway.says("GET /admin/instances/w9/logs?n=200&follow=0", sentence, 404)
    gateway.says("POST /admin/instances/w9/drain", sentence, 404)
    done = asks(*words)
    assert (done.exit_code, done.stderr) == (1, "chimera: there is no worker 'w9'; workers here: w1\n")


def test_what_no_worker_is_called_is_no_other_path(asks: Chimera, gateway: Gateway) -> None:
    asks("logs", "w1#")
    asks("drain", "w1?")
    assert [path for _, path, _ in gateway.asked] == [
        "/admin/instances/w1%23/logs?n=200&follow=0", "/admin/instances/w1%3F/drain",
    ]  # fmt: skip


def test_start_asks_until_the_gateway_answers(chimera: Chimera, gateway: Gateway) -> None:
    settings = settings_from(Path("none"), {"GATEWAY_PORT": str(gateway.server_port), "HOME": "/h"})
    assert fleet_if_there(settings) == FLEET
    nobody = settings_from(Path("none"), {"GATEWAY_PORT": str(free_port()), "HOME": "/h"})
    assert fleet_if_there(nobody) is None
    gateway.says("GET /admin/instances", {"error": "a token is needed"}, 401)
    with pytest.raises(click.ClickException, match="a token is needed"):
        fleet_if_there(settings)
