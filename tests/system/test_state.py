"""STATE_DIR in a whole Chimera: whatever is in its files, it starts, says what it set aside, and answers."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.chimera import Chimera, wait_for

GENERATE = {"model": "tiny", "prompt": "hello", "stream": False}
FILES = ("fleet.json", "quarantined.json", "reload.json", "chimera.db")


def said(faked: Chimera) -> list[dict[str, Any]]:
    return [
        event for event in faked.events() if event["event"] in ("state_file_set_aside", "keys_lost", "keys_put_back")
    ]


def damage(state_dir: Path, content: bytes) -> None:
    state_dir.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        (state_dir / name).write_bytes(content)


@pytest.mark.parametrize("content", [b"\xaa\x00" * 2000, b'{"version": 99, "workers": [', b"["])
def test_with_every_file_damaged_it_starts_says_so_and_answers(faked: Chimera, content: bytes) -> None:
    damage(faked.state_dir, content)
    faked.start().ready(2)
    assert faked.client.post("/api/generate", json=GENERATE).status_code == 200
    events = said(faked)
    assert {Path(event.get("file") or event["database"]).name for event in events} == set(FILES)
    for event in events:
        assert Path(event["kept_as"]).read_bytes() == content
    logged = [json.loads(line) for line in faked.err().splitlines() if line.startswith("{")]
    assert len([line for line in logged if "kept_as" in line]) == len(FILES), "each is one line"
    assert all(line["level"] == "error" for line in logged if "kept_as" in line)

    assert faked.command("spawn", "--gpu", "cpu", "--wait").returncode == 0
    assert faked.stop() == 0
    faked.start().ready(3)  # what was rebuilt is kept
    assert said(faked) == []


def test_folders_in_their_places_are_set_aside_too_and_so_is_one_in_the_locks(faked: Chimera) -> None:
    for name in (*FILES, "chimera.pid"):
        (faked.state_dir / name).mkdir(parents=True)
    faked.start().ready(2)
    assert faked.client.post("/api/generate", json=GENERATE).status_code == 200
    assert len(said(faked)) == len(FILES)
    assert "what was in the lock file's place is set aside" in faked.err()
    assert faked.stop() == 0


def test_lost_keys_let_nobody_in_and_a_copy_brings_them_back(faked: Chimera) -> None:
    faked.env |= {"API_KEYS_REQUIRED": "true", "WORKERS": "cpu=1"}
    faked.start().ready(1)
    secret = faked.command("keys", "create", "laptop").stdout.strip()
    headers = {"Authorization": f"Bearer {secret}"}
    assert faked.client.post("/api/generate", json=GENERATE, headers=headers).status_code == 200
    assert faked.stop() == 0

    database = faked.state_dir / "chimera.db"
    os.truncate(database, database.stat().st_size // 2)
    faked.start().ready(1)
    (event,) = said(faked)
    assert (event["event"], event["keys"]) == ("keys_put_back", 1)
    assert faked.client.post("/api/generate", json=GENERATE, headers=headers).status_code == 200
    assert faked.client.post("/api/generate", json=GENERATE).status_code == 401
    assert faked.stop() == 0

    for path in faked.state_dir.glob("chimera.db*"):
        path.write_bytes(b"\xaa" * 5000)
    faked.start().ready(1)
    (event,) = said(faked)
    assert event["event"] == "keys_lost"
    for given in (headers, {}):
        assert faked.client.post("/api/generate", json=GENERATE, headers=given).status_code == 401
    again = {"Authorization": f"Bearer {faked.command('keys', 'create', 'laptop').stdout.strip()}"}
    assert faked.client.post("/api/generate", json=GENERATE, headers=again).status_code == 200


def test_a_kill_while_keys_and_fleet_change_leaves_files_that_can_be_read(faked: Chimera) -> None:
    faked.env["WORKERS"] = "cpu=1"
    faked.start().ready(1)
    assert faked.command("keys", "create", "laptop").returncode == 0
    assert faked.command("spawn", "--gpu", "cpu").returncode == 0
    assert faked.process is not None
    faked.process.kill()
    faked.process.wait()
    faked.start().ready(2)
    assert said(faked) == []
    (row,) = wait_for(lambda: faked.client.get("/admin/keys").json()["keys"])
    assert row["name"] == "laptop"
