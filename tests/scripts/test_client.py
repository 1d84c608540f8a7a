"""client.sh, run as a user runs it: against fake Ollamas, and against a stub that has Chimera's admin API."""

import json
import os
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.fakes.serving import Fake, free_port, serving

CLIENT = Path(__file__).parents[2] / "client.sh"


def client(url: str, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run ./client.sh against `url`, without a proxy or a secret of the machine's own."""
    settings = {"PATH": os.environ["PATH"], "CHIMERA_URL": url, "LANG": "C.UTF-8", **env}
    return subprocess.run([CLIENT, *words], env=settings, capture_output=True, text=True, timeout=30, check=False)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fake]:
    with serving(tmp_path_factory.mktemp("fake")) as fake:
        yield fake


@pytest.fixture
def fake(shared: Fake) -> Fake:
    shared.behaves()
    return shared


# --- Inference


@pytest.mark.parametrize("in_ascii", [False, True], ids=["utf8", "escaped"])
@pytest.mark.parametrize("command", ["generate", "chat"])
@pytest.mark.parametrize(
    "prompt",
    [
        'say "hello"',
        "two\nlines",
        "a\ttab, a \r return",
        "back\\slash, \\n, \\u0041, \\\\, \\",
        '\\"',
        "é, 漢字, 😀, \u2028",
        "bell \x07, escape \x1b[1m, unit \x1f, delete \x7f",
        "<b> & {curly} [square], 50% $HOME `id` $(id) *",
        " spaces  kept ",
        "ends with newlines\n\n\n",
        "STATUS 200 0",
    ],
)
def test_text_survives_the_way_there_and_back(fake: Fake, command: str, prompt: str, in_ascii: bool) -> None:
    fake.behaves(echo=True, tokens=3, ascii=in_ascii)
    done = client(fake.url, command, "--prompt", prompt)
    expected = prompt if prompt.endswith("\n") else prompt + "\n"
    # text=True reads \r as a newline, on both sides of the comparison
    assert (done.stdout, done.stderr, done.returncode) == (expected.replace("\r", "\n"), "", 0)


@pytest.mark.parametrize("how", [["--stream"], ["--no-stream"], []])
def test_generate_prints_the_answer(fake: Fake, how: list[str]) -> None:
    done = client(fake.url, "generate", "--prompt", "Why is the sky blue?", *how)
    assert (done.stdout, done.returncode) == ("tok0 tok1 tok2 tok3 tok4 \n", 0)


def test_words_are_printed_as_they_come(fake: Fake) -> None:
    fake.behaves(hang_after=1)
    argv = [str(CLIENT), "generate", "--prompt", "hello"]
    env = {**os.environ, "CHIMERA_URL": fake.url}
    with subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, start_new_session=True) as running:
        assert running.stdout is not None
        assert running.stdout.read(5) == b"tok0 "
        assert running.poll() is None
        os.killpg(running.pid, 15)


def test_fewer_tokens_can_be_asked_for(fake: Fake) -> None:
    assert client(fake.url, "generate", "--prompt", "x", "--tokens", "2").stdout == "tok0 tok1 \n"


def test_embed_describes_the_vector_and_json_has_all_of_it(fake: Fake) -> None:
    assert "tiny:latest: a vector of 32 numbers: 0." in client(fake.url, "embed", "--text", "hello").stdout
    raw = client(fake.url, "embed", "--text", "hello", "--json").stdout
    assert len(json.loads(raw)["embeddings"][0]) == 32


@pytest.mark.parametrize(
    ("keys", "error"),
    [
        ({"status": 503}, "client.sh: 503: server busy, please try again.  maximum pending requests exceeded"),
        ({"error_line_after": 2}, "client.sh: the answer broke off: an error was encountered while running"),
        ({"truncate_after": 2}, "the connection broke before the answer was complete"),
        ({"truncate_after": 0}, "the connection broke before the answer was complete"),
    ],
)
@pytest.mark.parametrize("how", ["--stream", "--no-stream"])
def test_trouble_is_one_line_and_status_1(fake: Fake, keys: dict[str, object], error: str, how: str) -> None:
    fake.behaves(**keys)
    done = client(fake.url, "generate", "--prompt", "hello", how)
    if how == "--no-stream":  # the error of an answer in one piece is an HTTP status
        error = error.replace("the answer broke off", "500")
    assert error in done.stderr
    assert (done.stderr.count("\n"), done.returncode) == (1, 1)


