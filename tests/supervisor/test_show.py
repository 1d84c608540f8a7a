"""Tables for the terminal, of every kind of row."""

import io
from typing import Any

import pytest
from rich.console import Console, RenderableType

from supervisor import show

Row = dict[str, Any]

PRIMARY: Row = {"url": "http://127.0.0.1:11434", "state": "READY", "problem": None, "store": None, "trouble": None}
WORKER: Row = {
    "id": "w1", "state": "IDLE", "placement": "cpu", "gpu": None, "port": 11500, "slots": 4, "inflight": 1,
    "models": ["tiny:latest"], "restarts": 0, "uptime_s": 61.5, "last_exit": None, "problem": None, "trouble": None,
    "rss_bytes": 400 * 1024**2, "cpu_percent": 12.3,
}  # fmt: skip
GPU: Row = {
    "index": 0, "uuid": "GPU-aaaaaaaa-1111", "name": "Fake H200", "memory_used_bytes": 2 * 1024**3,
    "memory_total_bytes": 141 * 1024**3, "utilisation_percent": 7, "temperature_c": None, "power_w": 75.4,
    "workers": ["w1"], "verdict": "well", "fault": None, "trouble": None,
}  # fmt: skip
NO_GPUS: Row = {"gpus": [], "driver_version": None, "fault": "NVML library not found"}


AT = "2001-02-03T04:05:06+00:00"


def trouble(what: str) -> Row:
    return {"what": what, "since": AT, "tried": "it was restarted", "next": "it is tried again"}


def ended(reason: str, number: str | None, code: int | None) -> Row:
    return {"reason": reason, "signal": number, "code": code, "at": AT}


def printed(what: RenderableType, width: int = 200) -> str:
    out = io.StringIO()
    Console(file=out, width=width, color_system=None).print(what)
    return out.getvalue()


def status(*workers: Row, primary: Row = PRIMARY, gpus: Row = NO_GPUS, depth: int = 0) -> str:
    fleet = {
        "instances": list(workers), "primary": primary, "queue": {"depth": depth, "size": 512, "oldest_s": 3.14159},
    }  # fmt: skip
    return printed(show.status("http://127.0.0.1:8000", fleet, gpus))


def test_the_status_shows_gateway_primary_workers_and_gpus() -> None:
    text = status(WORKER, WORKER | {"id": "w2", "state": "BACKOFF", "trouble": trouble("out of memory")})
    assert "http://127.0.0.1:8000" in text
    assert "queue 0 of 512" in text
    assert "oldest" not in text
    assert "1 of 2 ready" in text
    assert "GPUs: none (NVML library not found)" in text
    (row,) = [line for line in text.splitlines() if line.startswith("w1")]
    assert row.split() == ["w1", "IDLE", "cpu", "11500", "1/4", "1", "min", "0", "400", "MiB", "12", "%", "tiny:latest"]
    assert "\nw2: out of memory, since 2001-02-03" in text
    assert "; it was restarted; next: it is tried again\n" in text


def test_a_queue_shows_how_long_its_oldest_waits() -> None:
    assert "queue 3 of 512, oldest waits 3.1 s" in status(depth=3)


def test_the_primary_shows_its_trouble_and_the_store() -> None:
    assert "BACKOFF port taken pulling m" in status(
        primary=PRIMARY | {"state": "BACKOFF", "problem": "port taken", "store": "pulling m", "url": None}
    )


@pytest.mark.parametrize(
    ("row", "shown"),
    [
        ({"gpu": {"index": 3, "uuid": "GPU-x", "name": "n"}}, "GPU 3"),
        ({"gpu": {"index": None, "uuid": "GPU-x", "name": None}, "placement": "GPU-aaaabbbbcccc"}, "GPU-aaaabbbb"),
        ({"port": None, "uptime_s": None, "models": []}, "w1"),
        ({"restarts": 2, "last_exit": ended("died", "SIGKILL", None)}, ": died (SIGKILL)"),
        ({"restarts": 2, "last_exit": ended("died", None, 3)}, ": died (exit code 3)"),
        ({"restarts": 2, "last_exit": ended("no GPU", None, None)}, "well; restarted 2 times, last at 2001-02-03"),
        ({"rss_bytes": 3 * 1024**3}, "3.0 GiB"),
    ],
)  # fmt: skip
def test_a_worker_is_shown_whatever_is_missing(row: Row, shown: str) -> None:
    assert shown in status(WORKER | row)


