"""The commands that show and order a running Chimera: its workers, its GPUs, what happened. Through the admin API."""

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click

from supervisor import show
from supervisor.admin_client import call, lines
from supervisor.cli_faults import Refused, faults_told
from supervisor.config import Settings
from supervisor.env_file import settings_from
from supervisor.errors import StartRefused


@click.command()
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.option("--watch", is_flag=True, help="Refresh each second until Ctrl-C.")
@click.pass_obj
@faults_told()
def status(env_file: Path, as_json: bool, watch: bool) -> None:
    """Show the gateway, the primary, the workers and the GPUs."""
    settings = settings_from(env_file, os.environ)
    if as_json:
        click.echo(json.dumps(_fleet(settings) | _gpus(settings), indent=1))
    elif watch:
        show.watch(lambda: show.status(settings.shown_url, _fleet(settings), _gpus(settings)))
    else:
        print_status(settings)


def print_status(settings: Settings) -> None:
    """Print the tables of `chimera status`."""
    show.console().print(show.status(settings.shown_url, _fleet(settings), _gpus(settings)))


def fleet_if_there(settings: Settings) -> dict[str, Any] | None:
    """Return the fleet, None while nobody answers."""
    try:
        return _fleet(settings)
    except StartRefused:
        return None


def _fleet(settings: Settings) -> dict[str, Any]:
    return call(settings, "GET", "/admin/instances")


def _gpus(settings: Settings) -> dict[str, Any]:
    return call(settings, "GET", "/admin/gpus")


@click.command()
@click.option("--gpu", help="An index, a UUID or its beginning, or cpu; default: where there is most room.")
@click.option("--count", type=click.IntRange(1), default=1, show_default=True)
@click.option("--slots", type=click.IntRange(1), help="Requests each answers at once; default: WORKER_SLOTS.")
@click.option("--wait", is_flag=True, help="Return when they are ready.")
@click.pass_obj
@faults_told()
def spawn(env_file: Path, gpu: str | None, count: int, slots: int | None, wait: bool) -> None:
    """Add workers."""
    ask = {"gpu": gpu, "count": count, "slots": slots, "wait": wait}
    rows = call(settings_from(env_file, os.environ), "POST", "/admin/instances/spawn", ask)["instances"]
    for row in rows:
        click.echo(f"{row['id']}  {row['placement']}  port {row['port']}  {row['state']}")
    if wait and any(row["state"] not in ("IDLE", "BUSY") for row in rows):
        raise Refused("not every new worker is ready; see: chimera status")


@click.command()
@click.argument("ids", nargs=-1)
@click.option("--gpu", help="Only those on this GPU (or cpu).")
@click.option("--idle", is_flag=True, help="Only those without a request.")
@click.option("--force", is_flag=True, help="Do not wait for answers that are under way.")
@click.pass_obj
@faults_told()
def prune(env_file: Path, ids: tuple[str, ...], gpu: str | None, idle: bool, force: bool) -> None:
    """Drain and remove workers: those named, or all."""
    ask = {"ids": list(ids) or None, "gpu": gpu, "idle": idle, "force": force}
    pruned = call(settings_from(env_file, os.environ), "POST", "/admin/instances/prune", ask)["pruned"]
    click.echo("pruned " + " ".join(pruned) if pruned else "nothing to prune")


def _worker_order(name: str, text: str) -> click.Command:
    @click.command(name, help=text)
    @click.argument("worker_id", metavar="ID")
    @click.pass_obj
    @faults_told()
    def order(env_file: Path, worker_id: str) -> None:
        settings, path = settings_from(env_file, os.environ), f"/admin/instances/{quote(worker_id, safe='')}"
        call(settings, "POST", f"{path}/{name}")
        row = call(settings, "GET", path)  # the order's own answer has the state from before it
        click.echo(f"{row['id']}  {row['state']}")

    return order


def _gpu_order(name: str, text: str) -> click.Command:
    @click.command(name, help=text)
    @click.argument("gpu", metavar="GPU")
    @click.pass_obj
    @faults_told()
    def order(env_file: Path, gpu: str) -> None:
        row = call(settings_from(env_file, os.environ), "POST", f"/admin/gpus/{quote(gpu, safe='')}/{name}")
        click.echo(f"GPU {row['index']} {row['uuid']}  {row['verdict']}")

    return order


@click.command()
@click.argument("worker_id", metavar="ID")
@click.option("-f", "--follow", is_flag=True, help="Go on as lines come.")
@click.option("-n", "count", type=click.IntRange(0), default=200, show_default=True, help="Lines to begin with.")
@click.pass_obj
@faults_told()
def logs(env_file: Path, worker_id: str, follow: bool, count: int) -> None:
    """Print the log of a worker, or of the primary."""
    path = f"/admin/instances/{quote(worker_id, safe='')}/logs?n={count}&follow={int(follow)}"
    with suppress(KeyboardInterrupt):  # it is how one stops following
        for line in lines(settings_from(env_file, os.environ), path):
            click.echo(line)


@click.command()
@click.option("-f", "--follow", is_flag=True, help="Go on as things happen.")
@click.option("--json", "as_json", is_flag=True, help="For programs: one JSON object a line.")
@click.pass_obj
@faults_told()
def events(env_file: Path, follow: bool, as_json: bool) -> None:
    """Print every change of a worker or GPU, with its cause."""
    with suppress(KeyboardInterrupt):  # as for logs
        for line in lines(settings_from(env_file, os.environ), f"/admin/events?follow={int(follow)}"):
            click.echo(line if as_json else show.event(json.loads(line)))


@click.command()
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.pass_obj
@faults_told()
def gpus(env_file: Path, as_json: bool) -> None:
    """Show the GPUs."""
    answer = _gpus(settings_from(env_file, os.environ))
    if as_json:
        click.echo(json.dumps(answer, indent=1))
    else:
        show.console().print(show.gpus(answer))


COMMANDS: tuple[click.Command, ...] = (
    status,
    spawn,
    prune,
    _worker_order("drain", "Cordon a worker, and let the requests that it has end."),
    _worker_order("cordon", "Give a worker no new requests."),
    _worker_order("uncordon", "Give a worker requests again."),
    _worker_order("restart", "Drain a worker and start it again."),
    logs,
    events,
    gpus,
    _gpu_order("quarantine", "Take a GPU out of use. Its workers are drained and stopped, until it is released."),
    _gpu_order("release", "Let a quarantined GPU be used again."),
)
