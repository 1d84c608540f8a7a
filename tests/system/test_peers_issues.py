"""What went wrong in other systems of this kind, as tests of a whole Chimera on fake workers.

Each docstring begins with the issue's link. The others are in tests/test_peers_issues.py, the table of all fifteen in
docs/peers.md.
"""

import fcntl
import json
import socket
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.fakes.chimera import Chimera, chimera, wait_for
from tests.fakes.fake_ollama import add_model, max_seen, replace_file, write_control
from tests.fakes.nvml import GPU_A, GPU_B, FakeNvml, build_fake_nvml

GENERATE = {"model": "tiny", "prompt": "hello"}
NO_END = {"tokens": 100_000, "token_s": 0.02}
FOREVER_S = 1000.0


def behave(fleet: Chimera, **keys: object) -> None:
    write_control(fleet.folder / "control.json", **keys)


@contextmanager
def a_fleet(folder: Path, workers: int, **env: str) -> Iterator[Chimera]:
    with chimera(folder, REQUIRED_MODEL="tiny", **env) as made:
        Path(made.env["OLLAMA_MODELS"]).mkdir()
        add_model(Path(made.env["OLLAMA_MODELS"]), "tiny")
        yield made.start().ready(workers)


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chimera]:
    """Three workers of four slots."""
    with a_fleet(tmp_path_factory.mktemp("three"), 3, WORKERS="cpu=3") as made:
        yield made


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chimera]:
    """One worker of one slot, and a queue of one."""
    settings = {"WORKERS": "cpu=1", "WORKER_SLOTS": "1", "QUEUE_SIZE": "1"}
    with a_fleet(tmp_path_factory.mktemp("narrow"), 1, **settings) as made:
        yield made


@pytest.fixture(scope="module")
def gpus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Chimera, FakeNvml]]:
    """A worker on each of two GPUs."""
    folder = tmp_path_factory.mktemp("gpus")
    nvml = FakeNvml(build_fake_nvml(folder), folder / "nvml.state")
    with a_fleet(folder, 2, **nvml.environ()) as made:
        yield made, nvml


