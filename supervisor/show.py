"""Tables for the terminal."""

import os
import sys
from collections.abc import Callable
from datetime import datetime
from typing import Any

import trio
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

Row = dict[str, Any]

REFRESH_S = 1.0

_STYLES = {"IDLE": "green", "BUSY": "green", "READY": "green", "STARTING": "yellow", "WARMING": "yellow",
           "BACKOFF": "red", "QUARANTINED": "red"}  # fmt: skip
_VERDICTS = {"well": "green", "degraded": "yellow", "faulty": "red", "quarantined": "red"}


# What is narrower cuts tables to pieces; a terminal that is breaks lines by itself.
LEAST_COLUMNS = 80
# Where no terminal is, whoever reads it breaks lines, or a program reads it.
MOST_COLUMNS = 10_000


def console() -> Console:
    """Return what writes tables to standard output, as wide as its reader can have them (COLUMNS says otherwise)."""
    if not sys.stdout.isatty() and not os.environ.get("COLUMNS"):
        return Console(width=MOST_COLUMNS)
    return Console(width=max(LEAST_COLUMNS, Console().width))


# What others wrote goes into Text: as a plain string rich would read "[/x]" in it as a wrong tag, and raise.


def status(url: str, fleet: Row, gpus_answer: Row) -> RenderableType:
    """Return the tables of `chimera status`."""
    queue, primary = fleet["queue"], fleet["primary"]
    ready = sum(row["state"] in ("IDLE", "BUSY") for row in fleet["instances"])
    head = Table.grid(padding=(0, 2))
    head.add_row("gateway", url, f"queue {queue['depth']} of {queue['size']}"
                 + (f", oldest waits {queue['oldest_s']:.1f} s" if queue["depth"] else ""))  # fmt: skip
    head.add_row("primary", primary["url"] or "", Text(_primary(primary), _STYLES.get(primary["state"], "")))
    head.add_row("workers", f"{ready} of {len(fleet['instances'])} ready", "")
    parts: list[RenderableType] = [head]
    if fleet["instances"]:
        parts.append(_workers(fleet["instances"]))
        parts += [Text(f"{row['id']}: {trouble}") for row in fleet["instances"] if (trouble := _trouble(row))]
    if primary["trouble"]:
        parts.append(Text(f"primary: {_told(primary['trouble'])}"))
    parts.append(gpus(gpus_answer))
    return Group(*parts)


def _primary(row: Row) -> str:
    """Say how the primary is; what is wrong with it has a line of its own."""
    told = () if row["trouble"] else (row["problem"], row["store"])
    return " ".join(str(part) for part in (row["state"], *told) if part)


