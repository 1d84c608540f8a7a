"""What the doctor reads of Chimera itself, from folders and ports of the test's own."""

import hashlib
import json
import os
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from supervisor import examine_service
from supervisor.doctor import Finding
from supervisor.doctor_service import OURS
from supervisor.examine import Account, Subject, account_of
from supervisor.examine_service import certificate, gateway, manifest_of, ports, rights, settings, store, unit
from tests.fakes.certificates import write_pair
from tests.fakes.serving import free_port
from tests.supervisor.test_examine_machine import subject, verdict


def told(found: object) -> list[tuple[str, str]]:
    assert isinstance(found, list | tuple)
    return [(f.verdict.value, f.text) for f in found if isinstance(f, Finding)]


def test_the_settings_file_is_told_of(tmp_path: Path) -> None:
    it = subject(tmp_path)
    assert told(settings(it)) == [("ok", f"no {it.env_file}: the environment and the defaults")]
    it.env_file.write_text("")
    assert told(settings(it)) == [("ok", f"{it.env_file}: no fault")]
    assert verdict(settings(replace(it, hidden=True))) == ["warning"]


# -- ports -----------------------------------------------------------------------------------------------------------


def test_a_port_of_another_program_is_named_with_it(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        names = {"GATEWAY_PORT": str(port), "OLLAMA_PORT": str(free_port())}
        first, second, third = ports(subject(tmp_path, **names))
        ours = ports(replace(subject(tmp_path, **names), pid=os.getpid()))
    assert (first.verdict, f"process {os.getpid()} (" in first.text) == ("fault", True)
    assert second.verdict == "ok"
    assert third.check == "ports"
    assert [f.verdict.value for f in ours[:2]] == ["ok", "warning"]


def test_a_port_that_systemd_holds_for_the_service_is_ours(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        it = subject(tmp_path, GATEWAY_PORT=str(taken.getsockname()[1]), OLLAMA_PORT=str(free_port()))
        listed = examine_service.listeners(frozenset({os.getpid()}), running=False)
    assert listed[it.settings.gateway_port] == OURS


# -- the store -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "path"),
    [
        ("llama3:latest", "registry.ollama.ai/library/llama3/latest"),
        ("me/llama3:8b", "registry.ollama.ai/me/llama3/8b"),
        ("hf.co/me/llama3:Q4", "hf.co/me/llama3/Q4"),
    ],
)
def test_a_models_manifest_has_a_place_of_its_own(model: str, path: str) -> None:
    assert manifest_of(Path("/s"), model) == Path("/s/manifests") / path


def stored(folder: Path, model: str, *blobs: bytes) -> list[Path]:
    """Put a model into a store."""
    rows, paths = [], []
    for data in blobs:
        digest = hashlib.sha256(data).hexdigest()
        paths.append(folder / "blobs" / f"sha256-{digest}")
        paths[-1].parent.mkdir(parents=True, exist_ok=True)
        paths[-1].write_bytes(data)
        rows.append({"digest": f"sha256:{digest}", "size": len(data)})
    manifest = manifest_of(folder, model)
    manifest.parent.mkdir(parents=True)
    manifest.write_text(json.dumps({"config": rows[0], "layers": rows[1:]}))
    return paths


def test_required_models_are_looked_for_in_the_store(tmp_path: Path) -> None:
    it = subject(tmp_path, REQUIRED_MODEL="tiny,other:1b")
    assert verdict(store(it)) == ["ok"]  # no store yet
    paths = stored(tmp_path / "models", "tiny:latest", b"{}", b"x" * 2048)
    assert told(store(it)) == [("warning", "not there yet: other:1b")]
    stored(tmp_path / "models", "other:1b", b"{} ", b"y")
    assert told(store(it)) == [("ok", f"{tmp_path}/models: tiny:latest (2 KiB), other:1b (0 KiB)")]
    paths[1].write_bytes(b"cut")
    assert told(store(it)) == [("fault", f"tiny:latest: its files in {tmp_path}/models are not whole")]
    paths[1].unlink()
    assert verdict(store(it)) == ["fault"]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"config": {}, "layers": []}', "[" * 100_000])