@pytest.fixture(autouse=True)
def _well_behaved(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fakes behave well again after each test."""
    yield
    for name in ("three", "narrow", "gpus"):
        if name in request.fixturenames:
            made = request.getfixturevalue(name)
            behave(made[0] if name == "gpus" else made)


@contextmanager
def streaming(fleet: Chimera) -> Iterator[str]:
    """An answer that does not end, within the block; gives its worker's id."""
    with fleet.client.stream("POST", "/api/generate", json=GENERATE) as answer:
        lines = answer.iter_lines()  # kept: httpx closes the answer with its iterator
        next(lines)
        yield answer.headers["x-chimera-worker"]


def ask(fleet: Chimera, path: str = "/api/generate", **more: Any) -> httpx.Response:
    return fleet.client.post(path, json=GENERATE | {"stream": False} | more)


# -- one of three workers misbehaves ---------------------------------------------------------------------------------


def test_a_worker_that_fails_at_once_draws_no_load(three: Chimera) -> None:
    """https://github.com/thushan/olla/issues/144

    A worker that answered 503 at once was always the least loaded, and got nearly every request.
    """
    bad, seen = three.instances()[0], three.folder / "embeds"
    behave(three, requests_file=str(seen), first_token_s=0.02, by_port={str(bad["port"]): {"status": 503}})
    with ThreadPoolExecutor(6) as pool:
        bodies = [{"model": "tiny", "input": f"text {number}"} for number in range(100)]
        answers = list(pool.map(lambda body: three.client.post("/api/embed", json=body), bodies))
    assert Counter(answer.status_code for answer in answers) == {200: 100}
    asked = [json.loads(line) for line in seen.read_text().splitlines()]
    share = sum(one["path"] == "/api/embed" and one["port"] == bad["port"] for one in asked)
    assert 0 < share <= 15, "two to be found out, up to six at the same moment, then one after each pause"


def test_what_clients_get_wrong_counts_against_no_worker(three: Chimera) -> None:
    """https://github.com/sgl-project/sglang/issues/25811

    Requests with mistakes in them (4xx) opened the breakers: one bad client took the fleet down.
    """
    wait_for(lambda: all(row["state"] == "IDLE" for row in three.instances()))
    before = three.err().count("passed over for a while")
    behave(three, status=400)
    assert {ask(three).status_code for _ in range(40)} == {400}
    behave(three, status=404)
    assert {ask(three).status_code for _ in range(40)} == {404}
    behave(three)
    answers = [ask(three) for _ in range(40)]
    assert {answer.status_code for answer in answers} == {200}
    assert {answer.headers["x-chimera-attempts"] for answer in answers} == {"1"}
    assert three.err().count("passed over for a while") == before


def test_probes_do_not_forget_what_a_worker_is_doing(three: Chimera) -> None:
    """https://github.com/vllm-project/router/issues/197

    Each health check put a new object in the worker's place, with a load of nought.
    """
    probes = three.folder / "probes"
    behave(three, requests_file=str(probes), **NO_END)
    with streaming(three) as worker:
        port = three.instance(worker)["port"]

        def probed() -> int:
            lines = probes.read_text().splitlines() if probes.exists() else []
            asked = [json.loads(line) for line in lines]
            return sum(one["method"] == "GET" and one["port"] == port for one in asked)

        wait_for(lambda: probed() >= 3)
        assert (three.instance(worker)["inflight"], three.instance(worker)["state"]) == (1, "BUSY")
    wait_for(lambda: three.instance(worker)["inflight"] == 0)


def test_a_changed_fleet_leaves_the_other_workers_alone(three: Chimera) -> None:
    """https://github.com/mostlygeek/llama-swap/issues/1009

    A changed setting (a key was added) stopped every running model; two changes at once ran twice.
    """
    behave(three, **NO_END)
    before = {row["id"]: (row["pid"], row["restarts"]) for row in three.instances()}
    with streaming(three) as worker, ThreadPoolExecutor(2) as pool:
        spawned = list(pool.map(lambda _: three.client.post("/admin/instances/spawn", params={"wait": 1}), range(2)))
        new = [row["id"] for answer in spawned for row in answer.json()["instances"]]
        assert len(set(new)) == 2
        pruned = three.client.post("/admin/instances/prune", json={"ids": new}).json()["pruned"]
        assert sorted(pruned) == sorted(new)
        wait_for(lambda: len(three.instances()) == 3)
        assert three.instance(worker)["inflight"] == 1, "its answer goes on"
    assert {row["id"]: (row["pid"], row["restarts"]) for row in three.instances()} == before


def test_a_killed_server_takes_its_runner_along(three: Chimera) -> None:
    """https://github.com/ollama/ollama/issues/5642

    SIGKILL of `ollama serve` left its runner, which kept the GPU's memory for ever.
    """
    behave(three, leave_runner=True)
    row = three.instances()[1]
    three.client.post(f"/admin/instances/{row['id']}/restart").raise_for_status()  # it takes its stubbornness then
    wait_for(lambda: three.instance(row["id"])["restarts"] == row["restarts"] + 1)
    three.ready(3)
    serve = psutil.Process(three.instance(row["id"])["pid"])
    (runner,) = serve.children()
    serve.kill()
    wait_for(lambda: three.instance(row["id"])["restarts"] == row["restarts"] + 2)
    assert not runner.is_running() or runner.status() == psutil.STATUS_ZOMBIE
    three.ready(3)


# -- one slot --------------------------------------------------------------------------------------------------------


def test_a_worker_gets_no_more_than_its_slots(narrow: Chimera) -> None:
    """https://github.com/ollama/ollama/issues/7758

    OLLAMA_MAX_QUEUE does not bound requests for a loaded model: six at once, one slot and a queue of one were taken.
    """
    seen = narrow.folder / "seen"
    behave(narrow, first_token_s=0.5, max_seen_file=str(seen))
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: ask(narrow), range(6)))
    codes = Counter(answer.status_code for answer in answers)
    assert codes.keys() <= {200, 503}
    assert codes[200] >= 2, "one in the slot, one in the queue"
    assert all(answer.headers["retry-after"] for answer in answers if answer.status_code == 503)
    assert max(max_seen(seen).values(), default=1) == 1