def _workers(rows: list[Row]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("worker", "state", "on", "port", "slots", "up", "restarts", "memory", "cpu"):
        table.add_column(name, justify="left" if name in ("worker", "state", "on") else "right", no_wrap=True)
    table.add_column("models", overflow="fold")
    for row in rows:
        gpu = row["gpu"]
        on = "cpu" if gpu is None else f"GPU {gpu['index']}" if gpu["index"] is not None else row["placement"][:12]
        table.add_row(
            row["id"], Text(row["state"], _STYLES.get(row["state"], "")), on, str(row["port"] or ""),
            f"{row['inflight']}/{row['slots']}", _duration(row["uptime_s"]), str(row["restarts"]),
            _bytes(row["rss_bytes"]), f"{row['cpu_percent']:.0f} %", Text(" ".join(row["models"])),
        )  # fmt: skip
    return table


def _trouble(row: Row) -> str:
    if row["trouble"]:
        return _told(row["trouble"])
    last = row["last_exit"]
    if not last or not row["restarts"]:
        return ""
    how = last["signal"] or (f"exit code {last['code']}" if last["code"] is not None else "")
    named = f" ({how})" if how and how not in last["reason"] else ""
    return f"well; restarted {row['restarts']} times, last at {_clock(last['at'])}: {last['reason']}{named}"


def _told(trouble: Row) -> str:
    """Say what is wrong, since when, what was tried and what happens next."""
    return f"{trouble['what']}, since {_clock(trouble['since'])}; {trouble['tried']}; next: {trouble['next']}"


def _clock(at: str) -> str:
    """Return a moment as people here read it: the local time, with the day when that is another."""
    moment = datetime.fromisoformat(at).astimezone()
    return f"{moment:%H:%M:%S}" if moment.date() == datetime.now().astimezone().date() else f"{moment:%Y-%m-%d %H:%M}"


def gpus(answer: Row) -> RenderableType:
    """Return the table of GPUs, or the sentence that says why there are none."""
    unplaced = [Text(line) for line in answer.get("unplaced") or ()]
    if not answer["gpus"]:
        return Group(Text(f"GPUs: none ({answer['fault'] or 'none found'})"), *unplaced)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("GPU", "name", "memory", "busy", "temperature", "power", "workers", "verdict"):
        table.add_column(name)
    for row in answer["gpus"]:
        table.add_row(
            f"{row['index']} {row['uuid'][:12]}", Text(row["name"]),
            f"{_bytes(row['memory_used_bytes'])} of {_bytes(row['memory_total_bytes'])}",
            _unit(row["utilisation_percent"], "%"), _unit(row["temperature_c"], "°C"), _unit(row["power_w"], "W"),
            " ".join(row["workers"]), Text(row["verdict"], _VERDICTS.get(row["verdict"], "")),
        )  # fmt: skip
    told = [Text(f"GPU {row['index']}: {_told(row['trouble'])}") for row in answer["gpus"] if row["trouble"]]
    if answer["fault"]:
        told.append(Text(f"GPUs: {answer['fault']}"))
    return Group(table, *told, *unplaced)


def keys(rows: list[Row]) -> RenderableType:
    """Return the table of API keys: what each may, and what of it is in use."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("key", "name", "begins", "at once", "requests left", "tokens left", "priority", "models", "used"):
        table.add_column(name, no_wrap=name in ("key", "begins"))
    for row in rows:
        at_once = f"{row['inflight']}" + (f" of {row['concurrency']}" if row["concurrency"] else "")
        table.add_row(
            row["id"], Text(row["name"]), f"{row['prefix']}…", at_once,
            _left(row["requests_left"], row["requests_per_minute"]),
            _left(row["tokens_left"], row["tokens_per_minute"]),
            str(row["priority"]), "yes" if row["models"] else "no",
            _clock(row["last_used_at"]) if row["last_used_at"] else "never",
        )  # fmt: skip
    return table


def _left(left: int | None, limit: int | None) -> str:
    return "any" if limit is None else f"{left} of {limit}"


def event(row: Row) -> str:
    """Return one event as a line for people: when, what, and everything that it tells."""
    rest = {key: value for key, value in row.items() if key not in ("at", "event", "cause") and value is not None}
    told = " ".join(f"{key}={value}" for key, value in rest.items())
    what = str(row["event"]).replace("_", " ")
    return f"{_clock(row['at'])}  {what:24}  {told}" + (f"  {row['cause']}" if row.get("cause") else "")


def watch(render: Callable[[], RenderableType]) -> None:
    """Show what `render` returns, anew each second, until Ctrl-C."""

    async def refresh() -> None:
        with Live(render(), console=Console(), screen=True, auto_refresh=False) as live:
            while True:
                await trio.sleep(REFRESH_S)
                live.update(render(), refresh=True)

    try:
        trio.run(refresh)
    except KeyboardInterrupt:
        return


def _unit(value: float | None, unit: str) -> str:
    return "" if value is None else f"{value:.0f} {unit}"


def _bytes(count: int) -> str:
    return f"{count / 1024**3:.1f} GiB" if count >= 1024**3 else f"{count / 1024**2:.0f} MiB"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min"
    return f"{whole // 3600} h {whole % 3600 // 60} min" if whole < 86400 else f"{whole // 86400} d"