def test_a_manifest_that_is_none_counts_as_not_there(tmp_path: Path, text: str) -> None:
    manifest = manifest_of(tmp_path / "models", "tiny:latest")
    manifest.parent.mkdir(parents=True)
    manifest.write_text(text)
    assert told(store(subject(tmp_path, REQUIRED_MODEL="tiny"))) == [("warning", "not there yet: tiny:latest")]


# -- rights ----------------------------------------------------------------------------------------------------------


def test_secrets_that_anybody_may_read_are_a_fault(tmp_path: Path) -> None:
    it = subject(tmp_path, ADMIN_TOKEN="hunter2")
    it.env_file.write_text("ADMIN_TOKEN=hunter2\n")
    it.env_file.chmod(0o640)
    assert verdict(rights(it)) == ["ok"]
    it.env_file.chmod(0o644)
    assert told(rights(it)) == [("fault", f"anybody may read {it.env_file}, which has secrets")]
    assert verdict(rights(subject(tmp_path))) == ["ok"]  # without a secret in it


def test_the_database_is_its_owners_alone(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir(mode=0o700)
    (tmp_path / "state" / "chimera.db").write_text("")
    (tmp_path / "state" / "chimera.db").chmod(0o644)
    assert told(rights(subject(tmp_path))) == [
        ("fault", f"anybody may read {tmp_path}/state/chimera.db, which has secrets")
    ]


def test_what_another_may_do_is_said_not_to_be_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = replace(subject(tmp_path), account=Account(4711, 4711, "chimera", Path("/")))
    monkeypatch.setattr(os, "geteuid", lambda: 4712)
    assert told(rights(other))[-1] == ("warning", "what chimera may do cannot be looked at by this user")


# -- the unit, the gateway -------------------------------------------------------------------------------------------


def test_what_no_longer_follows_from_the_settings_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = {"LoadState": "loaded", "UnitFileState": "enabled", "FragmentPath": str(tmp_path / "chimera.service")}
    it: Subject = replace(subject(tmp_path), unit=shown)
    monkeypatch.setattr(examine_service, "SYSTEM_UNITS", tmp_path)
    (tmp_path / "chimera.service").write_text("of another version")
    found = told(unit(it))
    assert [text for _, text in found] == [
        "its unit is not this version's",
        "does not follow from the settings: chimera.socket.d/50-settings.conf, chimera.service.d/50-settings.conf",
    ]
    assert told(unit(subject(tmp_path))) == [("ok", "not installed as a service (sudo make install does it)")]


def test_the_certificate_is_looked_at_and_its_key_is_a_secret(tmp_path: Path) -> None:
    assert told(certificate(subject(tmp_path))) == [("ok", "none: the gateway speaks plain HTTP (TLS_CERT)")]
    cert, key = write_pair(tmp_path)
    it = subject(tmp_path, TLS_CERT=str(cert), TLS_KEY=str(key), GATEWAY_PORT=str(free_port()))
    assert told(certificate(it)) == [("ok", f"{cert}: nothing is wrong with it")]
    assert verdict(gateway(it)) == ["ok"]
    key.chmod(0o644)
    assert told(rights(it)) == [("fault", f"anybody may read {key}, which has secrets")]
    cert.write_text("none")
    assert verdict(certificate(it)) == ["fault"]
    assert verdict(gateway(it)) == ["fault"]


def test_the_gateway_is_asked(tmp_path: Path) -> None:
    nobody = subject(tmp_path, GATEWAY_PORT=str(free_port()))
    assert verdict(gateway(nobody)) == ["ok"]
    assert verdict(gateway(replace(nobody, pid=4711))) == ["fault"]


def test_the_store_is_the_accounts_own_where_none_is_set(tmp_path: Path) -> None:
    it = replace(subject(tmp_path, OLLAMA_MODELS=""), account=replace(account_of(None), home=tmp_path))
    assert examine_service.store_of(it) == tmp_path / ".ollama" / "models"
