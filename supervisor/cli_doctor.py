"""`chimera doctor`: looks at everything that Chimera needs, and says what to do. It changes nothing."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import click
import trio

from supervisor import examine_machine, examine_service
from supervisor.config import Settings
from supervisor.config_load import load_settings
from supervisor.doctor import Finding, Verdict, lines, worst
from supervisor.env_file import servable_settings
from supervisor.errors import BadConfiguration, SupervisorError
from supervisor.examine import Check, Subject, account_of, examine, unit_shown
from supervisor.examine_machine import Bound
from supervisor.locate import locate_ollama, with_embedded_defaults
from supervisor.lock import holder


@click.command()
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.pass_context
def doctor(context: click.Context, as_json: bool) -> None:
    """Look at all that Chimera needs, and say what to do. Exit status 1: a fault."""
    found = trio.run(_examined, context.obj)
    verdict = worst(found)
    if as_json:
        rows = [{"check": f.check, "verdict": f.verdict, "text": f.text, "advice": f.advice or None} for f in found]
        click.echo(json.dumps({"verdict": verdict, "findings": rows}, indent=1))
    else:
        for line in lines(found):
            click.echo(line)
    context.exit(1 if verdict is Verdict.FAULT else 0)


async def _examined(env_file: Path) -> list[Finding]:
    subjects: list[Subject] = []

    def begin() -> Sequence[Finding]:
        subjects.append(subject_of(env_file, os.environ))
        return examine_service.settings(subjects[0])

    found = await examine({"settings": begin})
    if not subjects:  # a file system that hangs: nothing else can be known
        return found
    from supervisor.root_refusals import bound_by_descriptors, examine_database  # they take a while to import

    return found + await examine(checks_of(subjects[0], examine_database, bound_by_descriptors))


def subject_of(env_file: Path, environ: Mapping[str, str]) -> Subject:
    """Return what is to be looked at. Blocks. With settings at fault, it is what the defaults say."""
    unit = unit_shown(env_file)
    account = account_of(unit.get("User") or None)
    faults: Sequence[str] = ()
    hidden = False
    try:
        settings = servable_settings(env_file, environ)
    except BadConfiguration as error:
        hidden = _is_hidden(env_file)
        faults = () if hidden else error.faults
        folders = {name: environ[name] for name in ("HOME", "STATE_DIRECTORY", "LOGS_DIRECTORY") if name in environ}
        settings = load_settings(folders, {})
    try:
        settings = with_embedded_defaults(settings, locate_ollama(settings, environ))
    except SupervisorError:
        pass  # a check of its own says so
    try:
        pid = holder(settings.state_dir) or int(unit.get("MainPID", "0")) or None
    except OSError:
        pid = int(unit.get("MainPID", "0")) or None
    return Subject(env_file, environ, settings, tuple(faults), hidden, account, pid, unit)


def _is_hidden(path: Path) -> bool:
    """Say whether a file is kept from who asks: it, or the folder that it lies in."""
    try:
        path.open("rb").close()
    except PermissionError:
        return True
    except OSError:
        pass  # it is not there, or what is wrong with it is the settings' fault
    return False


def checks_of(
    subject: Subject, examine_database: Callable[[Settings], Sequence[Finding]], bound: Bound
) -> dict[str, Check]:
    """Return what is looked at once the settings are known, in the order in which it is told.

    The root gives what only the gateway knows: the database's state, and what a limit of open files allows.
    """
    driver = {"gpu": partial(examine_machine.gpus, subject)}
    machine = {"clock": partial(examine_machine.clock, subject), "service": partial(examine_service.unit, subject)}
    if subject.hidden:
        return {**driver, **machine}
    return {
        **driver,
        "ollama": partial(examine_machine.ollama, subject),
        "ports": partial(examine_service.ports, subject),
        "store": partial(examine_service.store, subject),
        "disk": partial(examine_machine.disks, subject),
        "memory": partial(examine_machine.memory, subject),
        "limits": partial(examine_machine.limits, subject, bound),
        "rights": partial(examine_service.rights, subject),
        "database": partial(examine_database, subject.settings),
        **machine,
        "certificate": partial(examine_service.certificate, subject),
        "gateway": partial(examine_service.gateway, subject),
    }
