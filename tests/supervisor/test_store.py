"""Required models are brought in through the primary: there already, pulled, or created from a recipe."""

import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC
from functools import partial
from pathlib import Path

import pytest
import trio

from supervisor import restart, store
from supervisor.errors import ModelUnavailable
from supervisor.events import EventLog
from supervisor.probe import Prober
from supervisor.store import ModelStore, PullProgress, full_name
from tests.fakes.fake_ollama import MODEL_BYTES, add_model, write_control
from tests.fakes.house import fake_environ
from tests.fakes.serving import FAKE_OLLAMA, Fake, free_port, serving


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(restart, "FIRST_DELAY_S", 0.02)
    monkeypatch.setenv("PATH", fake_environ(tmp_path)["PATH"])


class Kept:
    """A store and the primary that it talks to."""

    def __init__(self, fake: Fake, it: ModelStore, prober: Prober, events: EventLog) -> None:
        self.fake, self.store, self.prober, self.events = fake, it, prober, events
        self.port = int(fake.url.rsplit(":", 1)[1])

    async def keep(self, *models: str) -> None:
        with trio.fail_after(10):
            await self.store.keep(models, lambda: 0.5)

    def happened(self) -> list[str]:
        return [str(event["event"]) for event in self.events.newest()]

    async def stored(self) -> frozenset[str] | None:
        return await self.prober.stored(self.port)


@asynccontextmanager
async def kept(
    tmp_path: Path, recipes: dict[str, Path] | None = None, ollama: Path = FAKE_OLLAMA
) -> AsyncIterator[Kept]:
    prober, events = Prober(), EventLog()
    with serving(tmp_path, model="there") as fake:
        port = int(fake.url.rsplit(":", 1)[1])
        yield Kept(fake, ModelStore(prober, port, ollama, recipes or {}, events), prober, events)
    await prober.aclose()


@pytest.mark.parametrize("line", ["", "[]", "nothing", "9" * 5000, "[" * 5000, '{"a":' * 5000, "\ud800"])
def test_a_line_that_is_none_of_ollamas_is_said_to_be_one(line: str) -> None:
    fields, fault = store._read(line)
    assert fields == {}
    assert fault is not None
    assert fault.startswith("the primary said")


@pytest.mark.parametrize(
    ("model", "full"),
    [
        ("llama3", "llama3:latest"),
        ("llama3:8b", "llama3:8b"),
        ("hf.co/a/b", "hf.co/a/b:latest"),
        ("host:5000/a/b", "host:5000/a/b:latest"),
        ("host:5000/a/b:q4", "host:5000/a/b:q4"),
    ],
)
def test_a_name_without_a_tag_is_latest(model: str, full: str) -> None:
    assert full_name(model) == full


async def test_a_model_that_is_there_is_left_alone(tmp_path: Path) -> None:
    async with kept(tmp_path) as it:
        await it.keep("there")
        assert it.happened() == []
        with trio.fail_after(30):
            await it.store.wait_present()


async def test_no_required_model_is_present_at_once(tmp_path: Path) -> None:
    it = ModelStore(Prober(), 1, FAKE_OLLAMA, {}, EventLog())
    await it.keep((), lambda: 0.5)
    with trio.fail_after(30):
        await it.wait_present()


async def test_missing_models_are_pulled(tmp_path: Path) -> None:
    async with kept(tmp_path) as it:
        await it.keep("new", "there", "other:1b")
        assert await it.stored() == frozenset({"there:latest", "new:latest", "other:1b"})
        happened = [event for event in it.happened() if event != "model_pull"]
        assert happened == ["model_missing", "model_present"] * 2
        assert (it.store.problem, it.store.progress) == (None, None)


async def test_a_pull_shows_how_far_it_is(tmp_path: Path) -> None:
    async with kept(tmp_path) as it:
        it.fake.behaves(pull_s=0.5)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(it.keep, "new")
            with trio.fail_after(30):
                while "50 %" not in (it.store.progress or ""):
                    await trio.sleep(0.01)
            assert it.store.progress is not None
            assert it.store.progress.startswith("pulling new:latest: pulling ")
            nursery.cancel_scope.cancel()
        assert "new:latest" not in (await it.stored() or ())