@pytest.mark.parametrize("odd", ["[/red]", "[red]x", "[link=x]", ":smile:", "a [/] b", "\\[x]"])
def test_what_others_wrote_is_shown_as_it_is(odd: str) -> None:
    text = status(
        WORKER | {"trouble": trouble(odd), "models": [odd]},
        primary=PRIMARY | {"problem": odd},
        gpus={"gpus": [GPU | {"name": odd, "trouble": trouble(odd)}], "fault": None},
    )
    assert text.count(odd) == 5


def test_gpus_are_shown_with_what_is_known_of_them() -> None:
    bad = GPU | {"verdict": "quarantined", "trouble": trouble("Xid 79")}
    text = printed(show.gpus({"gpus": [GPU, bad], "fault": "NVML has not answered for 9 s"}))
    row, bad_row, told, general = text.splitlines()[1:]
    assert row.split() == [
        "0", "GPU-aaaaaaaa", "Fake", "H200", "2.0", "GiB", "of", "141.0", "GiB", "7", "%", "75", "W", "w1", "well",
    ]  # fmt: skip
    assert bad_row.rstrip().endswith("quarantined")
    assert told.startswith("GPU 0: Xid 79, since 2001-02-03")
    assert general == "GPUs: NVML has not answered for 9 s"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, ""),
        (0.9, "0 s"),
        (59, "59 s"),
        (60, "1 min"),
        (3599, "59 min"),
        (3600, "1 h 0 min"),
        (86399, "23 h 59 min"),
        (86400 * 3, "3 d"),
    ],
)
def test_durations_are_short(seconds: float | None, text: str) -> None:
    assert show._duration(seconds) == text


def test_watching_ends_with_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(show, "REFRESH_S", 0.001)
    monkeypatch.setattr(show, "Console", lambda: Console(file=io.StringIO(), force_terminal=True))
    shown = 0

    def render() -> str:
        nonlocal shown
        shown += 1
        if shown == 3:
            raise KeyboardInterrupt
        return "x"

    show.watch(render)
    assert shown == 3


KEY: Row = {
    "id": "k1", "name": "laptop [/x]", "prefix": "chimera-AAEC", "concurrency": None, "requests_per_minute": 60,
    "tokens_per_minute": 1000, "priority": 3, "models": True, "last_used_at": AT, "inflight": 2, "requests_left": 59,
    "tokens_left": -12,
}  # fmt: skip


def test_keys_show_what_they_may_and_what_is_left_of_it() -> None:
    _, row = printed(show.keys([KEY])).splitlines()
    assert row.split()[:11] == ["k1", "laptop", "[/x]", "chimera-AAEC…", "2", "59", "of", "60", "-12", "of", "1000"]
    assert row.split()[11:14] == ["3", "yes", "2001-02-03"]


def test_what_of_workers_has_no_place_is_said_below_the_gpus() -> None:
    told = "WORKERS: there is no GPU '7'; GPUs here: none; only cpu"
    assert printed(show.gpus(NO_GPUS | {"unplaced": [told]})) == f"GPUs: none (NVML library not found)\n{told}\n"
    assert printed(show.gpus({"gpus": [GPU], "fault": None, "unplaced": [told]})).endswith(f"\n{told}\n")


@pytest.mark.parametrize(("terminal", "columns", "width"), [
    (False, None, show.MOST_COLUMNS), (False, "100", 100), (True, "30", show.LEAST_COLUMNS), (True, "120", 120),
])  # fmt: skip
def test_tables_are_as_wide_as_their_reader_can_have_them(
    monkeypatch: pytest.MonkeyPatch, terminal: bool, columns: str | None, width: int
) -> None:
    out = io.StringIO()
    out.isatty = lambda: terminal  # type: ignore[method-assign]
    monkeypatch.setattr("sys.stdout", out)
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns is not None:
        monkeypatch.setenv("COLUMNS", columns)
    assert show.console().width == width
