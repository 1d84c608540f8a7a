"""Two GPUs on a machine that has none: the unmodified nvidia-ml-py on a fake driver, and fake workers."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.chimera import Chimera, chimera, wait_for
from tests.fakes.fake_ollama import add_model
from tests.fakes.nvml import GPU_A, GPU_B, FakeNvml, build_fake_nvml


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_fake_nvml(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def nvml(library: Path, tmp_path: Path) -> FakeNvml:
    fake = FakeNvml(library, tmp_path / "nvml.state")
    fake.write()
    return fake


@pytest.fixture
def gpus(nvml: FakeNvml, tmp_path: Path) -> Iterator[Chimera]:
    with chimera(tmp_path, REQUIRED_MODEL="tiny", **nvml.environ()) as made:
        Path(made.env["OLLAMA_MODELS"]).mkdir()
        add_model(Path(made.env["OLLAMA_MODELS"]), "tiny")
        yield made


def pinned_to(gpus: Chimera) -> dict[str, str]:
    """Return what each worker's own process says it sees."""
    seen: dict[str, str] = {}
    for row in gpus.instances():
        answer = gpus.client.post(f"{row['url']}/api/generate", json={"model": "tiny", "prompt": "?", "stream": False})
        seen[row["id"]] = answer.json()["worker_env"]["CUDA_VISIBLE_DEVICES"]
    return seen


def test_auto_is_one_worker_per_gpu_pinned_by_uuid(gpus: Chimera) -> None:
    gpus.start().ready(2)
    assert pinned_to(gpus) == {"w1": GPU_A, "w2": GPU_B}
    assert [row["gpu"] for row in gpus.instances()] == [
        {"index": 0, "uuid": GPU_A, "name": "Fake H200"},
        {"index": 1, "uuid": GPU_B, "name": "Fake H200"},
    ]
    wait_for(lambda: all((row["gpu_memory_bytes"] or 0) > 0 for row in gpus.instances()))


def test_spawn_and_prune_per_gpu(gpus: Chimera) -> None:
    gpus.start().ready(2)
    spawned = gpus.client.post("/admin/instances/spawn", json={"gpu": 1, "count": 2, "wait": True})
    assert spawned.status_code == 202
    assert [row["placement"] for row in spawned.json()["instances"]] == [GPU_B, GPU_B]
    assert pinned_to(gpus) == {"w1": GPU_A, "w2": GPU_B, "w3": GPU_B, "w4": GPU_B}

    spread = gpus.client.post("/admin/instances/spawn", json={})
    assert spread.json()["instances"][0]["placement"] == GPU_A, "the GPU with fewer workers gets the next one"

    pruned = gpus.client.post("/admin/instances/prune", json={"gpu": GPU_B[:8]})
    assert pruned.json() == {"pruned": ["w2", "w3", "w4"]}
    wait_for(lambda: [row["id"] for row in gpus.instances()] == ["w1", "w5"])


@pytest.mark.parametrize("wanted", [7, "GPU-cccc"])
def test_an_unknown_gpu_is_404_with_those_that_exist(gpus: Chimera, wanted: int | str) -> None:
    gpus.start().ready(2)
    refused = gpus.client.post("/admin/instances/spawn", json={"gpu": wanted})
    assert refused.status_code == 404
    assert str(wanted) in refused.json()["error"]
    assert GPU_A in refused.json()["error"]
    assert GPU_B in refused.json()["error"]
    assert gpus.command("spawn", "--gpu", str(wanted)).returncode == 1


def test_the_gpu_table(gpus: Chimera) -> None:
    gpus.start().ready(2)
    rows = gpus.client.get("/admin/gpus").json()["gpus"]
    assert [(row["index"], row["uuid"], row["workers"], row["verdict"]) for row in rows] == [
        (0, GPU_A, ["w1"], "well"),
        (1, GPU_B, ["w2"], "well"),
    ]
    table = gpus.command("gpus").stdout
    assert "Fake H200" in table
    assert "35 °C" in table
    assert "75 W" in table


def test_a_quarantined_gpu_takes_no_worker_until_it_is_released(gpus: Chimera) -> None:
    gpus.start().ready(2)
    assert gpus.client.post(f"/admin/gpus/{GPU_A}/quarantine").status_code == 202
    wait_for(lambda: gpus.instance("w1")["state"] == "QUARANTINED")
    assert gpus.client.post("/admin/instances/spawn", json={"gpu": GPU_A}).status_code == 409
    assert gpus.client.post("/admin/instances/w1/restart").status_code == 409
    assert gpus.client.post("/admin/instances/spawn").json()["instances"][0]["placement"] == GPU_B
    assert gpus.client.post(f"/admin/gpus/{GPU_A}/release").status_code == 202
    gpus.ready(3)


def test_a_lost_gpu_is_quarantined_and_comes_back_by_itself(gpus: Chimera, nvml: FakeNvml) -> None:
    gpus.start().ready(2)
    nvml.gpus[1].ret = 15  # NVML_ERROR_GPU_IS_LOST
    nvml.write()
    wait_for(lambda: gpus.instance("w2")["state"] == "QUARANTINED")
    gpu = gpus.client.get("/admin/gpus").json()["gpus"][1]
    assert (gpu["verdict"], gpu["workers"]) == ("quarantined", ["w2"])
    assert "lost" in gpu["trouble"]["what"]
    assert "lost" in gpus.instance("w2")["trouble"]["what"]
    assert "by itself" in gpu["trouble"]["next"]
    assert gpus.client.post("/admin/instances/w2/restart").status_code == 409
    status = gpus.command("status").stdout
    assert "QUARANTINED" in status
    assert "next: it is released by itself" in " ".join(status.split())
    nvml.gpus[1].ret = 0
    nvml.write()
    wait_for(lambda: gpus.instance("w2")["state"] in ("IDLE", "BUSY"), 90)
