"""Faults that a real Ollama cannot be asked for: a whole Chimera on fake workers."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil
import pytest

from tests.fakes.chimera import Chimera, ask_at_once, chimera, wait_for
from tests.fakes.fake_ollama import write_control

GENERATE = {"model": "tiny", "prompt": "hello"}


def behave(faked: Chimera, **keys: object) -> None:
    write_control(faked.folder / "control.json", **keys)


def test_four_slots_and_a_queue_of_four_give_eight_of_twelve_an_answer(faked: Chimera) -> None:
    faked.env |= {"WORKER_SLOTS": "2", "QUEUE_SIZE": "4"}
    behave(faked, first_token_s=2.0, max_seen_file=str(faked.folder / "seen"))
    faked.start().ready(2)

    answers = ask_at_once(faked.url, 12, GENERATE)

    assert sorted(answer.status_code for answer in answers) == [200] * 8 + [503] * 4
    for answer in answers:
        if answer.status_code == 503:
            assert int(answer.headers["retry-after"]) >= 1
            assert answer.json() == {"error": "server busy, please try again.  maximum pending requests exceeded"}
    assert faked.queue()["depth"] == 0
    assert [row["inflight"] for row in faked.instances()] == [0, 0]
    assert all(int(line.split()[1]) <= 2 for line in (faked.folder / "seen").read_text().splitlines())


def test_a_worker_lost_before_its_first_byte_costs_the_client_nothing(faked: Chimera) -> None:
    faked.start().ready(2)
    first = faked.instances()[0]
    behave(faked, by_port={str(first["port"]): {"die_on_request": True}})

    for _ in range(60):  # which of two idle workers is asked is chance
        answer = faked.client.post("/api/generate", json=GENERATE | {"stream": False})
        assert answer.status_code == 200
        if answer.headers["x-chimera-attempts"] == "2":
            break
    assert answer.headers["x-chimera-attempts"] == "2"
    behave(faked)
    wait_for(lambda: faked.instance(first["id"])["restarts"] >= 1)
    faked.ready(2)
    assert faked.instance(first["id"])["last_exit"]["signal"] == "SIGKILL"


def test_a_fleet_of_one_answers_when_its_worker_is_back(faked: Chimera) -> None:
    faked.env["WORKERS"] = "cpu=1"
    faked.start().ready(1)
    behave(faked, die_on_request=True)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(lambda: faked.client.post("/api/generate", json=GENERATE))
        wait_for(lambda: faked.instances()[0]["restarts"] >= 1)
        behave(faked)
        assert asked.result().status_code == 200


def test_a_stream_cut_after_its_first_byte_ends_with_an_error_line(faked: Chimera) -> None:
    behave(faked, tokens=5, die_mid_stream_after=2)
    faked.start().ready(2)
    with faked.client.stream("POST", "/api/generate", json=GENERATE) as answer:
        lines = [line for line in answer.iter_lines() if line]
    assert '"done": true' not in lines[-1].replace('"done":true', '"done": true')
    assert lines[-1] == '{"error": "the worker was lost before its answer was complete"}'


def test_a_client_that_leaves_gives_its_slot_back_and_ends_the_work(faked: Chimera) -> None:
    faked.env |= {"WORKERS": "cpu=1", "WORKER_SLOTS": "1"}
    behave(faked, tokens=1000, token_s=0.05)
    faked.start().ready(1)
    with faked.client.stream("POST", "/api/generate", json=GENERATE) as answer:
        lines = answer.iter_lines()  # kept: httpx closes the answer with its iterator
        next(lines)
        assert faked.instances()[0]["inflight"] == 1
        behave(faked)
        # one more waits in the queue, and leaves it
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{faked.url}/api/generate", json=GENERATE, timeout=0.3, trust_env=False)
        wait_for(lambda: faked.queue()["depth"] == 0)
    wait_for(lambda: faked.instances()[0]["inflight"] == 0)
    assert faked.client.post("/api/generate", json=GENERATE | {"stream": False}).status_code == 200


def test_a_killed_supervisor_leaves_no_process_and_the_next_run_finds_a_clean_house(faked: Chimera) -> None:
    faked.start().ready(2)
    behave(faked, ignore_term=True, leave_runner=True)
    for row in faked.instances():  # new processes, which take the stubborn behaviour at their start
        faked.client.post(f"/admin/instances/{row['id']}/restart")
    wait_for(lambda: all(row["restarts"] == 1 for row in faked.instances()))
    faked.ready(2)
    assert faked.process is not None
    faked.process.kill()
    faked.process.wait()
    left = faked.marked()
    assert left, "these ignore the parent-death signal: there is something to sweep"

    faked.start().ready(2)

    assert not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in left)
    behave(faked)


def test_a_killed_supervisor_takes_well_behaved_workers_along(faked: Chimera) -> None:
    faked.start().ready(2)
    assert len(faked.marked()) >= 5  # primary, two serves, two runners
    assert faked.process is not None
    faked.process.kill()
    wait_for(lambda: not faked.marked(), 10)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_everything_with_status_0(faked: Chimera, number: signal.Signals) -> None:
    faked.start().ready(2)
    assert faked.stop(number) == 0
    assert faked.marked() == []


def test_stopping_lets_an_answer_end_and_refuses_those_that_wait(faked: Chimera) -> None:
    faked.env |= {"WORKERS": "cpu=1", "WORKER_SLOTS": "1"}
    behave(faked, first_token_s=1.5)
    faked.start().ready(1)
    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(lambda: faked.client.post("/api/generate", json=GENERATE)) for _ in range(2)]
        wait_for(lambda: faked.queue()["depth"] == 1)
        assert faked.stop() == 0
        answers = sorted((future.result() for future in asked), key=lambda answer: answer.status_code)
    assert [answer.status_code for answer in answers] == [200, 503]
    assert answers[1].json() == {"error": "the server is shutting down"}
    assert answers[1].headers["retry-after"]


def test_a_second_signal_does_not_wait_for_answers(faked: Chimera) -> None:
    faked.env["DRAIN_TIMEOUT_S"] = "600"
    behave(faked, tokens=1000, token_s=0.1)
    faked.start().ready(2)
    assert faked.process is not None
    with faked.client.stream("POST", "/api/generate", json=GENERATE) as answer:
        lines = answer.iter_lines()  # kept: httpx closes the answer with its iterator
        next(lines)
        faked.process.send_signal(signal.SIGTERM)
        wait_for(lambda: '"stopping"' in faked.err())
        assert faked.stop() == 0
    assert faked.marked() == []


def test_a_changed_fleet_outlives_a_restart(faked: Chimera) -> None:
    faked.start().ready(2)
    faked.client.post("/admin/instances/spawn", params={"slots": 3, "wait": 1}).raise_for_status()
    faked.client.delete("/admin/instances/w1")
    wait_for(lambda: [row["id"] for row in faked.instances()] == ["w2", "w3"])
    assert faked.stop() == 0

    faked.start().ready(2)

    assert [(row["id"], row["slots"]) for row in faked.instances()] == [("w2", 4), ("w3", 3)]


def test_a_worker_that_cannot_start_backs_off_says_why_and_recovers(faked: Chimera) -> None:
    faked.start().ready(2)
    port = faked.instances()[0]["port"]
    behave(faked, by_port={str(port): {"exit_at_start": 7}})
    os.kill(faked.instances()[0]["pid"], signal.SIGKILL)
    row = wait_for(lambda: next((r for r in faked.instances() if r["state"] == "BACKOFF" and r["restarts"] > 1), None))
    assert row["last_exit"]["code"] == 7
    assert "failed" in row["problem"]
    behave(faked)
    faked.ready(2)
    assert faked.instance("w1")["problem"] is None


def test_start_status_and_stop_from_the_command_line(faked: Chimera) -> None:
    started = faked.command("start")
    try:
        assert started.returncode == 0, started.stderr
        assert faked.url in started.stdout
        again = faked.command("start")
        assert again.returncode == 1
        assert "runs already" in again.stderr
        status = faked.command("status")
        assert status.returncode == 0
        assert "2 of 2 ready" in status.stdout
        assert faked.command("spawn", "--wait").stdout.startswith("w3")
        assert faked.command("prune", "w3").stdout == "pruned w3\n"
        assert faked.command("restart", "nobody").stderr.startswith("chimera: there is no worker 'nobody'; workers")
        logs = faked.command("logs", "w1", "-n", "5")
        assert logs.returncode == 0
    finally:
        stopped = faked.command("stop")
    assert "has stopped" in stopped.stdout
    assert faked.marked() == []
    assert faked.command("stop").stdout == "chimera is not running\n"
    assert faked.command("status").returncode == 1


def test_an_oversized_body_is_413_and_malformed_json_takes_no_slot(faked: Chimera) -> None:
    faked.env |= {"MAX_BODY_BYTES": "4096", "WORKERS": "cpu=1", "WORKER_SLOTS": "1", "QUEUE_SIZE": "0"}
    behave(faked, tokens=1000, token_s=0.05)
    faked.start().ready(1)
    large = faked.client.post("/api/chat", content=b'{"model":"tiny","messages":[' + b" " * 5000)
    assert large.status_code == 413
    assert "MAX_BODY_BYTES" in large.json()["error"]
    with faked.client.stream("POST", "/api/generate", json=GENERATE) as answer:
        lines = answer.iter_lines()  # kept: httpx closes the answer with its iterator
        next(lines)  # the only slot is taken, and nobody may wait
        assert faked.client.post("/api/generate", content=b'{"model": oops').status_code == 400
        assert faked.client.post("/api/generate", json=GENERATE).status_code == 503


def test_a_taken_gateway_port_names_the_port_and_the_setting(
    faked: Chimera, tmp_path_factory: pytest.TempPathFactory
) -> None:
    faked.start().ready(2)
    with chimera(tmp_path_factory.mktemp("second"), GATEWAY_PORT=str(faked.port)) as second:
        refused = second.command("run")
    assert refused.returncode == 1
    assert f"127.0.0.1:{faked.port}" in refused.stderr
    assert "GATEWAY_PORT" in refused.stderr
    assert refused.stderr.count("\n") == 1
    with chimera(tmp_path_factory.mktemp("third"), OLLAMA_PORT=str(faked.primary_port)) as third:
        refused = third.command("run")
    assert refused.returncode == 1
    assert str(faked.primary_port) in refused.stderr
    assert "OLLAMA_PORT" in refused.stderr
    with chimera(tmp_path_factory.mktemp("fourth"), STATE_DIR=str(faked.state_dir)) as fourth:
        refused = fourth.command("run")
        fourth.env["STATE_DIR"] = str(fourth.folder)  # its end must not sweep the first one's workers
    assert refused.returncode == 1
    assert "another Chimera" in refused.stderr


def test_a_broken_dotenv_names_every_fault_at_once_and_exits_78(faked: Chimera) -> None:
    (faked.folder / ".env").write_text("WORKER_SLOT=4\nQUEUE_SIZE=many\nthis is no setting\nLOG_LEVEL=loud\n")
    refused = faked.command("run")
    assert refused.returncode == 78
    told = refused.stderr.splitlines()
    assert len(told) == 4
    for name in ("WORKER_SLOT", "QUEUE_SIZE", "line 3", "LOG_LEVEL"):
        assert sum(name in line for line in told) == 1


def test_the_admin_api_wants_the_token_where_one_is_set(faked: Chimera) -> None:
    faked.env["ADMIN_TOKEN"] = "correct horse"
    faked.start()
    wait_for(lambda: "gateway listens" in faked.err())
    assert faked.client.get("/admin/instances").status_code == 401
    allowed = faked.client.get("/admin/instances", headers={"Authorization": "Bearer correct horse"})
    assert allowed.status_code == 200
    assert "correct horse" not in faked.err()
    assert faked.command("status").returncode == 0


def test_a_conversation_stays_with_the_worker_that_holds_it(faked: Chimera) -> None:
    faked.start().ready(2)
    said: list[dict[str, str]] = []
    workers: list[str] = []
    for turn in range(12):
        said.append({"role": "user", "content": f"question {turn} " * 40})
        answer = faked.client.post("/api/chat", json={"model": "tiny", "messages": said, "stream": False})
        workers.append(answer.headers["x-chimera-worker"])
        said.append(answer.json()["message"])
    assert len(set(workers)) == 1, "both were free each time"


def test_a_worker_that_refuses_at_once_is_seen_by_few_and_harms_nobody(faked: Chimera) -> None:
    faked.env |= {"WORKERS": "cpu=3", "WORKER_SLOTS": "4"}
    faked.start().ready(3)
    bad = faked.instances()[0]
    behave(faked, token_s=0.01, by_port={str(bad["port"]): {"status": 503}})
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: faked.client.post("/api/generate", json=GENERATE), range(300)))
    assert [answer.status_code for answer in answers] == [200] * 300
    saw_it = sum(answer.headers["x-chimera-attempts"] != "1" for answer in answers)
    assert 1 <= saw_it <= 9, "3 % of 300"
