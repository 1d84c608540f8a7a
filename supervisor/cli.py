"""The `chimera` command: starting, stopping, settings; the other commands are in files of their own (`cli_…`)."""

import os
import shlex
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import click
import trio

from supervisor import background, cli_fleet, cli_service, logs
from supervisor.cli_doctor import doctor
from supervisor.cli_faults import Refused, faults_told
from supervisor.cli_keys import keys
from supervisor.config import CLIENT_NAMES, Settings
from supervisor.config_text import effective
from supervisor.env_file import read_dotenv, servable_settings, settings_from
from supervisor.locate import Ollama, locate_ollama, with_embedded_defaults
from supervisor.tls import warnings_of


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--env-file", type=click.Path(path_type=Path), default=Path(".env"), show_default=True,
              help="Settings, NAME=VALUE a line; the environment overrides them.")  # fmt: skip
@click.version_option(package_name="chimera")
@click.pass_context
def main(context: click.Context, env_file: Path) -> None:
    """Run Ollama on every GPU of this machine, behind one address."""
    context.obj = env_file


def _to_serve_by(env_file: Path) -> tuple[Settings, Ollama]:
    """Return the settings, and the ollama to run by them. Raises BadConfiguration."""
    settings = servable_settings(env_file, os.environ)
    ollama = locate_ollama(settings, os.environ)
    return with_embedded_defaults(settings, ollama), ollama


@main.command()
@click.pass_obj
@faults_told()
def run(env_file: Path) -> None:
    """Run the supervisor and the gateway in the foreground."""
    settings, ollama = _to_serve_by(env_file)
    logs.configure(settings.log_level, settings.log_format)
    from supervisor.__main__ import run as run_chimera

    trio.run(run_chimera, settings, ollama, dict(os.environ), lambda: _to_serve_by(env_file)[0])


@main.command()
@click.pass_obj
@faults_told()
def start(env_file: Path) -> None:
    """Start in the background; returns when the fleet is ready."""
    settings, _ = _to_serve_by(env_file)
    try:
        pid = background.start(settings, env_file, partial(cli_fleet.fleet_if_there, settings), click.echo)
    except KeyboardInterrupt as error:
        raise Refused(
            "interrupted; Chimera goes on in the background, see: chimera status; to end it: chimera stop"
        ) from error
    click.echo(f"chimera runs (process {pid}) at {settings.shown_url}; log: {background.log_path(settings)}")
    cli_fleet.print_status(settings)


@main.command()
@click.pass_obj
@faults_told()
def stop(env_file: Path) -> None:
    """Stop what `start` or `run` started. Answers that are under way may end first."""
    settings = settings_from(env_file, os.environ)
    pid = background.stop(settings)
    click.echo("chimera is not running" if pid is None else f"chimera (process {pid}) has stopped")


@main.command()
@click.pass_obj
@faults_told()
def config(env_file: Path) -> None:
    """Print the effective settings; every fault of them at once."""
    settings = servable_settings(env_file, os.environ)
    for name, value in effective(settings).items():
        click.echo(f"{name}={value}")
    ollama = locate_ollama(settings, os.environ)
    click.echo(f"# ollama: {ollama.path}{' (CPU build)' if ollama.embedded else ''}")
    for warning in warnings_of(settings, datetime.now(UTC).timestamp()):
        click.echo(f"# warning: {warning}")


@main.command()
@click.pass_obj
@faults_told()
def env(env_file: Path) -> None:
    """Print the variables that client.sh and the scripts need. For: eval "$(chimera env)"."""
    settings = settings_from(env_file, os.environ)
    written, _ = read_dotenv(env_file)
    own = {name: text for name in CLIENT_NAMES if (text := os.environ.get(name) or written.get(name))}
    values = {"CHIMERA_URL": settings.shown_url}
    if settings.tls_cert and "CHIMERA_URL" not in own:  # another address has a certificate of its own
        values["CHIMERA_CA"] = str(settings.tls_cert)
    if settings.admin_token:
        values["ADMIN_TOKEN"] = settings.admin_token.get_secret_value()
    for name, value in sorted((values | own).items()):
        click.echo(f"export {name}={shlex.quote(value)}")


for each in (*cli_fleet.COMMANDS, keys, doctor, *cli_service.COMMANDS):
    main.add_command(each)


if __name__ == "__main__":
    main()
