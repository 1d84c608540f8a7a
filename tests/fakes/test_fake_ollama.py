"""The fake Ollama answers like Ollama, and fails as its control file says."""

import contextlib
import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from tests.fakes.chimera import wait_for
from tests.fakes.fake_ollama import gpu_line, keep_alive_s, max_seen, write_control
from tests.fakes.serving import FAKE_OLLAMA, Fake, serving

PROMPT = {"model": "tiny", "prompt": "hello"}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fake]:
    with serving(tmp_path_factory.mktemp("shared")) as running:
        yield running


@pytest.fixture
def fake(shared: Fake) -> Fake:
    """A fake that the module's tests share, with all keys at their defaults."""
    shared.behaves()
    return shared


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Fake]:
    """A fake of the test's own, for what ends it or what it counts from its start."""
    with serving(tmp_path) as running:
        yield running


def generate(fake: Fake, **more: object) -> list[dict[str, object]]:
    """The lines of a streamed answer."""
    response = fake.client.post("/api/generate", json={**PROMPT, **more})
    return [json.loads(line) for line in response.text.splitlines()]


def runners(fake: Fake) -> list[psutil.Process]:
    children = psutil.Process(fake.process.pid).children()
    return [child for child in children if "fake-runner" in child.cmdline()]


def test_a_stream_ends_with_done_and_says_who_answered(fake: Fake) -> None:
    fake.behaves(tokens=3)
    *words, end = generate(fake)
    assert [word["response"] for word in words] == ["tok0 ", "tok1 ", "tok2 "]
    assert (end["done"], end["done_reason"], end["eval_count"]) == (True, "stop", 3)
    assert end["worker_env"] == {
        "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "OLLAMA_HOST": fake.url.removeprefix("http://"),
    }
    assert generate(fake, options={"num_predict": 1})[-1]["done_reason"] == "length"


def test_a_load_starts_a_runner_and_an_unload_ends_it(fake: Fake) -> None:
    assert fake.client.post("/api/generate", json={"model": "tiny"}).json()["done_reason"] == "load"
    assert [model["name"] for model in fake.client.get("/api/ps").json()["models"]] == ["tiny:latest"]
    (runner,) = runners(fake)
    assert os.getpgid(runner.pid) == fake.process.pid
    assert fake.client.post("/api/generate", json={"model": "tiny", "keep_alive": 0}).json()["done_reason"] == "unload"
    assert fake.client.get("/api/ps").json()["models"] == []
    assert not runner.is_running()


@pytest.mark.parametrize(
    ("path", "body", "status", "error"),
    [
        ("/api/generate", b'{"model": "ti', 400, "invalid character"),
        ("/api/generate", b'{"model": "x", "prompt": "y"}', 404, 'model "x" not found, try pulling it first'),
        ("/v1/chat/completions", b'{"model": "x"}', 404, '"type":"not_found_error"'),
    ],
)
def test_bad_requests_get_ollamas_errors(fake: Fake, path: str, body: bytes, status: int, error: str) -> None:
    response = fake.client.post(path, content=body)
    assert response.status_code == status
    assert error in response.text.replace('\\"', '"')


def test_openai_streams_are_server_sent_events(fake: Fake) -> None:
    body = {"model": "tiny", "stream": True, "messages": [{"role": "user", "content": "hello"}]}
    events = fake.client.post("/v1/chat/completions", json=body).text.split("\n\n")
    deltas = [json.loads(event.removeprefix("data: "))["choices"][0] for event in events[:-2]]
    assert "".join(delta["delta"]["content"] for delta in deltas) == "tok0 tok1 tok2 tok3 tok4 "
    assert deltas[-1]["finish_reason"] == "stop"
    assert events[-2:] == ["data: [DONE]", ""]


def test_fakes_with_one_store_share_their_models(fresh: Fake, tmp_path: Path) -> None:
    with serving(tmp_path, model="tiny") as other:
        pulled = fresh.client.post("/api/pull", json={"model": "new"}).text.splitlines()
        assert json.loads(pulled[-1]) == {"status": "success", "worker_env": json.loads(pulled[0])["worker_env"]}
        assert [row["name"] for row in other.client.get("/api/tags").json()["models"]] == ["new:latest", "tiny:latest"]
        assert other.client.request("DELETE", "/api/delete", json={"model": "new"}).status_code == 200
        assert fresh.client.post("/api/show", json={"model": "new"}).status_code == 404