def test_an_unknown_model_shows_the_servers_words(fake: Fake) -> None:
    done = client(fake.url, "generate", "--prompt", "x", "--model", "no")
    assert done.stderr == 'client.sh: 404: model "no" not found, try pulling it first\n'


def test_an_unreachable_gateway_says_where_and_how_to_start_it() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    done = client(url, "list")
    start = "start it with 'make run' or 'make start-all', or set CHIMERA_URL"
    assert (done.stderr, done.returncode) == (f"client.sh: no gateway at {url}: {start}\n", 1)


# --- Models


def test_models_are_listed_pulled_shown_and_removed(fake: Fake) -> None:
    assert client(fake.url, "pull", "new").stdout.splitlines()[-1] == "success"
    assert [line.split()[0] for line in client(fake.url, "list").stdout.splitlines()] == [
        "NAME",
        "new:latest",
        "tiny:latest",
    ]
    assert "parameter_size      268M" in client(fake.url, "show", "new").stdout
    assert client(fake.url, "rm", "new").stdout == "deleted new\n"
    assert client(fake.url, "rm", "new").stderr == "client.sh: 404: model 'new' not found\n"


def test_a_failed_pull_shows_why(fake: Fake) -> None:
    fake.behaves(pull_error="pull model manifest: file does not exist")
    done = client(fake.url, "pull", "no")
    assert done.stderr == "client.sh: the answer broke off: pull model manifest: file does not exist\n"
    assert done.returncode == 1


def test_ps_says_where_a_model_computes(fake: Fake) -> None:
    client(fake.url, "generate", "--prompt", "x")
    assert client(fake.url, "ps").stdout.splitlines()[1].split()[:4] == ["tiny:latest", "253", "MB", "CPU"]
    fake.behaves(size_vram=126_500_000)
    assert "50% GPU" in client(fake.url, "ps").stdout


