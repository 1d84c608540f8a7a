"""API keys in a whole Chimera on fake workers: made, used, limited and revoked without a restart; no secret is told."""

import hashlib
import json
import os
import socket
import stat
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest

from tests.fakes.chimera import ROOT, Chimera, wait_for
from tests.fakes.fake_ollama import write_control

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}]}
GENERATE = {"model": "tiny", "prompt": "hello", "stream": False}


def make(faked: Chimera, *words: str) -> str:
    """As people do: KEY=$(chimera keys create NAME)."""
    done = faked.command("keys", "create", *words)
    assert done.returncode == 0, done.stderr
    (secret,) = done.stdout.splitlines()
    return secret


def everything_written(faked: Chimera) -> str:
    """What a Chimera has said and kept in text: its own log, its workers' logs, its events."""
    files = [faked.folder / "out.txt", faked.folder / "err.txt", *(faked.state_dir / "logs").rglob("*")]
    told = [path.read_text(errors="replace") for path in files if path.is_file()]
    return "\n".join([*told, json.dumps(faked.events())])


@pytest.fixture
def keyed(faked: Chimera) -> Chimera:
    faked.env |= {"API_KEYS_REQUIRED": "true", "LOG_LEVEL": "debug", "WORKERS": "cpu=1"}
    return faked.start().ready(1)


def test_a_key_is_made_used_limited_and_revoked_without_a_restart(keyed: Chimera) -> None:
    pid = keyed.instances()[0]["pid"]
    secret = make(keyed, "laptop", "--concurrency", "4")

    stranger = openai.OpenAI(base_url=f"{keyed.url}/v1", api_key="unused", max_retries=0)
    with stranger, pytest.raises(openai.AuthenticationError) as refused:
        stranger.models.list()
    assert refused.value.code == "invalid_api_key"

    with openai.OpenAI(base_url=f"{keyed.url}/v1", api_key=secret, max_retries=0) as client:
        assert [model.id for model in client.models.list()]
        parts = client.chat.completions.create(**CHAT, stream=True)  # type: ignore[call-overload]
        assert "".join(part.choices[0].delta.content or "" for part in parts if part.choices)

        assert keyed.command("keys", "limit", "k1", "--requests-per-minute", "1").returncode == 0
        client.chat.completions.create(**CHAT)  # type: ignore[call-overload]
        with pytest.raises(openai.RateLimitError) as limited:
            client.chat.completions.create(**CHAT)  # type: ignore[call-overload]
        assert limited.value.code == "rate_limit_exceeded"
        assert 1 <= int(limited.value.response.headers["retry-after"]) <= 60
        assert client.models.list().data, "limits are for inference"

        assert keyed.command("keys", "limit", "k1", "--requests-per-minute", "none").returncode == 0
        client.chat.completions.create(**CHAT)  # type: ignore[call-overload]
        assert keyed.command("keys", "revoke", "k1").returncode == 0
        with pytest.raises(openai.AuthenticationError):
            client.chat.completions.create(**CHAT)  # type: ignore[call-overload]
    assert [(row["pid"], row["restarts"]) for row in keyed.instances()] == [(pid, 0)]


def test_a_revoked_keys_running_answer_ends_in_peace(keyed: Chimera) -> None:
    write_control(keyed.folder / "control.json", tokens=20, token_s=0.3)
    headers = {"Authorization": f"Bearer {make(keyed, 'laptop')}"}
    with keyed.client.stream("POST", "/api/generate", json=GENERATE | {"stream": True}, headers=headers) as answer:
        lines = answer.iter_lines()
        next(lines)
        assert keyed.command("keys", "revoke", "k1").returncode == 0
        assert json.loads(list(lines)[-1])["done"] is True
    assert keyed.client.post("/api/generate", json=GENERATE, headers=headers).status_code == 401


