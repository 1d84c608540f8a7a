"""What is run for a worker: its arguments, and exactly which variables it sees."""

from pathlib import Path

import pytest

from supervisor.command import MARK, PRIMARY, Command, instance_of, mark_of, worker_command
from supervisor.config import CLIENT_NAMES, NAMES, RESERVED, Settings
from supervisor.config_load import load_settings
from supervisor.config_values import MANAGED_BY
from supervisor.placement import CPU, Placement

GPU = Placement("GPU-aaaa")


def settings(**names: str) -> Settings:
    return load_settings({"STATE_DIR": "/state"} | names, {})


def command(
    environ: dict[str, str] | None = None, worker_id: str = "w1", placement: Placement = CPU, **names: str
) -> Command:
    return worker_command(
        settings(**names), Path("/bin/ollama"), environ or {}, worker_id=worker_id, placement=placement, port=11500,
        slots=3,
    )  # fmt: skip


def test_a_worker_is_started_through_setpriv_so_that_it_ends_with_chimera() -> None:
    assert command().argv == ("setpriv", "--pdeathsig", "TERM", "--", "/bin/ollama", "serve")
    bare = worker_command(
        settings(), Path("/bin/ollama"), {}, worker_id="w1", placement=CPU, port=1, slots=1, pdeathsig=False
    )
    assert bare.argv == ("/bin/ollama", "serve")


def test_a_worker_has_its_port_slots_and_mark() -> None:
    environ = command().environ
    assert environ["OLLAMA_HOST"] == "127.0.0.1:11500"
    assert environ["OLLAMA_NUM_PARALLEL"] == "3"
    assert environ[MARK] == mark_of(Path("/state"), "w1") == f"{instance_of(Path('/state'))}/w1"
    assert environ["OLLAMA_NOPRUNE"] == "1"


@pytest.mark.parametrize(("placement", "visible"), [(CPU, "-1"), (GPU, "GPU-aaaa")])
def test_a_worker_sees_its_placement_and_no_other(placement: Placement, visible: str) -> None:
    inherited = {
        "CUDA_VISIBLE_DEVICES": "0,1", "OLLAMA_VULKAN": "1", "ROCR_VISIBLE_DEVICES": "0", "HIP_VISIBLE_DEVICES": "0",
    }  # fmt: skip
    environ = command(inherited, placement=placement).environ
    assert environ["CUDA_VISIBLE_DEVICES"] == visible
    assert environ["OLLAMA_VULKAN"] == "0"
    assert environ["ROCR_VISIBLE_DEVICES"] == environ["HIP_VISIBLE_DEVICES"] == "-1"


def test_the_primary_prunes_the_store_and_gets_no_workers_variables() -> None:
    environ = command(worker_id=PRIMARY, WORKER_ENV="OLLAMA_FLASH_ATTENTION=1").environ
    assert "OLLAMA_NOPRUNE" not in environ
    assert "OLLAMA_FLASH_ATTENTION" not in environ
    assert environ["CUDA_VISIBLE_DEVICES"] == "-1"


def test_worker_env_overrides_what_is_inherited() -> None:
    environ = command({"A": "old", "B": "kept"}, WORKER_ENV="A=new,OLLAMA_KEEP_ALIVE=5m", REQUIRED_MODEL="m").environ
    assert (environ["A"], environ["B"], environ["OLLAMA_KEEP_ALIVE"]) == ("new", "kept", "5m")


@pytest.mark.parametrize(
    ("required", "inherited", "keep_alive"), [("m", {}, "-1"), ("", {}, None), ("m", {"OLLAMA_KEEP_ALIVE": "9"}, "9")]
)
def test_a_required_model_stays_loaded_unless_somebody_says_otherwise(
    required: str, inherited: dict[str, str], keep_alive: str | None
) -> None:
    assert command(inherited, REQUIRED_MODEL=required).environ.get("OLLAMA_KEEP_ALIVE") == keep_alive


@pytest.mark.parametrize(
    ("inherited", "worker_env", "multiuser"),
    [({}, "", "1"), ({"OLLAMA_MULTIUSER_CACHE": "0"}, "", "0"), ({}, "OLLAMA_MULTIUSER_CACHE=0", "0")],
)
def test_a_worker_keeps_the_conversations_of_many_unless_somebody_says_otherwise(
    inherited: dict[str, str], worker_env: str, multiuser: str
) -> None:
    assert command(inherited, WORKER_ENV=worker_env).environ["OLLAMA_MULTIUSER_CACHE"] == multiuser


@pytest.mark.parametrize(
    "name", sorted((NAMES | RESERVED | CLIENT_NAMES | {"NOTIFY_SOCKET", "LISTEN_FDS"}) - {"OLLAMA_MODELS"})
)
def test_chimeras_own_variables_are_not_handed_on(name: str) -> None:
    assert name not in command({name: "secret"}).environ


def test_one_store_for_all() -> None:
    assert command(OLLAMA_MODELS="/m").environ["OLLAMA_MODELS"] == "/m"
    assert command({"OLLAMA_MODELS": "/inherited"}).environ["OLLAMA_MODELS"] == "/inherited"
    assert "OLLAMA_MODELS" not in command().environ


@pytest.mark.parametrize(("inherited", "home"), [({}, "/"), ({"HOME": ""}, "/"), ({"HOME": "/h"}, "/h")])
def test_a_worker_always_has_a_home(inherited: dict[str, str], home: str) -> None:
    assert command(inherited).environ["HOME"] == home


def test_worker_env_is_either_refused_or_heeded() -> None:
    """What Chimera sets for every worker is in MANAGED_BY, so that nobody's variable is ignored without a word."""
    heeded = command({"HOME": "/h"}, placement=GPU, WORKER_ENV="OLLAMA_MULTIUSER_CACHE=0").environ
    assert heeded.pop("OLLAMA_MULTIUSER_CACHE") == "0"
    assert heeded.keys() - {"HOME"} <= MANAGED_BY.keys()


def test_two_chimeras_have_different_marks() -> None:
    assert instance_of(Path("/a")) != instance_of(Path("/b"))
    assert instance_of(Path("/a/")) == instance_of(Path("/a"))