def test_the_command_line_creates_and_lists_models(fake: Fake, tmp_path: Path) -> None:
    (tmp_path / "Modelfile").write_text("FROM ./weights.gguf\n")
    env = {**os.environ, "OLLAMA_HOST": fake.url.removeprefix("http://")}
    subprocess.run([FAKE_OLLAMA, "create", "made", "-f", tmp_path / "Modelfile"], env=env, check=True)
    listed = subprocess.run([FAKE_OLLAMA, "list"], env=env, check=True, capture_output=True, text=True).stdout
    assert [line.split("\t")[0] for line in listed.splitlines()] == ["NAME", "made:latest", "tiny:latest"]


def test_term_ends_server_and_runner_with_status_0(fresh: Fake) -> None:
    generate(fresh)
    (runner,) = runners(fresh)
    fresh.process.terminate()
    assert fresh.process.wait(5) == 0
    assert not runner.is_running()


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"die_on_request": True}, 0),
        ({"die_mid_stream_after": 2}, 2),
        ({"truncate_after": 2}, 2),
        ({"truncate_after": 0}, 0),
    ],
)
def test_cut_streams_show_as_broken_connections(fresh: Fake, keys: dict[str, object], words: int) -> None:
    fresh.behaves(**keys)
    seen: list[str] = []
    with (
        pytest.raises(httpx.RemoteProtocolError),
        fresh.client.stream("POST", "/api/generate", json=PROMPT) as response,
    ):
        seen.extend(response.iter_lines())
    assert len(seen) == words
    if "truncate_after" not in keys:
        assert fresh.process.wait(5) == -signal.SIGKILL


def test_an_error_line_ends_its_stream_properly(fake: Fake) -> None:
    fake.behaves(error_line_after=1)
    word, error = generate(fake)
    assert (word["done"], list(error)) == (False, ["error"])


def test_a_hung_stream_ends_with_its_client(tmp_path: Path) -> None:
    with serving(tmp_path, OLLAMA_NUM_PARALLEL="1") as fake:
        fake.behaves(hang_after=1)
        for _ in range(2):  # the second one gets its token only in the slot that the first gave back
            with fake.client.stream("POST", "/api/generate", json=PROMPT, timeout=30) as response:
                lines = response.iter_lines()  # kept: httpx closes the answer with its iterator
                assert json.loads(next(lines))["done"] is False


def test_faults_can_be_limited_to_the_first_requests(fresh: Fake) -> None:
    fresh.behaves(status=503, faults_for=1, tokens=1)
    assert generate(fresh) == [{"error": "server busy, please try again.  maximum pending requests exceeded"}]
    assert generate(fresh)[-1]["done"] is True


def test_the_most_requests_at_once_are_written_down(fresh: Fake, tmp_path: Path) -> None:
    fresh.behaves(hang_after=0, max_seen_file=str(tmp_path / "seen"))
    port, body = httpx.URL(fresh.url).port or 0, json.dumps(PROMPT)
    ask = f"POST /api/generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
    with contextlib.ExitStack() as clients:
        for _ in range(3):
            clients.enter_context(socket.create_connection(("127.0.0.1", port))).sendall(ask)
        wait_for(lambda: max_seen(tmp_path / "seen") == {port: 3})


def test_a_killed_runner_ends_its_stream_with_an_error_and_is_started_again(fake: Fake) -> None:
    fake.behaves(token_s=0.05)
    with fake.client.stream("POST", "/api/generate", json=PROMPT) as response:
        lines = response.iter_lines()
        next(lines)
        runners(fake)[0].kill()
        assert "error" in json.loads(list(lines)[-1])
    assert generate(fake)[-1]["done"] is True


def test_a_loaded_model_shows_on_its_gpu_until_it_is_unloaded(tmp_path: Path) -> None:
    state = tmp_path / "gpus"
    state.write_text("GPU-a|A|1000|10|0|30|1|0||0\nGPU-b|B|1000|10|0|30|1|0||0\n!lost\n")
    with serving(tmp_path, FAKE_NVML_STATE=str(state), CUDA_VISIBLE_DEVICES="GPU-b") as fake:
        generate(fake)
        pid = runners(fake)[0].pid
        assert state.read_text().splitlines()[1:] == [f"GPU-b|B|1000|522|0|30|1|0|{pid}:512|0", "!lost"]
        fake.process.terminate()
        fake.process.wait(5)
    assert state.read_text().splitlines()[1] == "GPU-b|B|1000|10|0|30|1|0||0"


