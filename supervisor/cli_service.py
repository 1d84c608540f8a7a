"""The commands for Chimera as a service: `reload`, `upgrade-check`, `units`."""

import os
import subprocess
from importlib.metadata import version
from pathlib import Path

import click

from supervisor.activation import addresses_of
from supervisor.cli_faults import faults_told
from supervisor.config import Settings
from supervisor.config_load import state_dir_of
from supervisor.env_file import read_dotenv, servable_settings
from supervisor.errors import BadConfiguration, StartRefused
from supervisor.locate import locate_ollama
from supervisor.lock import holder
from supervisor.reload import ask_for_reload, outcome_directory
from supervisor.unit_files import SYSTEM_UNITS, drop_ins


@click.command()
@click.pass_obj
@faults_told()
def reload(env_file: Path) -> None:
    """Let changed settings count. Some do at once, for others worker after worker restarts."""
    written, _ = read_dotenv(env_file)
    state_dir = state_dir_of(os.environ, written)
    # systemd tells ExecReload= whom it means
    main_pid = os.environ.get("MAINPID", "")
    pid = int(main_pid) if main_pid.isdecimal() else holder(state_dir)
    if pid is None:
        raise StartRefused("chimera is not running")
    outcome = ask_for_reload(pid, outcome_directory(os.environ, state_dir))
    if outcome.faults:
        raise BadConfiguration(outcome.faults)
    for line in outcome.lines:
        click.echo(line)


@click.command("upgrade-check")
@click.pass_obj
@faults_told()
def upgrade_check(env_file: Path) -> None:
    """Say whether this version accepts the settings and database. Nothing is changed."""
    settings = servable_settings(env_file, os.environ)
    ollama = locate_ollama(settings, os.environ)
    from supervisor.root_refusals import database_for  # it takes a while to import

    database = database_for(settings)
    click.echo(f"chimera {version('chimera')} accepts {env_file}; it would run {ollama.path}; {database}")


@click.command()
@click.option("--write", is_flag=True, help="Write them and let systemd read them; as root.")
@click.option("--into", type=click.Path(path_type=Path), default=SYSTEM_UNITS, show_default=True)
@click.pass_obj
@faults_told()
def units(env_file: Path, write: bool, into: Path) -> None:
    """Show what of systemd's units follows from the settings."""
    settings = servable_settings(env_file, os.environ)
    made = drop_ins(settings, _addresses(settings))
    if not write:
        for name, text in made.items():
            click.echo(f"# {into / name}\n{text}")
        return
    changed = [name for name, text in made.items() if _written(into / name, text)]
    if changed and into == SYSTEM_UNITS:
        _daemon_reload()
    click.echo(f"written: {', '.join(changed)}" if changed else "nothing has changed")
    if any(name.startswith("chimera.socket") for name in changed):
        click.echo("to listen there: systemctl stop chimera && systemctl start chimera")


COMMANDS: tuple[click.Command, ...] = (reload, upgrade_check, units)


def _addresses(settings: Settings) -> list[tuple[str, int]]:
    try:
        return addresses_of(settings.gateway_host, settings.gateway_port)
    except OSError as error:
        raise BadConfiguration([f"GATEWAY_HOST: {settings.gateway_host!r}: {error.strerror}"]) from error


def _written(path: Path, text: str) -> bool:
    """Write a file unless it says so already; return whether it was written. Raises StartRefused."""
    try:
        if path.exists() and path.read_text(encoding="utf-8") == text:
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        path.chmod(0o644)
    except OSError as error:
        raise StartRefused(
            f"{path} cannot be written ({error.strerror}); run it as root: sudo chimera units"
        ) from error
    return True


def _daemon_reload() -> None:
    try:
        done = subprocess.run(["systemctl", "daemon-reload"], capture_output=True, text=True, timeout=60, check=False)
        fault = done.stderr.strip() if done.returncode else ""
    except (OSError, subprocess.TimeoutExpired) as error:
        fault = str(error)
    if fault:
        raise StartRefused(f"systemctl daemon-reload: {fault}")
