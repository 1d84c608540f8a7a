"""The official `ollama` command against the gateway, and what it does to a whole fleet; two workers of one slot."""

import hashlib
import json
import struct
from collections.abc import Iterator
from pathlib import Path

import httpx
import ollama
import psutil
import pytest

from supervisor.embedded import MODEL, Embedded
from tests.fakes.chimera import Chimera, chimera, path_without_ollama, wait_for
from tests.fakes.command import Command, Shown
from tests.fakes.registry import Registry, registry
from tests.fakes.talker import CALL, TALKER, WEATHER, modelfile

MIB = 1024**2


@pytest.fixture(scope="module")
def fleet(embedded: Embedded, real_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chimera]:
    with chimera(
        tmp_path_factory.mktemp("fleet"),
        OLLAMA_MODELS=str(real_models), OLLAMA_BIN="", WORKERS="cpu=2", WORKER_SLOTS="1", PATH=path_without_ollama(),
    ) as made:  # fmt: skip
        yield made.start().ready(2)
        with ollama.Client(made.url, trust_env=False) as client:
            for model in client.list().models:
                if model.model != MODEL:
                    client.delete(str(model.model))


@pytest.fixture(scope="module")
def command(embedded: Embedded, tmp_path_factory: pytest.TempPathFactory) -> Command:
    return Command(embedded.ollama_path, tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def offers() -> Iterator[Registry]:
    with registry() as made:
        yield made


@pytest.fixture(scope="module")
def talker(fleet: Chimera, command: Command) -> str:
    """A model that the command has made of a Modelfile."""
    (command.home / "Modelfile").write_text(modelfile())
    assert command(fleet.port, "create", TALKER).err[-1] == "success"
    return TALKER


@pytest.fixture
def emptied(fleet: Chimera, command: Command, talker: str) -> None:
    """No worker has a model loaded: one file of weights, which Ollama lists by the name that it was loaded by."""
    for model in (MODEL, talker):
        assert command(fleet.port, "stop", model).status == 0
    wait_for(lambda: loaded(fleet) == [[], []])


def both(fleet: Chimera, command: Command, *words: str) -> Shown:
    """Say the same to a worker and to the gateway; return what is shown, the same for both."""
    own = command(fleet.instance("w1")["port"], *words)
    assert command(fleet.port, *words) == own
    return own


def loaded(fleet: Chimera) -> list[list[str]]:
    """What each worker itself says it holds."""
    urls = [row["url"] for row in fleet.instances()]
    return [[model["name"] for model in httpx.get(f"{url}/api/ps").json()["models"]] for url in urls]


# -- the command -------------------------------------------------------------------------------------------------------


def test_create_list_and_run(fleet: Chimera, command: Command, talker: str) -> None:
    assert {line.split()[0] for line in both(fleet, command, "list").out[1:]} >= {MODEL, f"{talker}:latest"}
    assert both(fleet, command, "run", talker, WEATHER).out == [CALL]
    assert command(fleet.port, "run", talker, stdin=WEATHER).out == [CALL]


def test_show(fleet: Chimera, command: Command, talker: str) -> None:
    for words in (("show", MODEL), ("show", talker), ("show", "--modelfile", talker)):
        ours, own = command(fleet.port, *words), command(fleet.instance("w1")["port"], *words)
        assert sorted(ours.out) == sorted(own.out)  # Ollama itself gives parameters in a new order each time
        assert (ours.status, ours.err) == (0, own.err)


def test_copy_and_remove(fleet: Chimera, command: Command, talker: str) -> None:
    assert command(fleet.port, "cp", talker, "twin").out == [f"copied '{talker}' to 'twin'"]
    assert both(fleet, command, "show", "--template", "twin").status == 0
    assert command(fleet.port, "rm", "twin").out == ["deleted 'twin'"]
    assert both(fleet, command, "show", "twin").err == ["Error: model 'twin' not found"]


def test_what_is_refused_is_told_in_the_same_words(fleet: Chimera, command: Command, offers: Registry) -> None:
    nobody = f"127.0.0.1:{offers.port}/library/nobody"
    (command.home / "Nothing").write_text("NONSENSE\n")
    for words in (
        ("show", "nobody"),
        ("cp", "nobody", "somebody"),
        ("rm", "nobody"),
        ("stop", "nobody"),
        ("run", "--insecure", nobody, "hello"),
        ("pull", "--insecure", nobody),
        ("pull", nobody),  # not without https
        ("pull", "127.0.0.1:1/nobody/none"),
        ("pull", "no such name!"),
        ("push", "nobody"),
        ("create", "made", "-f", "Nothing"),
        ("run", MODEL, "--format", "xml", "hello"),
    ):
        shown = both(fleet, command, *words)
        assert shown.status != 0, words
        assert shown.err[-1].startswith("Error: "), words


def test_a_file_of_weights_is_sent_up_and_made_a_model(fleet: Chimera, command: Command) -> None:
    def text(value: bytes) -> bytes:
        return struct.pack("<Q", len(value)) + value

    key = text(b"general.architecture") + struct.pack("<I", 8) + text(b"llama")
    (command.home / "tiny.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + key)
    (command.home / "Tiny").write_text("FROM ./tiny.gguf\n")
    assert command(fleet.port, "create", "tiny", "-f", "Tiny").err[-1] == "success"
    with ollama.Client(fleet.url, trust_env=False) as client:
        assert client.show("tiny").details is not None
    assert command(fleet.port, "rm", "tiny").status == 0


def test_a_pull_that_succeeds(fleet: Chimera, command: Command, offers: Registry) -> None:
    """Its steps are Ollama's own, but for progress in between, of which there is more or less by how fast it goes."""
    name = offers.add("library/offered", b"GGUF" + bytes(300_000))
    asked = {"model": name, "insecure": True}

    def steps(port: int) -> list[tuple[str, str]]:
        offers.asked.clear()
        with httpx.stream("POST", f"http://127.0.0.1:{port}/api/pull", json=asked, trust_env=False) as answer:
            lines = [json.loads(line) for line in answer.iter_lines()]
        assert any("/blobs/" in path for path in offers.asked), "it was fetched, and not there yet"
        return list(dict.fromkeys((line["status"], line.get("digest", "")) for line in lines))

    own = steps(fleet.primary_port)
    assert [status for status, _ in own][-3:] == ["verifying sha256 digest", "writing manifest", "success"]
    assert command(fleet.port, "rm", name).out == [f"deleted '{name}'"]
    assert steps(fleet.port) == own
    assert both(fleet, command, "pull", "--insecure", name).err[-1] == "success"
    assert f"{name}:latest" in {line.split()[0] for line in both(fleet, command, "list").out}
    assert command(fleet.port, "rm", name).status == 0


# -- the fleet ---------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("emptied")
def test_run_stop_and_ps_are_about_every_worker(fleet: Chimera, command: Command, talker: str) -> None:
    assert command(fleet.port, "ps").out == ["NAME    ID    SIZE    PROCESSOR    UNTIL"]

    shown = command.typed(fleet.port, "run", "--keepalive", "1h", talker, says=[WEATHER, "/bye"])
    assert any(CALL in line for line in shown.out), shown
    assert loaded(fleet) == [[f"{talker}:latest"]] * 2, "all workers are made ready before the first question"
    own = command(fleet.instance("w1")["port"], "ps").out[1].split()
    ours = command(fleet.port, "ps").out[1].split()
    assert (ours[:2], ours[4:]) == (own[:2], own[4:])
    assert float(ours[2]) == pytest.approx(2 * float(own[2]), abs=2), "the memory of both copies"
    assert command(fleet.port, "stop", talker).status == 0
    wait_for(lambda: loaded(fleet) == [[], []])


@pytest.mark.usefixtures("emptied")
def test_the_loaded_models_of_a_fleet(fleet: Chimera) -> None:
    with ollama.Client(fleet.url, trust_env=False) as client:
        assert client.generate(MODEL, keep_alive=-1).done_reason == "load"
    rows = [httpx.get(f"{row['url']}/api/ps").json()["models"][0] for row in fleet.instances()]
    (merged,) = fleet.client.get("/api/ps").json()["models"]
    assert merged["workers"] == ["w1", "w2"]
    assert merged["size"] == sum(row["size"] for row in rows)
    assert merged["expires_at"] == max(row["expires_at"] for row in rows)
    assert merged["digest"] == rows[0]["digest"]


@pytest.mark.usefixtures("emptied")
def test_a_cordoned_worker_is_left_out_of_a_load_and_not_of_an_unload(fleet: Chimera, command: Command) -> None:
    fleet.client.post("/api/generate", json={"model": MODEL}).raise_for_status()
    fleet.client.post("/admin/instances/w2/cordon").raise_for_status()
    try:
        assert fleet.client.get("/api/ps").json()["models"][0]["workers"] == ["w1", "w2"]
        assert command(fleet.port, "stop", MODEL).status == 0
        wait_for(lambda: loaded(fleet) == [[], []])
        loading = fleet.client.post("/api/generate", json={"model": MODEL})
        assert (loading.json()["done_reason"], loading.headers["x-chimera-worker"]) == ("load", "w1")
        assert loaded(fleet) == [[MODEL], []]
    finally:
        fleet.client.post("/admin/instances/w2/uncordon").raise_for_status()


@pytest.mark.usefixtures("emptied")
def test_an_answer_after_which_the_model_goes(fleet: Chimera) -> None:
    asked = {
        "model": MODEL,
        "prompt": "Hello",
        "raw": True,
        "stream": False,
        "keep_alive": 0,
        "options": {"num_predict": 1},
    }
    fleet.client.post("/api/generate", json={"model": MODEL}).raise_for_status()
    answer = fleet.client.post("/api/generate", json=asked)
    assert answer.json()["done"]
    left = {"w1": [[], [MODEL]], "w2": [[MODEL], []]}[answer.headers["x-chimera-worker"]]
    wait_for(lambda: loaded(fleet) == left)
    # whoever still has it is asked next, and not the one that would have to load it first
    again = fleet.client.post("/api/generate", json=asked)
    assert again.headers["x-chimera-worker"] != answer.headers["x-chimera-worker"]
    wait_for(lambda: loaded(fleet) == [[], []])


def test_weights_stream_up_without_being_held(fleet: Chimera, real_models: Path) -> None:
    part, count = bytes(MIB), 160
    digest = hashlib.sha256(part * count).hexdigest()
    assert fleet.process is not None
    before = psutil.Process(fleet.process.pid).memory_info().rss
    most = 0

    def parts() -> Iterator[bytes]:
        nonlocal most
        assert fleet.process is not None
        for _ in range(count):
            most = max(most, psutil.Process(fleet.process.pid).memory_info().rss)
            yield part

    answer = fleet.client.post(f"/api/blobs/sha256:{digest}", content=parts())
    (real_models / "blobs" / f"sha256-{digest}").unlink()
    assert answer.status_code == 201
    assert most - before < 40 * MIB
