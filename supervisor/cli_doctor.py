"""`chimera doctor`: looks at everything that Chimera needs, and says what to do. It changes nothing."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import click
import trio

from supervisor import doctor, examine_machine, examine_service
from supervisor.config import Settings, load_settings
from supervisor.doctor import Finding, Verdict
from supervisor.errors import BadConfiguration, SupervisorError
from supervisor.examine import Check, Subject, account_of, examine, unit_shown
from supervisor.examine_machine import Bound
from supervisor.locate import locate_ollama, with_embedded_defaults
from supervisor.lock import holder

ReadSettings = Callable[[Path, Mapping[str, str]], Settings]
# What the root knows and the supervisor does not: the database's state, and what a limit of open files allows.
LookAtDatabase = Callable[[Settings], Sequence[Finding]]
GatewaysPart = tuple[LookAtDatabase, Bound]


def doctor_command(settings_from: ReadSettings, gateways: Callable[[], GatewaysPart]) -> click.Command:
    """Return the command. `gateways` gives what only the gateway's own code can tell, which takes a while to import."""

    @click.command("doctor")
    @click.option("--json", "as_json", is_flag=True, help="For programs.")
    @click.pass_context
    def command(context: click.Context, as_json: bool) -> None:
        """Look at all that Chimera needs, and say what to do. Exit status 1: a fault."""
        found = trio.run(_examined, context.obj, settings_from, gateways)
        worst = doctor.worst(found)
        if as_json:
            rows = [{"check": f.check, "verdict": f.verdict, "text": f.text, "advice": f.advice or None} for f in found]
            click.echo(json.dumps({"verdict": worst, "findings": rows}, indent=1))
        else:
            for line in doctor.lines(found):
                click.echo(line)
        context.exit(1 if worst is Verdict.FAULT else 0)

    return command


async def _examined(env_file: Path, settings_from: ReadSettings, gateways: Callable[[], GatewaysPart]) -> list[Finding]:
    subjects: list[Subject] = []

    def begin() -> Sequence[Finding]:
        subjects.append(subject_of(env_file, os.environ, settings_from))
        return examine_service.settings(subjects[0])

    found = await examine({"settings": begin})
    if not subjects:  # a file system that hangs: nothing else can be known
        return found
    return found + await examine(checks_of(subjects[0], *gateways()))


def subject_of(env_file: Path, environ: Mapping[str, str], settings_from: ReadSettings) -> Subject:
    """Return what is to be looked at. Blocks. With settings at fault, it is what the defaults say."""
    unit = unit_shown(env_file)
    account = account_of(unit.get("User") or None)
    faults: Sequence[str] = ()
    hidden = False
    try:
        settings = settings_from(env_file, environ)
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


def checks_of(subject: Subject, look_at_database: LookAtDatabase, bound: Bound) -> dict[str, Check]:
    """Return what is looked at once the settings are known, in the order in which it is told."""
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
        "database": partial(look_at_database, subject.settings),
        **machine,
        "certificate": partial(examine_service.certificate, subject),
        "gateway": partial(examine_service.gateway, subject),
    }
