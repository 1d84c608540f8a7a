"""The whole of it with real `ollama serve` processes and a real model."""

import json
import os
import re
import signal
import subprocess
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import httpx
import ollama
import openai
import psutil

from tests.fakes.chimera import ROOT, Chimera, ask_at_once, wait_for

MODEL = "gemma3:270m"
GENERATE = {"model": MODEL, "prompt": "Count from one to ten.", "options": {"num_predict": 12, "temperature": 0}}


def client_sh(real: Chimera, *words: str) -> str:
    done = subprocess.run(
        [str(ROOT / "client.sh"), *words],
        env=os.environ | {"CHIMERA_URL": real.url}, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    return done.stdout


def test_two_workers_are_ready_and_the_welcome_says_what_to_type(real: Chimera) -> None:
    assert [row["models"] for row in real.instances()] == [[MODEL], [MODEL]]
    wait_for(lambda: "Chimera is ready: 2 workers" in real.out())
    assert './client.sh generate --prompt "Why is the sky blue?"' in real.out()
    assert "No module" not in real.err()


def test_client_sh_lists_the_model_and_generates(real: Chimera) -> None:
    assert MODEL in client_sh(real, "list")
    told = client_sh(real, "generate", "--prompt", "Why is the sky blue?", "--tokens", "24")
    assert len(re.findall("[a-z]{2,}", told.lower())) > 2, "some words, whichever this small model draws"
    assert "{" not in told


def test_a_stream_arrives_token_by_token(real: Chimera) -> None:
    with real.client.stream("POST", "/api/generate", json=GENERATE) as answer:
        chunks = [chunk for chunk in answer.iter_raw() if chunk]
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert len(chunks) > 5, "one write for each token or so, never one for all"
    lines = b"".join(chunks).splitlines()
    assert json.loads(lines[-1])["done"] is True
    assert answer.headers["x-chimera-worker"] in ("w1", "w2")


def test_the_ollama_python_client_works_unchanged(real: Chimera) -> None:
    with ollama.Client(host=real.url) as client:
        assert [model.model for model in client.list().models] == [MODEL]
        assert client.show(MODEL).details is not None
        messages = [{"role": "user", "content": "Say hello."}]
        options = {"num_predict": 8}
        whole = client.chat(MODEL, messages, options=options)
        assert whole.done
        assert whole.message.content
        parts = list(client.chat(MODEL, messages, stream=True, options=options))
        assert parts[-1].done
        assert "".join(part.message.content or "" for part in parts)
        assert client.generate(MODEL, "Hello", options=options).response
        vectors = client.embed(MODEL, ["the sky", "the sea"]).embeddings
        assert len(vectors) == 2
        assert len(vectors[0]) == 640
        assert [model.model for model in client.ps().models] == [MODEL]


def test_the_openai_client_works_unchanged(real: Chimera) -> None:
    with openai.OpenAI(base_url=f"{real.url}/v1", api_key="unused") as client:
        assert [model.id for model in client.models.list()] == [MODEL]
        whole = client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "Say hello."}], max_tokens=8
        )
        assert whole.choices[0].message.content
        parts = list(
            client.chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": "Say hello."}], max_tokens=8, stream=True
            )
        )
        assert "".join(part.choices[0].delta.content or "" for part in parts if part.choices)
        assert (
            len(client.embeddings.create(model=MODEL, input="the sky", encoding_format="float").data[0].embedding)
            == 640
        )


def test_errors_are_ollamas_own(real: Chimera) -> None:
    direct = httpx.Client(base_url=real.instances()[0]["url"], trust_env=False)
    for path, body in (
        ("/api/generate", b'{"model": oops'),
        ("/api/chat", b""),
        ("/api/generate", b'{"prompt": "no model"}'),
        ("/api/generate", b'{"model": "nobody/has-this", "prompt": "x"}'),
        ("/v1/chat/completions", b'{"model": oops'),
        ("/api/embed", b"[]"),
    ):
        ours, theirs = real.client.post(path, content=body), direct.post(path, content=body)
        assert (path, body, ours.status_code, ours.text) == (path, body, theirs.status_code, theirs.text)
    assert real.client.get("/").text == "Ollama is running"
    assert real.client.head("/").status_code == 200
    assert real.client.get("/api/version").json() == direct.get("/api/version").json()
    assert real.client.get("/api/nothing-like-this").status_code == 404
    direct.close()


def test_four_slots_twelve_at_once_and_a_queue_of_four(real: Chimera) -> None:
    # a story takes seconds: none has ended when the last one arrives
    story = GENERATE | {"prompt": "Write a short story about the sea.", "stream": False}
    answers = ask_at_once(real.url, 12, story | {"options": {"num_predict": 40, "temperature": 0}})

    assert Counter(answer.status_code for answer in answers) == {200: 8, 503: 4}
    assert all(answer.headers["retry-after"] for answer in answers if answer.status_code == 503)
    assert all(answer.json()["done"] for answer in answers if answer.status_code == 200)
    assert {answer.headers["x-chimera-worker"] for answer in answers if answer.status_code == 200} == {"w1", "w2"}
    assert real.queue()["depth"] == 0