@contextmanager
def open_request(fleet: Chimera, path: str, **body: object) -> Iterator[socket.socket]:
    """A request on a connection of its own, which is closed at the end of the block."""
    data = json.dumps(GENERATE | body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(data)}"
    with socket.create_connection(("127.0.0.1", fleet.port)) as sock:
        sock.sendall(f"{head}\r\n\r\n".encode() + data)
        yield sock


PHASES: dict[str, tuple[dict[str, object], str, dict[str, object]]] = {
    "before the first token of a stream": ({"first_token_s": FOREVER_S}, "/api/generate", {}),
    "before the first token": ({"first_token_s": FOREVER_S}, "/api/generate", {"stream": False}),
    "between two tokens that are not streamed": ({"token_s": FOREVER_S}, "/api/generate", {"stream": False}),
    "in OpenAI's form": (
        {"token_s": FOREVER_S}, "/v1/chat/completions", {"messages": [{"role": "user", "content": "hello"}]},
    ),
    "while its model is loaded": ({"load_s": FOREVER_S}, "/api/generate", {"model": "other"}),
}  # fmt: skip


@pytest.mark.parametrize("phase", PHASES)
def test_a_client_that_leaves_ends_the_work_before_anything_was_sent(narrow: Chimera, phase: str) -> None:
    """https://github.com/BerriAI/litellm/issues/37140

    The work of a client that had left went on, when it had not asked for a stream or had got nothing of it yet.
    """
    add_model(Path(narrow.env["OLLAMA_MODELS"]), "other")
    keys, path, body = PHASES[phase]
    (row,) = narrow.instances()
    behave(narrow, **keys)
    with open_request(narrow, path, **body), open_request(narrow, path, **body):
        wait_for(lambda: (narrow.instances()[0]["inflight"], narrow.queue()["depth"]) == (1, 1))
        behave(narrow, **keys)
    wait_for(lambda: (narrow.instances()[0]["inflight"], narrow.queue()["depth"]) == (0, 0))
    behave(narrow)
    # its only slot is free in the worker itself, which has noticed
    answer = httpx.post(f"{row['url']}/api/generate", json=GENERATE | {"stream": False}, timeout=20, trust_env=False)
    assert answer.status_code == 200
    assert narrow.instances()[0]["restarts"] == row["restarts"]


def test_a_client_that_leaves_a_stopped_worker_frees_its_slot(narrow: Chimera) -> None:
    """https://github.com/jonigl/ollama-mcp-bridge/pull/69

    The same, of a worker that takes its connection and reads nothing at all.
    """
    (row,) = narrow.instances()
    serve = psutil.Process(row["pid"])
    serve.suspend()
    try:
        with open_request(narrow, "/api/generate"):
            wait_for(lambda: narrow.instances()[0]["inflight"] == 1)
        wait_for(lambda: narrow.instances()[0]["inflight"] == 0)
    finally:
        with suppress(psutil.NoSuchProcess):
            serve.resume()
    assert ask(narrow).status_code == 200


def test_a_full_queue_is_said_in_its_words_and_the_admin_api_goes_on(narrow: Chimera) -> None:
    """https://github.com/intentee/paddler/issues/61

    Beyond its capacity it answered 502 instead of queueing, and with its slots full its admin page was dead.
    """
    behave(narrow, **NO_END)
    with streaming(narrow), ThreadPoolExecutor(1) as pool:
        behave(narrow)
        waits = pool.submit(ask, narrow)
        wait_for(lambda: narrow.queue()["depth"] == 1)
        with ThreadPoolExecutor(8) as crowd:
            beyond = [crowd.submit(ask, narrow) for _ in range(40)]
            for path, status in (("/admin/instances", 200), ("/healthz", 200), ("/readyz", 200), ("/metrics", 200)):
                assert narrow.client.get(path).status_code == status
            assert narrow.client.get("/api/tags").status_code == 200
            assert {answer.result().status_code for answer in beyond} == {503}
            assert all("maximum pending requests" in answer.result().json()["error"] for answer in beyond)
        assert narrow.queue()["depth"] == 1
        assert not waits.done()
        narrow.client.post("/admin/instances/spawn", params={"wait": 1}).raise_for_status()
        assert waits.result().status_code == 200, "the one that waited is answered by the next free slot"
    narrow.client.delete("/admin/instances/w2")


