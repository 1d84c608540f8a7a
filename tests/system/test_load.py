"""Many clients at once, a greedy one, a slow worker: a whole Chimera on fake workers."""

import json
from collections import Counter
from dataclasses import dataclass

import psutil
import pytest
import trio

from scripts.bench.conversations import run_round
from tests.fakes.chimera import Chimera, wait_for
from tests.fakes.fake_ollama import write_control

# A request that waits costs its socket, its tasks and its ticket; measured in docs/performance.md.
MOST_BYTES_PER_WAITING = 250_000
DEADLINE_S = 90.0


def behave(faked: Chimera, **keys: object) -> None:
    write_control(faked.folder / "control.json", **keys)


@dataclass
class Answer:
    """What one client got."""

    caller: str
    status: int
    worker: str
    body: str


async def ask(port: int, answers: list[Answer], caller: str = "127.0.0.1", path: str = "/api/generate") -> None:
    """Ask over a connection of its own, from one of this machine's addresses."""
    body = json.dumps({"model": "tiny", "prompt": "hello", "messages": [{"role": "user", "content": "hello"}]}).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    stream = await trio.open_tcp_stream("127.0.0.1", port, local_address=caller)
    async with stream:
        await stream.send_all(head.encode() + body)
        said = b"".join([bytes(part) async for part in stream])
    top, _, rest = said.partition(b"\r\n\r\n")
    headers = dict(line.lower().split(": ", 1) for line in top.decode().split("\r\n")[1:])
    answers.append(Answer(caller, int(top.split()[1]), headers.get("x-chimera-worker", ""), rest.decode()))


async def together(port: int, callers: list[str], at_once: int = 10_000) -> list[Answer]:
    """Have every caller in the list ask once, so many at once; the answers in the order in which they came."""
    answers: list[Answer] = []
    room = trio.CapacityLimiter(at_once)

    async def one(caller: str) -> None:
        async with room:
            await ask(port, answers, caller)

    with trio.fail_after(DEADLINE_S):
        async with trio.open_nursery() as nursery:
            for caller in callers:
                nursery.start_soon(one, caller)
    return answers


def port_of(faked: Chimera) -> int:
    return int(faked.url.rpartition(":")[2])


def complete(answer: Answer) -> bool:
    return answer.status == 200 and '"done": true' in answer.body.replace('"done":true', '"done": true')


def test_a_worker_ten_times_slower_gets_less_than_a_fifth(faked: Chimera) -> None:
    """thushan/olla and others: least connections alone cannot tell them apart while there are slots to spare."""
    faked.env |= {"WORKERS": "cpu=3", "WORKER_SLOTS": "4"}
    faked.start().ready(3)
    slow = faked.instances()[0]
    behave(faked, token_s=0.01, by_port={str(slow["port"]): {"token_s": 0.1}})
    answers = trio.run(together, port_of(faked), ["127.0.0.1"] * 100, 1)
    shares = Counter(answer.worker for answer in answers)
    assert all(complete(answer) for answer in answers)
    assert 1 <= shares[slow["id"]] < 20, f"{shares}: by chance it would get 33"


def test_two_hundred_of_one_caller_delay_anothers_one_by_a_slot(faked: Chimera) -> None:
    """Seen by the worker: in which order it is given the requests, and not how long anything takes."""
    faked.env |= {"WORKERS": "cpu=1", "WORKER_SLOTS": "2", "QUEUE_SIZE": "300"}
    faked.start().ready(1)
    given = faked.folder / "given"
    # an answer takes longer than two requests that are given at once can be apart when the worker notes them
    behave(faked, requests_file=str(given), tokens=2, token_s=0.1)
    worker = f"/admin/instances/{faked.instances()[0]['id']}"
    faked.client.post(f"{worker}/cordon").raise_for_status()  # so that all of them wait

    async def depth(wanted: int) -> None:
        while (await trio.to_thread.run_sync(faked.queue))["depth"] != wanted:
            continue

    async def scene() -> list[Answer]:
        answers: list[Answer] = []
        with trio.fail_after(DEADLINE_S):
            async with trio.open_nursery() as nursery:
                for _ in range(200):
                    nursery.start_soon(ask, port_of(faked), answers)
                await depth(200)
                nursery.start_soon(ask, port_of(faked), answers, "127.0.0.2", "/api/chat")
                await depth(201)
                await trio.to_thread.run_sync(faked.client.post, f"{worker}/uncordon")
        return answers

    answers = trio.run(scene)
    assert len(answers) == 201
    assert all(complete(answer) for answer in answers)
    asked = [json.loads(line)["path"] for line in given.read_text().splitlines()]
    order = [path for path in asked if path in ("/api/generate", "/api/chat")]
    assert order.index("/api/chat") <= 3, "the other's first was before it, and two have slots"