def test_another_program_can_be_the_runner(tmp_path: Path) -> None:
    program = tmp_path / "own.py"
    program.write_text("import signal; signal.alarm(60); signal.pause()")
    with serving(tmp_path, FAKE_OLLAMA_RUNNER=str(program)) as fake:
        generate(fake)
        (runner,) = runners(fake)
        assert str(program) in runner.cmdline()


def test_the_exit_at_start_is_what_the_control_file_says(tmp_path: Path) -> None:
    control = tmp_path / "control.json"
    control.write_text('{"by_port": {"29999": {"exit_at_start": 3}}}')
    env = {**os.environ, "OLLAMA_HOST": "127.0.0.1:29999", "FAKE_OLLAMA_CONTROL": str(control)}
    assert subprocess.run([FAKE_OLLAMA, "serve"], env=env, check=False).returncode == 3


def test_a_pull_fails_as_often_as_it_is_told_to(fresh: Fake) -> None:
    fresh.behaves(pull_error="no such host", pull_error_for=2)
    answers = [fresh.client.post("/api/pull", json={"model": "new"}).text.splitlines()[-1] for _ in range(3)]
    assert [next(iter(json.loads(answer))) for answer in answers] == ["error", "error", "status"]


def test_a_runner_can_hide_from_its_gpu(tmp_path: Path) -> None:
    state, line = tmp_path / "gpus", "GPU-a|A|1000|10|0|30|1|0||0"
    state.write_text(line)
    with serving(tmp_path, FAKE_NVML_STATE=str(state), CUDA_VISIBLE_DEVICES="GPU-a") as fake:
        fake.behaves(hide_from_nvml=True, size_vram=0, expires_at="2020-01-01T00:00:00Z")
        generate(fake)
        (row,) = fake.client.get("/api/ps").json()["models"]
    assert (row["size_vram"], row["expires_at"]) == (0, "2020-01-01T00:00:00Z")
    assert state.read_text() == line


@pytest.mark.parametrize(
    ("devices", "keys", "found"),
    [
        ("GPU-a", {}, "id=GPU-a library=cuda"),
        ("GPU-a", {"library": "cpu"}, "id=0 library=cpu"),
        ("-1", {}, "id=0 library=cpu"),
    ],
)
def test_the_log_says_what_it_computes_on(tmp_path: Path, devices: str, keys: dict[str, object], found: str) -> None:
    write_control(tmp_path / "control.json", **keys)
    with (tmp_path / "log").open("wb") as log, serving(tmp_path, log=log.fileno(), CUDA_VISIBLE_DEVICES=devices):
        pass
    assert f'msg="inference compute" {found} ' in (tmp_path / "log").read_text()


def test_a_log_on_a_full_disk_ends_nothing(tmp_path: Path) -> None:
    with Path("/dev/full").open("ab", buffering=0) as log, serving(tmp_path, log=log.fileno()) as fake:
        assert generate(fake)[-1]["done"] is True
        fake.process.terminate()
        assert fake.process.wait(5) == 0


def test_an_ignored_term_leaves_the_server_running(fake: Fake) -> None:
    fake.behaves(ignore_term=True)
    fake.process.terminate()
    with pytest.raises(subprocess.TimeoutExpired):
        fake.process.wait(0.3)
    assert fake.client.get("/").text == "Ollama is running"


@pytest.mark.parametrize(
    ("value", "seconds"), [(None, 300.0), (0, 0.0), ("0", 0.0), ("5m", 300.0), ("250ms", 0.25), ("24h", 86400.0)]
)
def test_keep_alive_is_read_like_ollama_reads_it(value: object, seconds: float) -> None:
    assert keep_alive_s(value) == seconds


def test_a_process_leaves_its_gpu_line_as_it_came() -> None:
    line = "GPU-a|A|1000|10|0|30|1|0|7:10|0"
    loaded = gpu_line(line, ["GPU-a"], 8, 512)
    assert loaded == "GPU-a|A|1000|522|0|30|1|0|7:10,8:512|0"
    assert gpu_line(loaded, ["GPU-a"], 8, None) == line
    assert gpu_line(line, ["GPU-b"], 8, 512) == line