# -- GPUs ------------------------------------------------------------------------------------------------------------


def _reorder(nvml: FakeNvml) -> None:
    """Have the driver count its GPUs the other way round; a change between two changes of the fakes'."""
    with Path(f"{nvml.state}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lines = nvml.state.read_text().splitlines()
        others = [line for line in lines if not line.startswith("GPU-")]
        gpus = [line for line in lines if line.startswith("GPU-")]
        replace_file(nvml.state, "\n".join([*others, *reversed(gpus), ""]))


def test_a_worker_stays_with_its_gpu_when_the_indices_change(gpus: tuple[Chimera, FakeNvml]) -> None:
    """https://github.com/ollama/ollama/issues/17832

    CUDA_VISIBLE_DEVICES with an index chose another GPU than the one meant: CUDA counts otherwise than NVML.
    """
    fleet, nvml = gpus
    spawned = fleet.client.post("/admin/instances/spawn", json={"gpu": 1, "wait": True}).json()["instances"]
    assert [(row["id"], row["placement"]) for row in spawned] == [("w3", GPU_B)]
    assert fleet.stop() == 0
    _reorder(nvml)  # as another boot may find them
    fleet.start().ready(3)
    assert [row["placement"] for row in fleet.instances()] == [GPU_A, GPU_B, GPU_B]
    assert fleet.instance("w3")["gpu"] == {"index": 0, "uuid": GPU_B, "name": "Fake H200"}
    for row in fleet.instances():
        environ = psutil.Process(row["pid"]).environ()
        assert (environ["CUDA_VISIBLE_DEVICES"], environ["CUDA_DEVICE_ORDER"]) == (row["placement"], "PCI_BUS_ID")
    spawned = fleet.client.post("/admin/instances/spawn", json={"gpu": 1, "wait": True}).json()["instances"]
    assert spawned[0]["placement"] == GPU_A, "the GPU that is number 1 now"
    fleet.client.post("/admin/instances/prune", json={"ids": ["w3", "w4"]}).raise_for_status()
    wait_for(lambda: len(fleet.instances()) == 2)


def test_a_worker_that_computes_on_the_cpu_without_a_word_is_found_out(gpus: tuple[Chimera, FakeNvml]) -> None:
    """https://github.com/ollama/ollama/issues/13765

    A GPU was lost to Ollama, which went on on the CPU, twenty times slower, and was called healthy.
    """
    fleet, _ = gpus
    port = str(fleet.instance("w2")["port"])
    behave(fleet, by_port={port: {"size_vram": 0, "hide_from_nvml": True, "library": "cpu"}})
    fleet.client.post("/admin/instances/w2/restart").raise_for_status()
    row = wait_for(lambda: (row := fleet.instance("w2"))["degraded"] and row["state"] == "IDLE" and row)
    assert "CPU" in json.dumps(row["trouble"])
    assert {ask(fleet).headers["x-chimera-worker"] for _ in range(10)} == {"w1"}
    behave(fleet)
    fleet.client.post("/admin/instances/w2/restart").raise_for_status()
    wait_for(lambda: not (row := fleet.instance("w2"))["degraded"] and row["state"] == "IDLE")


# -- a port that answers ---------------------------------------------------------------------------------------------


def test_a_worker_that_answers_probes_and_no_request_is_replaced(tmp_path: Path) -> None:
    """https://github.com/ollama/ollama/issues/15950

    The port took connections and /api/tags was answered, while nothing was computed any more.
    """
    with a_fleet(tmp_path, 2, WORKERS="cpu=2", FIRST_BYTE_TIMEOUT_S="2") as fleet:
        dead = fleet.instances()[0]
        behave(fleet, by_port={str(dead["port"]): {"hang_after": 0}})
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda _: ask(fleet), range(8)))
        assert {answer.status_code for answer in answers} == {200}, "those that met it were answered by the other"
        assert httpx.get(f"{dead['url']}/api/version", trust_env=False).status_code == 200, "it looks well"
        wait_for(lambda: fleet.instance(dead["id"])["restarts"] == 1)
        behave(fleet)
        fleet.ready(2)
        assert fleet.instance(dead["id"])["pid"] != dead["pid"]
        assert fleet.instances()[1]["restarts"] == 0