# --- Usage


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["frobnicate"], "no such command: frobnicate"),
        (["generate"], "generate needs --prompt TEXT"),
        (["generate", "--prompt"], "--prompt needs a value"),
        (["generate", "--prompt", "x", "y"], "generate does not know what to do with 'y'"),
        (["generate", "--prompt", "x", "--tokens", "many"], "--tokens needs a whole number, not 'many'"),
        (["embed", "--prompt", "x"], "embed has no option --prompt"),
        (["embed"], "embed needs --text TEXT"),
        (["show"], "show needs one MODEL"),
        (["list", "--model", "x"], "list has no option --model"),
        (["spawn", "0", "1"], "spawn does not know what to do with '0'"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(words: list[str], error: str) -> None:
    done = client("http://127.0.0.1:1", *words)
    assert (done.stderr, done.returncode) == (f"client.sh: {error} (./client.sh --help)\n", 2)


def test_help_is_printed_and_no_command_at_all_is_wrong_usage() -> None:
    done = client("http://127.0.0.1:1", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "generate --prompt TEXT" in done.stdout
    assert client("http://127.0.0.1:1").returncode == 2


# --- The fleet

WORKER = {
    "id": "gpu0-a",
    "state": "BUSY",
    "placement": "GPU-1",
    "gpu": {"index": 0, "uuid": "GPU-1", "name": "H200"},
    "port": 11501,
    "pid": 42,
    "url": "http://127.0.0.1:11501",
    "slots": 4,
    "inflight": 2,
    "models": ["tiny:latest", "big:8b"],
    "restarts": 1,
    "started_at": "2026-01-01T00:00:00Z",
    "uptime_s": 7500.5,
    "last_exit": None,
    "rss_bytes": 412_345_678,
    "cpu_percent": 12.5,
    "gpu_memory_bytes": 1_500_000_000,
}
ON_CPU = {**WORKER, "id": "cpu-b", "placement": "cpu", "gpu": None, "models": [], "gpu_memory_bytes": None}
GPU = {
    "index": 0,
    "uuid": "GPU-1",
    "name": "H200",
    "memory_total_bytes": 150_000_000_000,
    "xids": [],
    "verdict": "well",
}
ANSWERS: dict[str, tuple[int, Any]] = {
    "GET /admin/instances": (200, {"instances": [WORKER, ON_CPU], "queue": {"depth": 3, "size": 512, "oldest_s": 1.5}}),
    "GET /admin/gpus": (200, {"gpus": [GPU]}),
    "POST /admin/instances/spawn": (202, {"instances": [ON_CPU]}),
    "POST /admin/instances/prune": (202, {"pruned": ["cpu-b"]}),
    "GET /api/tags": (200, {"models": [{"name": "tiny:latest"}]}),
    "POST /api/embed": (401, {"error": {"message": "no such key"}}),
}


@dataclass
class Stub:
    """A gateway of fixed answers; it keeps what it was asked."""

    url: str
    requests: list[tuple[str, str | None, Any]] = field(default_factory=list)
    command_lines: list[str] = field(default_factory=list)


@pytest.fixture
def stub() -> Iterator[Stub]:
    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            size = int(self.headers.get("Content-Length", "0"))
            body = json.loads(self.rfile.read(size) or b"null")
            asked = f"{self.command} {self.path}"
            found.requests.append((asked, self.headers["Authorization"], body))
            children = psutil.Process().children(recursive=True)
            found.command_lines.extend(" ".join(child.cmdline()) for child in children)
            status, value = ANSWERS[asked.split("?")[0]]
            reply = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(reply)))
            self.end_headers()
            self.wfile.write(reply)

        def log_message(self, *_args: object) -> None:
            pass  # a test prints what went wrong itself

        do_GET = do_POST = answer  # noqa: N815 - the names that http.server calls

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        found = Stub(f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield found
        server.shutdown()
        thread.join()


def test_instances_are_a_table(stub: Stub) -> None:
    first, second = client(stub.url, "instances").stdout.splitlines()[1:]
    assert " ".join(first.split()) == ("gpu0-a BUSY gpu 0 11501 42 2/4 tiny:latest,big:8b 1 2h05m 12% 412 MB 1.5 GB")
    assert " ".join(second.split()) == "cpu-b BUSY cpu 11501 42 2/4 - 1 2h05m 12% 412 MB -"


def test_status_shows_queue_workers_and_gpus(stub: Stub) -> None:
    shown = client(stub.url, "status").stdout
    assert "queue    3 of 512 waiting, the oldest for 1s" in shown
    assert "cpu-b" in shown
    assert shown.splitlines()[-2].split() == ["INDEX", "UUID", "NAME", "MEMORY_TOTAL", "VERDICT"]
    assert shown.splitlines()[-1].split() == ["0", "GPU-1", "H200", "150", "GB", "well"]


@pytest.mark.parametrize(
    ("words", "path", "body"),
    [
        (["spawn"], "spawn", {"count": 1}),
        (["spawn", "1"], "spawn", {"count": 1, "gpu": 1}),
        (["spawn", "cpu", "--count", "2", "--wait"], "spawn?wait=1", {"count": 2, "gpu": "cpu"}),
        (["spawn", "--gpu=GPU-ab12"], "spawn", {"count": 1, "gpu": "GPU-ab12"}),
        (["prune"], "prune", {}),
        (["prune", "a", 'b"'], "prune", {"ids": ["a", 'b"']}),
        (["prune", "--gpu", "0", "--idle", "--force"], "prune", {"gpu": 0, "idle": True, "force": True}),
    ],
)
def test_spawn_and_prune_ask_for_what_is_meant(stub: Stub, words: list[str], path: str, body: object) -> None:
    done = client(stub.url, *words)
    assert (done.returncode, done.stderr) == (0, "")
    assert "cpu-b" in done.stdout
    assert stub.requests == [(f"POST /admin/instances/{path}", None, body)]


def test_secrets_are_sent_where_they_belong_and_show_in_no_command_line(stub: Stub) -> None:
    env = {"ADMIN_TOKEN": 'adm"in\\s', "CHIMERA_API_KEY": "key-1"}
    client(stub.url, "instances", **env)
    refused = client(stub.url, "embed", "--text", "our-secret-text", **env)
    assert [(asked, token) for asked, token, _ in stub.requests] == [
        ("GET /admin/instances", 'Bearer adm"in\\s'),
        ("GET /api/tags", "Bearer key-1"),
        ("POST /api/embed", "Bearer key-1"),
    ]
    assert refused.stderr == "client.sh: 401: no such key (CHIMERA_API_KEY holds the key)\n"
    curls = [line for line in stub.command_lines if line.startswith("curl")]
    assert len(curls) >= 3
    assert not [line for line in curls if "adm" in line.replace("/admin/", "") or "key-1" in line]
    assert not [line for line in curls if "our-secret-text" in line]
