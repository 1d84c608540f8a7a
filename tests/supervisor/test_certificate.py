"""The certificate that the gateway shows, while its files are renewed."""

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from gateway.tls import server_context
from supervisor import certificate as certificate_module
from supervisor.certificate import LOOK_EVERY_S, WARN_EVERY_S, Certificate, stamp_of
from supervisor.config import Settings
from supervisor.config_load import load_settings
from supervisor.errors import BadConfiguration
from supervisor.events import EventLog
from tests.fakes.certificates import write_pair


def settings(*pair: Path) -> Settings:
    named = dict(zip(("TLS_CERT", "TLS_KEY"), map(str, pair), strict=False))
    return load_settings({"HOME": "/h"} | named, {})


class Watched:
    """A certificate, looked at when the test says so."""

    def __init__(self, folder: Path) -> None:
        self.cert, self.key = write_pair(folder)
        self.events = EventLog()
        self.certificate = Certificate(server_context, settings(self.cert, self.key), self.events)

    async def look(self) -> None:
        """Let it look once."""
        await self.certificate._look()

    def told(self) -> list[str]:
        return [event["event"] for event in self.events.newest()]


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    return Watched(tmp_path)


async def test_what_stays_is_left_alone(watched: Watched) -> None:
    before = watched.certificate.context
    assert before is not None
    await watched.look()
    await watched.look()
    assert watched.certificate.context is before
    assert watched.told() == []


async def test_renewed_files_are_shown(watched: Watched, tmp_path: Path) -> None:
    before = watched.certificate.context
    write_pair(tmp_path)
    await watched.look()
    assert watched.certificate.context not in (before, None)
    assert watched.told() == ["certificate_renewed"]
    await watched.look()
    assert watched.told() == ["certificate_renewed"]


async def test_when_it_ends_is_told_of_the_one_in_use(watched: Watched, tmp_path: Path) -> None:
    ends = [datetime.now(UTC) + timedelta(days=days) for days in (40, 80)]
    write_pair(tmp_path, ends_at=ends[0])
    await watched.look()
    assert watched.certificate.ends_at_s == int(ends[0].timestamp())
    watched.key.write_text("no key")
    await watched.look()
    assert watched.certificate.ends_at_s == int(ends[0].timestamp()), "what cannot be used changes nothing"
    write_pair(tmp_path, ends_at=ends[1])
    await watched.look()
    assert watched.certificate.ends_at_s == int(ends[1].timestamp())


async def test_a_link_that_leads_elsewhere_is_a_renewal(watched: Watched, tmp_path: Path) -> None:
    """As certbot does it: live/NAME/fullchain.pem -> ../../archive/NAME/fullchain2.pem."""
    live = tmp_path / "live.pem", tmp_path / "live.key"
    for link, real in zip(live, (watched.cert, watched.key), strict=True):
        link.symlink_to(real)
    watched.certificate.show(settings(*live), watched.certificate.read(settings(*live)))
    before = watched.certificate.context
    for link, real in zip(live, write_pair(tmp_path, name="second"), strict=True):
        link.unlink()
        link.symlink_to(real)
    await watched.look()
    assert watched.certificate.context is not before
    assert watched.told() == ["certificate_renewed"]


@pytest.mark.parametrize("how", ["cut", "gone", "another key"])
async def test_files_that_cannot_be_used_change_nothing_and_are_told_once(
    watched: Watched, tmp_path: Path, how: str
) -> None:
    before = watched.certificate.context
    kept = watched.cert.read_bytes(), watched.key.read_bytes()
    if how == "cut":
        watched.cert.write_bytes(kept[0][:100])
    elif how == "gone":
        watched.cert.unlink()
    else:
        _, other = write_pair(tmp_path, name="other")
        watched.key.write_bytes(other.read_bytes())
    await watched.look()
    assert watched.told() == []  # they may be about to be replaced, one after the other
    for _ in range(3):
        await watched.look()
    assert watched.told() == ["certificate_refused"]
    (refused,) = watched.events.newest()
    assert refused["faults"][0].startswith("TLS_")
    assert "PRIVATE" not in str(refused).replace("(-----BEGIN PRIVATE KEY-----)", "")
    assert watched.certificate.context is before
    write_pair(tmp_path)
    await watched.look()
    assert watched.told() == ["certificate_refused", "certificate_renewed"]
    assert watched.certificate.context is not before


async def test_the_files_as_they_were_are_no_renewal(watched: Watched, tmp_path: Path) -> None:
    before = watched.certificate.context
    aside = watched.cert.rename(tmp_path / "aside")
    await watched.look()
    aside.rename(watched.cert)
    await watched.look()
    await watched.look()
    assert watched.told() == []
    assert watched.certificate.context is before


async def test_a_reload_that_was_quicker_than_a_look_counts(
    watched: Watched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pair(tmp_path)
    it = watched.certificate
    with monkeypatch.context() as patch:

        async def overtaken(read: Any, *args: Any) -> object:
            result = read(*args)
            if read == it.read:
                it.show(settings(), it.read(settings()))
            return result

        patch.setattr(trio.to_thread, "run_sync", overtaken)
        await it._look()
    assert it.context is None
    assert watched.told() == []


async def test_without_a_certificate_there_is_nothing_to_show_or_watch() -> None:
    assert Certificate(server_context, settings(), EventLog()).ends_at_s is None
    it = Certificate(server_context, settings(), EventLog())
    assert it.context is None
    await it._look()
    await it._warn_again()


async def test_the_task_looks_again_and_again_and_says_each_day_what_is_wrong_for_others(
    watched: Watched,
    tmp_path: Path,
    nursery: trio.Nursery,
    autojump_clock: trio.testing.MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[str] = []
    monkeypatch.setattr(certificate_module.log, "warning", said.append)
    nursery.start_soon(watched.certificate.run)
    for _ in range(2):
        before = watched.certificate.context
        write_pair(tmp_path)
        while watched.certificate.context is before:
            await trio.sleep(LOOK_EVERY_S)
    assert said == []
    watched.key.chmod(0o604)  # which does not change what is in it
    while len(said) < 2:
        await trio.sleep(WARN_EVERY_S)
    assert set(said) == {f"TLS_KEY: {watched.key} can be read by everybody on this machine: chmod o= {watched.key}"}
    watched.cert.unlink()
    await watched.certificate._warn_again()  # that is for `_look` to tell
    nursery.cancel_scope.cancel()


def test_one_that_cannot_be_used_is_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(BadConfiguration, match="TLS_CERT"):
        Certificate(server_context, settings(tmp_path / "a", tmp_path / "b"), EventLog())


def test_what_is_wrong_for_others_is_said(tmp_path: Path) -> None:
    cert, key = write_pair(tmp_path)
    key.chmod(0o604)
    shown = Certificate(server_context, settings(cert, key), EventLog()).read(settings(cert, key))
    assert shown.warnings == [f"TLS_KEY: {key} can be read by everybody on this machine: chmod o= {key}"]


def test_a_stamp_tells_files_apart(tmp_path: Path) -> None:
    file, other = tmp_path / "a", tmp_path / "b"
    file.write_text("1")
    before = stamp_of(file, other)
    assert before[1] is None
    assert stamp_of(file, other) == before
    other.write_text("1")
    os.utime(other, ns=(0, file.stat().st_mtime_ns))
    other.replace(file)
    assert stamp_of(file, other) != before