def test_ten_equal_callers_get_equal_shares(faked: Chimera) -> None:
    faked.env |= {"WORKERS": "cpu=2", "WORKER_SLOTS": "2", "QUEUE_SIZE": "500"}
    faked.start().ready(2)
    orders = [f"/admin/instances/{row['id']}/" for row in faked.instances()]
    for order in orders:
        faked.client.post(order + "cordon").raise_for_status()
    callers = [f"127.0.0.{10 + number}" for number in range(10) for _ in range(30)]

    async def scene() -> list[Answer]:
        answers: list[Answer] = []
        with trio.fail_after(DEADLINE_S):
            async with trio.open_nursery() as nursery:
                for caller in callers:
                    nursery.start_soon(ask, port_of(faked), answers, caller)
                while (await trio.to_thread.run_sync(faked.queue))["depth"] != len(callers):
                    continue
                for order in orders:
                    await trio.to_thread.run_sync(faked.client.post, order + "uncordon")
        return answers

    shares = Counter(answer.caller for answer in trio.run(scene)[:200])  # all of them still wait for more
    jain = sum(shares.values()) ** 2 / (10 * sum(share**2 for share in shares.values()))
    assert jain >= 0.95, shares


def test_a_thousand_clients_wait_in_bounded_memory_and_none_is_lost(faked: Chimera) -> None:
    faked.env |= {"WORKERS": "cpu=2", "WORKER_SLOTS": "4", "QUEUE_SIZE": "1000"}
    faked.start().ready(2)
    assert faked.process is not None
    itself = psutil.Process(faked.process.pid)
    assert all(complete(answer) for answer in trio.run(together, port_of(faked), ["127.0.0.1"] * 50))
    before = itself.memory_info().rss
    behave(faked, first_token_s=3.0)
    most = 0

    async def scene() -> list[Answer]:
        nonlocal most
        answers: list[Answer] = []
        with trio.fail_after(DEADLINE_S):
            async with trio.open_nursery() as nursery:
                for _ in range(1000):
                    nursery.start_soon(ask, port_of(faked), answers)
                depth = 0
                while depth < 992:
                    depth = (await trio.to_thread.run_sync(faked.queue))["depth"]
                most = itself.memory_info().rss - before
                behave(faked)
        return answers

    answers = trio.run(scene)
    assert Counter(answer.status for answer in answers) == {200: 1000}
    assert all(complete(answer) for answer in answers)
    assert most / 992 < MOST_BYTES_PER_WAITING
    wait_for(lambda: faked.queue()["depth"] == 0)
    assert all(row["inflight"] == 0 for row in faked.instances())


def test_each_conversation_stays_with_its_worker_and_an_answer_cut_short_is_none(faked: Chimera) -> None:
    """What `make bench` does with real Ollama, and that it can fail."""
    faked.env["WORKER_SLOTS"] = "4"
    faked.start().ready(2)
    held = run_round(faked.url, "tiny", talks=3, turns=3, words=300, seed=1)
    assert [len(talk.first_token_s) for talk in held.talks] == [3, 3, 3]
    assert all(len(set(talk.workers)) == 1 for talk in held.talks)
    behave(faked, truncate_after=1)
    with pytest.raises(RuntimeError):
        run_round(faked.url, "tiny", talks=1, turns=2, words=5, seed=1)