async def test_a_pull_that_fails_is_tried_again_until_it_works(tmp_path: Path) -> None:
    async with kept(tmp_path) as it:
        it.fake.behaves(pull_error="no route to the registry")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(it.keep, "new")
            with trio.fail_after(30):
                wording = (
                    r"new:latest cannot be pulled: no route to the registry; tried \d+ times, another try in \d+ s"
                )
                while not re.fullmatch(wording, it.store.problem or ""):
                    await trio.sleep(0.005)
            trouble = it.store.trouble
            assert trouble is not None
            assert (trouble.what, trouble.since.tzinfo) == (
                "new:latest cannot be pulled: no route to the registry", UTC,
            )  # fmt: skip
            it.fake.behaves()
            with trio.fail_after(30):
                await it.store.wait_present()
        assert it.store.problem is None
        assert "new:latest" in (await it.stored() or ())
        first, second, *_ = (e for e in it.events.newest() if e["event"] == "model_unavailable")
        assert second["retry_in_s"] >= first["retry_in_s"]
        assert (first["tried"], second["tried"]) == (1, 2)
        assert first["at"][:10] <= trouble.since.isoformat()
        assert it.store.trouble is None


async def test_a_pull_tells_of_its_start_its_tenths_and_its_end(tmp_path: Path) -> None:
    async with kept(tmp_path) as it:
        await it.keep("new")
        told = [event for event in it.events.newest() if event["event"] == "model_pull"]
        assert [event["phase"] for event in told] == ["started", *["under way"] * 4, "complete"]
        assert [event["percent"] for event in told[1:]] == [25, 50, 75, 100, 100]
        assert (told[-1]["done_bytes"], told[-1]["total_bytes"]) == (MODEL_BYTES, MODEL_BYTES)


async def test_two_who_ask_for_the_same_model_pull_it_once(tmp_path: Path) -> None:
    async with kept(tmp_path) as it:
        it.fake.behaves(pull_s=0.2)
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(it.store.bring_in, "new")
                nursery.start_soon(it.store.bring_in, "new:latest")
                nursery.start_soon(it.store.bring_in, "other")
        started = [event["model"] for event in it.events.newest() if event.get("phase") == "started"]
        assert sorted(started) == ["new:latest", "other:latest"]


async def test_a_failed_pull_fails_for_all_who_asked(tmp_path: Path) -> None:
    async with kept(tmp_path) as it:
        it.fake.behaves(pull_s=0.1, pull_error="no space left")
        reasons: list[str] = []

        async def ask() -> None:
            with pytest.raises(ModelUnavailable) as caught:
                await it.store.bring_in("new")
            reasons.append(str(caught.value))

        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask)
                nursery.start_soon(ask)
        assert reasons == ["new:latest cannot be pulled: no space left"] * 2
        assert it.happened().count("model_pull") >= 1
        assert it.happened().count("model_missing") == 1


async def test_a_pull_whose_first_asker_leaves_is_taken_over(tmp_path: Path) -> None:
    async with kept(tmp_path) as it:
        it.fake.behaves(pull_s=60)
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                leaving = trio.CancelScope()

                async def leaver() -> None:
                    with leaving:
                        await it.store.bring_in("new")

                nursery.start_soon(leaver)
                while it.store.progress is None:  # asked, and told something: httpx does not tidy up within a question
                    await trio.sleep(0.005)
                nursery.start_soon(it.store.bring_in, "new")
                it.fake.behaves()
                leaving.cancel()
        assert "new:latest" in (await it.stored() or ())


def test_the_share_of_a_pull_counts_all_layers_and_tells_each_tenth_once() -> None:
    def line(digest: str, done: int, total: int) -> dict[str, object]:
        return {"digest": digest, "completed": done, "total": total}

    share = PullProgress()
    assert not share.take({"status": "pulling manifest"})
    assert share.percent == 0
    assert not share.take({"digest": "small", "total": 10})
    assert share.take(line("small", 10, 10))
    assert not share.take(line("large", 0, 990))  # the whole grew: 1 % of it is there
    told = [share.percent for done in range(0, 991, 10) if share.take(line("large", done, 990))]
    assert told == list(range(10, 101, 10))
    assert (share.done_bytes, share.total_bytes) == (1000, 1000)


