"""The drop-ins that follow from the settings; and the units that are shipped."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from supervisor.config import Settings
from supervisor.config_load import load_settings
from supervisor.service import EXTENSION_S, STOP_GRACE_S
from supervisor.unit_files import HEAD, STOP_MARGIN_S, drop_ins
from tests.fakes.chimera import ROOT

UNITS = ROOT / "systemd"
SERVICE = (UNITS / "chimera.service").read_text(encoding="utf-8")
SYSTEM = {"STATE_DIRECTORY": "/var/lib/chimera", "LOGS_DIRECTORY": "/var/log/chimera"}
needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed here")


def settings(**names: str) -> Settings:
    return load_settings(SYSTEM | names, {})


def service(**names: str) -> list[str]:
    text = drop_ins(settings(**names), [])["chimera.service.d/50-settings.conf"]
    assert text.startswith(f"{HEAD}[Service]\n")
    return text.removeprefix(f"{HEAD}[Service]\n").splitlines()


def test_the_socket_listens_where_the_settings_say_and_nowhere_else() -> None:
    text = drop_ins(settings(), [("127.0.0.1", 9000), ("::1", 9000)])["chimera.socket.d/50-settings.conf"]
    assert text == f"{HEAD}[Socket]\nListenStream=\nListenStream=127.0.0.1:9000\nListenStream=[::1]:9000\n"


def test_a_stop_may_take_as_long_as_the_drain() -> None:
    assert service() == [f"TimeoutStopSec={60 + 10 + STOP_MARGIN_S}"]
    assert service(DRAIN_TIMEOUT_S="600.4") == ["TimeoutStopSec=640"]
    assert f"TimeoutStopSec={60 + 10 + STOP_MARGIN_S}\n" in SERVICE


def test_folders_elsewhere_may_be_written_and_homes_seen_only_where_that_is_asked_for() -> None:
    assert service(OLLAMA_MODELS="/srv/my models/100%")[1:] == ['ReadWritePaths="-/srv/my models/100%%"']
    assert service(OLLAMA_MODELS="/home/a/models")[1:] == [
        "ProtectHome=read-only", 'ReadWritePaths="-/home/a/models"',
    ]  # fmt: skip
    assert service(OLLAMA_BIN="/root/bin/ollama")[1:] == ["ProtectHome=read-only"]
    assert service(OLLAMA_MODELS="/var/lib/chimera/models") == service()


def value(name: str) -> str:
    found = re.findall(rf"^{name}=(.*)$", SERVICE, re.MULTILINE)
    assert len(found) == 1, f"{name} stands {len(found)} times"
    return str(found[0])


def test_systemd_waits_longer_than_the_pause_between_two_words() -> None:
    """While starting and stopping Chimera draws the limits out at each beat."""
    assert float(value("TimeoutStartSec")) > EXTENSION_S
    assert STOP_MARGIN_S >= STOP_GRACE_S


def test_what_the_code_relies_on_is_in_the_unit() -> None:
    assert value("Type") == "notify"
    assert value("RestartPreventExitStatus") == "78"
    assert value("KillMode") == "mixed"
    assert value("Delegate") == "yes"
    assert value("RuntimeDirectoryPreserve") == "restart"
    assert value("ExecReload").endswith(" reload")


@needs_systemd
def test_systemd_understands_every_line(tmp_path: Path) -> None:
    """`verify` prints what it does not know; the program itself is not there."""
    for unit in UNITS.iterdir():
        text = unit.read_text(encoding="utf-8").replace("/opt/chimera/current/bin/chimera", "/bin/true")
        (tmp_path / unit.name).write_text(text, encoding="utf-8")
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--generators=no", str(tmp_path / "chimera.service"),
         str(tmp_path / "chimera.socket")],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    ours = [line for line in done.stderr.splitlines() if "chimera" in line]
    assert ours == []


@needs_systemd
def test_the_service_is_exposed_no_more_than_it_must_be() -> None:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", str(UNITS / "chimera.service")],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    found = re.search(r"Overall exposure level for chimera\.service: ([0-9.]+)", done.stdout)
    assert found is not None, done.stderr
    assert float(found[1]) <= 4.0