def test_client_sh_uses_a_key(keyed: Chimera) -> None:
    def client_sh(*words: str, **names: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [str(ROOT / "client.sh"), *words], env=os.environ | {"CHIMERA_URL": keyed.url} | names,
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    secret = make(keyed, "shell")
    for words in (["list"], ["ps"], ["generate", "--prompt", "hello", "--model", "tiny"]):
        assert client_sh(*words, CHIMERA_API_KEY=secret).returncode == 0
        refused = client_sh(*words, CHIMERA_API_KEY="")
        assert refused.returncode == 1
        assert refused.stderr.startswith("client.sh: 401: an API key is needed")
        assert refused.stderr.endswith(" (CHIMERA_API_KEY holds the key)\n")
    assert client_sh("pull", "tiny", CHIMERA_API_KEY=secret).stderr.startswith("client.sh: 403: this API key may not")
    assert client_sh("pull", "tiny", CHIMERA_API_KEY=make(keyed, "admin", "--models")).returncode == 0


def test_keys_outlive_a_restart_and_their_file_is_their_owners(keyed: Chimera) -> None:
    secret = make(keyed, "laptop", "--priority", "3")
    headers = {"Authorization": f"Bearer {secret}"}
    assert keyed.client.post("/api/generate", json=GENERATE, headers=headers).status_code == 200
    assert keyed.stop() == 0
    assert stat.S_IMODE((keyed.state_dir / "chimera.db").stat().st_mode) == 0o600
    keyed.start().ready(1)
    assert keyed.client.post("/api/generate", json=GENERATE, headers=headers).status_code == 200
    (row,) = keyed.client.get("/admin/keys").json()["keys"]
    assert (row["name"], row["priority"], row["last_used_at"] is not None) == ("laptop", 3, True)


def test_no_secret_and_no_hash_is_in_any_log(keyed: Chimera) -> None:
    secret = make(keyed, "laptop", "--requests-per-minute", "3")
    strangers = "chimera-" + "A" * 43
    paths = ("/api/generate", "/v1/chat/completions", "/v1/messages", "/api/show", "/api/pull", "/api/new")
    for key in (secret, strangers, "sk-" + "b" * 40):
        for path in paths:
            for headers in ({"Authorization": f"Bearer {key}"}, {"x-api-key": key}):
                keyed.client.post(path, json=GENERATE | CHAT, headers=headers | {"X-Chimera-Priority": "9"})
    with socket.create_connection(("127.0.0.1", keyed.port)) as rude:  # leaves in the middle of its body
        head = (
            f"POST /api/generate HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {secret}\r\nContent-Length: 9\r\n\r\n{{"
        )
        rude.sendall(head.encode())
    shown = [keyed.command("keys").stdout, keyed.command("keys", "--json").stdout, keyed.command("config").stdout]
    assert keyed.command("keys", "revoke", "k1").returncode == 0
    assert keyed.stop() == 0

    written = everything_written(keyed)
    assert "key created" in written, "there is something to look at"
    for key in (secret, strangers, "sk-" + "b" * 40):
        digest = hashlib.sha256(key.encode())
        for told in (written, *shown):
            assert key not in told
            assert key[8:20] not in told
            assert digest.hexdigest() not in told
    kept = b"".join(path.read_bytes() for path in keyed.state_dir.glob("chimera.db*"))
    assert secret.encode() not in kept, "what is kept is the hash"
    assert hashlib.sha256(secret.encode()).digest() in kept


def test_without_required_keys_any_word_will_do_and_a_known_key_has_its_limits(faked: Chimera) -> None:
    faked.env["WORKERS"] = "cpu=1"
    faked.start().ready(1)
    secret = make(faked, "laptop", "--concurrency", "1")
    assert faked.client.post("/api/generate", json=GENERATE).status_code == 200
    stranger = {"Authorization": "Bearer unused"}
    assert faked.client.post("/api/generate", json=GENERATE, headers=stranger).status_code == 200

    write_control(faked.folder / "control.json", first_token_s=3.0)
    with ThreadPoolExecutor(1) as pool:
        mine = {"x-api-key": secret}
        running = pool.submit(faked.client.post, "/api/generate", json=GENERATE, headers=mine)
        wait_for(lambda: faked.client.get("/admin/keys/k1").json()["inflight"] == 1)
        refused = faked.client.post("/api/generate", json=GENERATE, headers=mine)
        assert refused.json() == {"error": "over this API key's limit of requests at the same time (1)"}
        assert running.result().status_code == 200


def test_a_database_that_is_away_later_leaves_the_keys_working(keyed: Chimera) -> None:
    headers = {"Authorization": f"Bearer {make(keyed, 'laptop')}"}
    database = keyed.state_dir / "chimera.db"
    for path in keyed.state_dir.glob("chimera.db*"):
        path.unlink()
    database.mkdir()
    refused = keyed.command("keys", "revoke", "k1")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.startswith("chimera: nothing was changed: the database ")
    assert len(refused.stderr.splitlines()) == 1
    assert keyed.client.post("/api/generate", json=GENERATE, headers=headers).status_code == 200
    assert keyed.stop() == 0


def test_a_database_that_cannot_be_used_stops_the_start_with_one_line(faked: Chimera, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_bytes(b"no database" * 100)
    for url, said in (
        (f"sqlite:///{tmp_path}/thesis.txt", "file is not a database; it is damaged"),
        (f"sqlite:///{tmp_path}/none/x.db", "No such file or directory"),
    ):
        faked.env["DATABASE_URL"] = url
        done = faked.command("run")
        assert (done.returncode, said in done.stderr) == (1, True)
        assert len([line for line in done.stderr.splitlines() if line.startswith("chimera: ")]) == 1
        assert "Traceback" not in done.stderr
        assert faked.marked() == []