def test_a_client_that_leaves_ends_the_work(real: Chimera) -> None:
    long = {"model": MODEL, "prompt": "Write a very long story.", "options": {"num_predict": 2000}}
    with real.client.stream("POST", "/api/generate", json=long) as answer:
        lines = answer.iter_lines()
        next(lines)
        worker = answer.headers["x-chimera-worker"]
        assert real.instance(worker)["inflight"] == 1
    wait_for(lambda: real.instance(worker)["inflight"] == 0, 5)
    busy = psutil.Process(real.instance(worker)["pid"])
    runner = busy.children()[0]
    wait_for(lambda: runner.cpu_percent(0.3) < 20, 10)


def test_load_and_unload_reach_every_worker(real: Chimera) -> None:
    def loaded() -> list[list[str]]:
        urls = [row["url"] for row in real.instances()]
        return [[model["name"] for model in httpx.get(f"{url}/api/ps").json()["models"]] for url in urls]

    unloaded = real.client.post("/api/generate", json={"model": MODEL, "keep_alive": 0})
    assert unloaded.json()["done_reason"] == "unload"
    wait_for(lambda: loaded() == [[], []])
    assert real.client.post("/api/chat", json={"model": MODEL}).json()["done_reason"] == "load"
    assert loaded() == [[MODEL], [MODEL]]
    assert real.client.get("/api/ps").json()["models"][0]["workers"] == ["w1", "w2"]


def test_create_copy_show_and_delete_go_to_the_one_store(real: Chimera) -> None:
    with ollama.Client(host=real.url) as client:
        client.copy(MODEL, "twin")
        assert {model.model for model in client.list().models} == {MODEL, "twin:latest"}
        assert client.generate("twin", "Hello", options={"num_predict": 2}).done
        client.delete("twin")
        assert [model.model for model in client.list().models] == [MODEL]
    digest = "sha256:" + "0" * 64
    assert real.client.head(f"/api/blobs/{digest}").status_code == 404
    real.client.post("/api/generate", json={"model": "twin", "keep_alive": 0})


def test_kill_9_of_a_worker_under_load_loses_no_request_without_a_byte(real: Chimera) -> None:
    """Point 3 of the first issue: `make test-gateway` as the load, and the fault in its midst."""
    real.client.post("/admin/instances/spawn", json={"wait": True}).raise_for_status()
    victim = real.instance("w1")
    group = [psutil.Process(victim["pid"]), *psutil.Process(victim["pid"]).children(recursive=True)]
    assert len(group) == 2, "serve and its runner"

    def ask(number: int) -> tuple[int, bool, str]:
        with (
            httpx.Client(base_url=real.url, timeout=90, trust_env=False) as client,
            client.stream("POST", "/api/generate", json=GENERATE | {"prompt": f"{number}: {'word ' * 60}"}) as answer,
        ):
            lines = [json.loads(line) for line in answer.iter_lines() if line]
            return answer.status_code, bool(lines and lines[-1].get("done")), json.dumps(lines[-1])

    with ThreadPoolExecutor(6) as pool:
        asked = [pool.submit(ask, number) for number in range(18)]
        wait_for(lambda: real.instance("w1")["inflight"] == 2)
        os.kill(victim["pid"], signal.SIGKILL)
        wait_for(lambda: not any(process.is_running() for process in group), 5)
        outcomes = [future.result() for future in asked]

    for status, done, last in outcomes:
        assert status == 200
        # one that had its first byte may end with an error line, and must then say so
        assert done or "the worker was lost before its answer was complete" in last, last
    assert sum(done for _, done, _ in outcomes) >= len(outcomes) - 2
    back = wait_for(
        lambda: next((r for r in real.instances() if r["id"] == "w1" and r["state"] in ("IDLE", "BUSY")), None)
    )
    assert back["pid"] != victim["pid"]
    assert back["restarts"] == 1
    assert back["last_exit"]["signal"] == "SIGKILL"
    real.client.post("/admin/instances/prune", json={"ids": ["w3"], "wait": True})


def test_the_scripts_for_people(real: Chimera) -> None:
    """What `make test-client` and `make test-gateway` run."""
    env = os.environ | {"CHIMERA_URL": real.url, "COLUMNS": "120"}
    run = {"env": env, "capture_output": True, "text": True, "timeout": 110, "check": False}
    done = subprocess.run([str(ROOT / "scripts" / "test_client.sh")], **run)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 failed" in done.stdout
    python = str(ROOT / ".venv" / "bin" / "python")
    words = [python, str(ROOT / "scripts" / "test_gateway.py"), "--workers", "1", "--requests", "9", "--tokens", "6"]
    done = subprocess.run(words, **run)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Balance" in done.stdout
    wait_for(lambda: [row["id"] for row in real.instances()] == ["w1", "w2"])  # what it spawned is pruned again


def test_stopping_leaves_nothing_behind(real: Chimera) -> None:
    assert len(real.marked()) >= 5  # the primary, two serves, two runners
    assert real.stop() == 0
    assert real.marked() == []