async def test_a_primary_that_does_not_answer_is_asked_again(tmp_path: Path) -> None:
    port, events = free_port(), EventLog()
    it = ModelStore(Prober(), port, FAKE_OLLAMA, {}, events)
    with trio.move_on_after(0.3):
        await it.keep(("m",), lambda: 0.5)
    assert it.problem is not None
    assert it.problem.startswith("the primary does not answer /api/tags; tried ")
    assert it.trouble is not None
    with trio.move_on_after(0.05) as waiting:
        await it.wait_present()
    assert waiting.cancelled_caught


async def test_a_model_with_a_recipe_is_created(tmp_path: Path) -> None:
    recipe = tmp_path / "Modelfile"
    recipe.write_text("FROM ./model.gguf\n")
    async with kept(tmp_path, {"made": recipe}) as it:
        await it.keep("made")
        assert "made:latest" in (await it.stored() or ())
        assert it.events.newest()[0]["bring_in"] == "create"


async def test_a_recipe_that_fails_says_ollamas_last_words(tmp_path: Path) -> None:
    recipe = tmp_path / "Modelfile"
    recipe.write_text("nothing\n")
    async with kept(tmp_path, {"made": recipe}) as it:
        with pytest.raises(ModelUnavailable, match=r"^made:latest cannot be created: Error: no FROM line$"):
            await it.store._ensure("made:latest")


async def test_an_ollama_that_cannot_be_run_is_a_reason_and_no_crash(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    async with kept(tmp_path, {"made": tmp_path}, ollama=gone) as it:
        with pytest.raises(ModelUnavailable, match=f"^made:latest cannot be created: {gone}: No such file"):
            await it.store._ensure("made:latest")


async def test_a_create_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "CREATE_TIMEOUT_S", 0.1)
    hung = tmp_path / "hung"
    hung.write_text("#!/bin/sh\nexec sleep 60\n")
    hung.chmod(0o755)
    async with kept(tmp_path, {"made": tmp_path}, ollama=hung) as it:
        with trio.fail_after(30), pytest.raises(ModelUnavailable, match=r"was not created within 0.1 s$"):
            await it.store._ensure("made:latest")


def chunked(lines: Sequence[bytes]) -> bytes:
    body = b"\n".join(lines) + b"\n"
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s" % (len(body), body)


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ([b"<html>"], "the primary said '<html>'"),
        ([b"null"], "the primary said 'null'"),
        ([b"[1]"], r"the primary said '\[1\]'"),
        ([b'{"status":"pulling"}'], "the answer ended with 'pulling'"),
        ([b""], "the answer ended with None"),
        ([b'{"error":{"code":5}}'], "{'code': 5}"),
    ],
)
async def test_a_pull_with_an_odd_answer_is_a_reason_and_no_crash(
    tmp_path: Path, lines: list[bytes], reason: str
) -> None:
    async def talk(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some(65536)
            await stream.send_all(chunked(lines))

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, talk, 0, host="127.0.0.1"))
        it = ModelStore(Prober(), listeners[0].socket.getsockname()[1], FAKE_OLLAMA, {}, EventLog())
        with trio.fail_after(30), pytest.raises(ModelUnavailable, match=f"^m cannot be pulled: .*{reason}"):
            await it._pull("m")
        nursery.cancel_scope.cancel()


async def test_a_pull_that_falls_silent_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "PULL_SILENCE_S", 0.1)
    async with kept(tmp_path) as it:
        it.fake.behaves(pull_s=60)
        with trio.fail_after(30), pytest.raises(ModelUnavailable, match=r"^m cannot be pulled: ReadTimeout$"):
            await it.store._pull("m")


def test_the_fakes_store_is_the_tests_own(tmp_path: Path) -> None:
    add_model(tmp_path, "x")
    write_control(tmp_path / "control.json")
    assert (tmp_path / "fake-models").is_dir()
