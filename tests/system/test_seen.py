"""What can be seen of a request afterwards, of a whole Chimera: its line, its worker's log, the metrics, no secret."""

import json
import re
import socket
from pathlib import Path
from typing import Any

from tests.fakes.chimera import Chimera, wait_for
from tests.fakes.collector import collecting
from tests.fakes.fake_ollama import write_control

PROMPT, KEY = "canary-in-the-prompt", "canary-in-the-key"
GENERATE = {"model": "tiny", "prompt": PROMPT}


def access_lines(faked: Chimera) -> list[dict[str, Any]]:
    """The access lines that were written so far, oldest first."""
    entries = [json.loads(line) for line in faked.err().splitlines() if line.startswith("{")]
    return [entry for entry in entries if entry.get("logger") == "access"]


def ask(faked: Chimera, request_id: str) -> str:
    headers = {"x-request-id": request_id, "authorization": f"Bearer {KEY}", "x-api-key": KEY}
    answer = faked.client.post(f"/api/generate?key={KEY}", json=GENERATE, headers=headers)
    assert answer.headers["x-request-id"] == request_id
    return answer.text


def test_a_request_is_found_by_its_id_in_the_access_log_and_in_its_workers_log(faked: Chimera) -> None:
    faked.env["WORKERS"] = "cpu=1"
    write_control(faked.folder / "control.json", tokens=5)
    faked.start().ready(1)
    ask(faked, "find-me")
    (line,) = wait_for(lambda: [entry for entry in access_lines(faked) if entry["request"] == "find-me"])
    assert {"path": "/api/generate", "model": "tiny", "status": 200, "outcome": "ok", "worker": "w1", "attempts": 1,
            "level": "info", "event": "request"}.items() <= line.items()  # fmt: skip
    assert line["first_byte_ms"] <= line["total_ms"]
    wait_for(lambda: "find-me ends" in faked.command("logs", "w1").stdout)
    worker = faked.command("logs", "w1").stdout
    begins, ends = [entry for entry in worker.splitlines() if "request=find-me" in entry]
    assert re.fullmatch(r"\S+Z chimera request=find-me model=tiny begins", begins)
    assert re.fullmatch(r"\S+Z chimera request=find-me ends status=200 outcome=ok after_ms=\d+", ends)
    assert 'chimera_worker_requests_total{outcome="ok",worker="w1"}' in faked.client.get("/metrics").text


def test_a_stream_without_its_end_is_told_to_the_client_and_counted(faked: Chimera) -> None:
    write_control(faked.folder / "control.json", tokens=5, die_mid_stream_after=2)
    faked.start().ready(2)
    assert "error" in json.loads(ask(faked, "cut-short").splitlines()[-1])
    (line,) = wait_for(lambda: [entry for entry in access_lines(faked) if entry["request"] == "cut-short"])
    assert (line["status"], line["outcome"]) == (200, "broken")


def test_who_asks_for_a_change_is_in_the_log_and_what_is_refused_at_the_door_is_counted(faked: Chimera) -> None:
    faked.start().ready(2)
    spawned = faked.client.post("/admin/instances/spawn?gpu=cpu", headers={"x-request-id": "more"})
    assert (spawned.status_code, spawned.headers["x-request-id"]) == (202, "more")
    (line,) = wait_for(lambda: [entry for entry in access_lines(faked) if entry["request"] == "more"])
    assert {"client": "127.0.0.1", "method": "POST", "path": "/admin/instances/spawn", "status": 202,
            "outcome": "ok", "worker": None}.items() <= line.items()  # fmt: skip
    with socket.create_connection((faked.client.base_url.host, faked.client.base_url.port or 80)) as rude:
        rude.sendall(b"what?\r\n\r\n")
        assert rude.recv(65536).startswith(b"HTTP/1.1 400 ")
    counted = faked.client.get("/metrics").text
    assert 'chimera_refused_at_door_total{reason="malformed"} 1.0' in counted
    assert "chimera_tls_certificate" not in counted
    assert not [entry for entry in access_lines(faked) if entry["path"] in ("/metrics", "/healthz")]


def test_the_last_lines_are_written_before_the_end_and_no_secret_is_in_any(faked: Chimera) -> None:
    write_control(faked.folder / "control.json", tokens=5)
    faked.env["LOG_LEVEL"] = "debug"
    faked.start().ready(2)
    said = ask(faked, "last-one")
    assert faked.stop() == 0
    assert [entry["request"] for entry in access_lines(faked)][-1] == "last-one"
    logs = {path.name: path.read_text() for path in Path(faked.env["STATE_DIR"]).rglob("*.log")}
    assert "last-one ends" in logs["w1.log"] + logs["w2.log"]
    (answered, *_) = re.findall(r'"response": ?"([^"]{3,})"', said)
    for text in (faked.err(), faked.out(), *logs.values()):
        assert PROMPT not in text
        assert KEY not in text
        assert f'"{answered}"' not in text


def test_the_access_log_may_be_off_and_people_see_what_went_wrong_only(faked: Chimera) -> None:
    faked.env |= {"ACCESS_LOG": "errors"}
    faked.start().ready(2)
    ask(faked, "went-well")
    faked.client.post("/api/generate", json=GENERATE | {"model": "unheard-of"}, headers={"x-request-id": "went-wrong"})
    assert faked.stop() == 0
    assert [entry["request"] for entry in access_lines(faked)] == ["went-wrong"]


def test_with_an_endpoint_set_requests_are_traced_and_a_stop_sends_the_last_spans(faked: Chimera) -> None:
    with collecting() as collector:
        faked.env |= {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url.removesuffix("/v1/traces"), "NO_PROXY": "127.0.0.1"}
        faked.start().ready(2)
        ask(faked, "traced")
        assert faked.stop() == 0
        assert {"POST /api/generate", "queue", "try"} <= {span.name for span in collector.spans()}
        assert PROMPT.encode() not in b"".join(collector.bodies)


def test_a_collector_that_hangs_holds_up_no_stop(faked: Chimera) -> None:
    with collecting() as collector:
        collector.go_on.clear()
        faked.env |= {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url.removesuffix("/v1/traces"), "NO_PROXY": "127.0.0.1"}
        faked.start().ready(2)
        ask(faked, "traced")
        assert faked.stop(timeout_s=25) == 0  # the collector is held for longer
        assert collector.bodies == []


def test_the_log_of_a_worker_that_writes_on_and_on_is_bounded(faked: Chimera) -> None:
    logs = faked.folder / "logs"
    faked.env |= {"LOG_DIR": str(logs), "LOG_MAX_BYTES": "16MiB"}
    logs.mkdir()
    (logs / "w9.log").write_bytes(b"of a worker long gone\n" * 10**6)
    faked.start().ready(2)
    with (logs / "w1.log").open("ab") as ollama:
        ollama.write(b"debug\n" * 10**6)
    wait_for((logs / "w1.log.1").exists, 60)
    assert (logs / "w1.log.1").read_bytes().endswith(b"debug\n" * 10**6)
    wait_for(lambda: (logs / "w1.log").stat().st_size < 10**6)
    ask(faked, "afterwards")
    wait_for(lambda: "afterwards ends" in faked.command("logs", "w1").stdout + faked.command("logs", "w2").stdout)
    assert not (logs / "w9.log").exists()
