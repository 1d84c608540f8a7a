"""The `chimera` command. Exit status: 0 done; 1 refused or failed, one clear line; 2 usage; 78 bad configuration."""

import json
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar
from urllib.parse import quote

import click
import httpx
import trio
from dotenv.parser import parse_stream

from supervisor import background, logs, output, show
from supervisor.cli_doctor import GatewaysPart, doctor_command
from supervisor.cli_keys import key_commands
from supervisor.cli_service import service_commands
from supervisor.config import CLIENT_NAMES, Settings, effective, load_settings
from supervisor.errors import BadConfiguration, StartRefused, SupervisorError
from supervisor.locate import Ollama, locate_ollama, with_embedded_defaults
from supervisor.notify import notifier_of, one_line
from supervisor.tls import trusting, warnings_of, written_faults

EX_CONFIG = 78
# Spawning with --wait waits for a model to load, pruning for answers to end; the gateway has its own limits.
HTTP_TIMEOUT_S = 1000.0

Params = ParamSpec("Params")
Result = TypeVar("Result")


class Refused(click.ClickException):
    """A refusal as one line on standard error, status 1."""

    def show(self, file: Any = None) -> None:
        """Print it."""
        click.echo(f"chimera: {self.format_message()}", err=True)


def read_dotenv(path: Path) -> tuple[dict[str, str | None], tuple[str, ...]]:
    """Return the names and values of a `.env`, and a line for each line of it that is none; no file is no fault."""
    try:
        with path.open(encoding="utf-8-sig") as file:  # some editors begin a file with a byte order mark
            bindings = list(parse_stream(file))
    except FileNotFoundError:
        return {}, ()
    except (OSError, UnicodeDecodeError) as error:
        return {}, (f"{path}: cannot be read: {error}",)
    values: dict[str, str | None] = {}
    faults: list[str] = []
    for binding in bindings:
        # "NAME" alone is no setting either; blank lines and comments have neither key nor error
        if binding.error or (binding.key and binding.value is None):
            text = binding.original.string
            line = binding.original.line + len(text[: -len(text.lstrip())].splitlines())
            named = re.match(r"\s*([A-Za-z_]\w*)\s*=", text)  # never the rest: it may be a secret
            faults.append(f"{path} line {line}: {named[1] + ': ' if named else ''}this is not NAME=VALUE")
        elif binding.key:
            values[binding.key] = binding.value
    return values, tuple(faults)


def settings_from(env_file: Path, environ: Mapping[str, str]) -> Settings:
    """Return the settings of this environment. Raises BadConfiguration."""
    values, faults = read_dotenv(env_file)
    return load_settings(environ, values, faults)


def servable_settings(env_file: Path, environ: Mapping[str, str]) -> Settings:
    """Return the settings for whoever is to serve by them: the files that they name are read too, the key among them.

    Raises BadConfiguration.
    """
    values, faults = read_dotenv(env_file)
    return load_settings(environ, values, (*faults, *written_faults(environ, values)))


@contextmanager
def faults_told() -> Iterator[None]:
    """Turn errors into one line each and the right exit status."""
    try:
        yield
    except BadConfiguration as error:
        _tell_faults(error.faults)
        sys.exit(EX_CONFIG)
    except SupervisorError as error:
        notifier_of(os.environ).say(STATUS=one_line(str(error)))
        raise Refused(str(error)) from error
    except KeyboardInterrupt as error:
        raise Refused("interrupted") from error
    except OSError as error:
        if not output.is_full(error):
            raise
        output.forget(sys.stdout)
        raise Refused(f"standard output cannot be written: {error.strerror}") from error


def _tell_faults(faults: Sequence[str]) -> None:
    for fault in faults:
        click.echo(f"chimera: bad configuration: {fault}", err=True)
    notifier_of(os.environ).say(STATUS=one_line("bad configuration: " + "; ".join(faults)))


def command(function: Callable[Params, Result]) -> Callable[Params, Result]:
    """Give a command the one way of telling faults."""

    @wraps(function)
    def wrapped(*args: Params.args, **kwargs: Params.kwargs) -> Result:
        with faults_told():
            return function(*args, **kwargs)
        raise AssertionError("faults_told does not swallow")

    return wrapped


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--env-file", type=click.Path(path_type=Path), default=Path(".env"), show_default=True,
              help="Settings, NAME=VALUE a line; the environment overrides them.")  # fmt: skip
@click.version_option(package_name="chimera")
@click.pass_context
def main(context: click.Context, env_file: Path) -> None:
    """Run Ollama on every GPU of this machine, behind one address."""
    context.obj = env_file


def _ollama(settings: Settings) -> tuple[Settings, Ollama]:
    ollama = locate_ollama(settings, os.environ)
    return with_embedded_defaults(settings, ollama), ollama


@main.command()
@click.pass_obj
@command
def run(env_file: Path) -> None:
    """Run the supervisor and the gateway in the foreground."""
    settings, ollama = _ollama(servable_settings(env_file, os.environ))
    logs.configure(settings.log_level, settings.log_format)
    from supervisor.__main__ import run as run_chimera

    def reread() -> Settings:
        return _ollama(servable_settings(env_file, os.environ))[0]

    trio.run(run_chimera, settings, ollama, dict(os.environ), reread)


@main.command()
@click.pass_obj
@command
def start(env_file: Path) -> None:
    """Start in the background; returns when the fleet is ready."""
    settings, _ = _ollama(servable_settings(env_file, os.environ))
    try:
        pid = background.start(settings, env_file, _fleet_of(settings), click.echo)
    except KeyboardInterrupt as error:
        raise Refused(
            "interrupted; Chimera goes on in the background, see: chimera status; to end it: chimera stop"
        ) from error
    click.echo(f"chimera runs (process {pid}) at {settings.shown_url}; log: {background.log_path(settings)}")
    _print_status(settings)


@main.command()
@click.pass_obj
@command
def stop(env_file: Path) -> None:
    """Stop what `start` or `run` started. Answers that are under way may end first."""
    settings = settings_from(env_file, os.environ)
    pid = background.stop(settings)
    click.echo("chimera is not running" if pid is None else f"chimera (process {pid}) has stopped")


@main.command()
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.option("--watch", is_flag=True, help="Refresh each second until Ctrl-C.")
@click.pass_obj
@command
def status(env_file: Path, as_json: bool, watch: bool) -> None:
    """Show the gateway, the primary, the workers and the GPUs."""
    settings = settings_from(env_file, os.environ)
    if as_json:
        click.echo(json.dumps(_fleet(settings) | _get(settings, "/admin/gpus"), indent=1))
    elif watch:
        show.watch(lambda: show.status(settings.shown_url, _fleet(settings), _get(settings, "/admin/gpus")))
    else:
        _print_status(settings)


@main.command()
@click.option("--gpu", help="An index, a UUID or its beginning, or cpu; default: where there is most room.")
@click.option("--count", type=click.IntRange(1), default=1, show_default=True)
@click.option("--slots", type=click.IntRange(1), help="Requests each answers at once; default: WORKER_SLOTS.")
@click.option("--wait", is_flag=True, help="Return when they are ready.")
@click.pass_obj
@command
def spawn(env_file: Path, gpu: str | None, count: int, slots: int | None, wait: bool) -> None:
    """Add workers."""
    settings = settings_from(env_file, os.environ)
    ask = {"gpu": gpu, "count": count, "slots": slots, "wait": wait}
    rows = _post(settings, "/admin/instances/spawn", ask)["instances"]
    for row in rows:
        click.echo(f"{row['id']}  {row['placement']}  port {row['port']}  {row['state']}")
    if wait and any(row["state"] not in ("IDLE", "BUSY") for row in rows):
        raise Refused("not every new worker is ready; see: chimera status")


@main.command()
@click.argument("ids", nargs=-1)
@click.option("--gpu", help="Only those on this GPU (or cpu).")
@click.option("--idle", is_flag=True, help="Only those without a request.")
@click.option("--force", is_flag=True, help="Do not wait for answers that are under way.")
@click.pass_obj
@command
def prune(env_file: Path, ids: tuple[str, ...], gpu: str | None, idle: bool, force: bool) -> None:
    """Drain and remove workers: those named, or all."""
    settings = settings_from(env_file, os.environ)
    ask = {"ids": list(ids) or None, "gpu": gpu, "idle": idle, "force": force}
    pruned = _post(settings, "/admin/instances/prune", ask)["pruned"]
    click.echo("pruned " + " ".join(pruned) if pruned else "nothing to prune")


def _verb(name: str, text: str) -> None:
    @main.command(name, help=text)
    @click.argument("worker_id", metavar="ID")
    @click.pass_obj
    @command
    def order(env_file: Path, worker_id: str) -> None:
        settings, path = settings_from(env_file, os.environ), f"/admin/instances/{quote(worker_id, safe='')}"
        _post(settings, f"{path}/{name}", None)
        row = _get(settings, path)  # the order's own answer has the state from before it
        click.echo(f"{row['id']}  {row['state']}")


_verb("drain", "Cordon a worker, and let the requests that it has end.")
_verb("cordon", "Give a worker no new requests.")
_verb("uncordon", "Give a worker requests again.")
_verb("restart", "Drain a worker and start it again.")


@main.command("logs")
@click.argument("worker_id", metavar="ID")
@click.option("-f", "--follow", is_flag=True, help="Go on as lines come.")
@click.option("-n", "count", type=click.IntRange(0), default=200, show_default=True, help="Lines to begin with.")
@click.pass_obj
@command
def logs_(env_file: Path, worker_id: str, follow: bool, count: int) -> None:
    """Print the log of a worker, or of the primary."""
    path = f"/admin/instances/{quote(worker_id, safe='')}/logs"
    _stream(env_file, f"{path}?n={count}&follow={int(follow)}", click.echo)


@main.command()
@click.option("-f", "--follow", is_flag=True, help="Go on as things happen.")
@click.option("--json", "as_json", is_flag=True, help="For programs: one JSON object a line.")
@click.pass_obj
@command
def events(env_file: Path, follow: bool, as_json: bool) -> None:
    """Print every change of a worker or GPU, with its cause."""

    def say(line: str) -> None:
        click.echo(line if as_json else show.event(json.loads(line)))

    _stream(env_file, f"/admin/events?follow={int(follow)}", say)


def _stream(env_file: Path, path: str, say: Callable[[str], None]) -> None:
    settings = settings_from(env_file, os.environ)
    with _client(settings) as client, _connected(settings), client.stream("GET", path, timeout=None) as answer:
        if answer.status_code >= 400:
            answer.read()
            _checked(answer)
        with suppress(KeyboardInterrupt):  # Ctrl-C is how one stops following
            for line in answer.iter_lines():
                say(line)


def _gpu_verb(name: str, text: str) -> None:
    @main.command(name, help=text)
    @click.argument("gpu", metavar="GPU")
    @click.pass_obj
    @command
    def order(env_file: Path, gpu: str) -> None:
        row = _post(settings_from(env_file, os.environ), f"/admin/gpus/{quote(gpu, safe='')}/{name}", None)
        click.echo(f"GPU {row['index']} {row['uuid']}  {row['verdict']}")


_gpu_verb("quarantine", "Take a GPU out of use. Its workers are drained and stopped, until it is released.")
_gpu_verb("release", "Let a quarantined GPU be used again.")


@main.command()
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.pass_obj
@command
def gpus(env_file: Path, as_json: bool) -> None:
    """Show the GPUs."""
    answer = _get(settings_from(env_file, os.environ), "/admin/gpus")
    if as_json:
        click.echo(json.dumps(answer, indent=1))
    else:
        show.console().print(show.gpus(answer))


@main.command()
@click.pass_obj
@command
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
@command
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


# -- talking to the gateway ------------------------------------------------------------------------------------------


def _client(settings: Settings) -> httpx.Client:
    token = settings.admin_token
    headers = {"Authorization": f"Bearer {token.get_secret_value()}"} if token else {}
    trusted = trusting(settings.tls_cert) if settings.tls_cert else True
    return httpx.Client(
        base_url=settings.gateway_url, headers=headers, timeout=HTTP_TIMEOUT_S, trust_env=False, verify=trusted
    )


@contextmanager
def _connected(settings: Settings) -> Iterator[None]:
    try:
        yield
    except httpx.ConnectError as error:
        if "[SSL:" in str(error):
            raise StartRefused(
                f"what answers at {settings.gateway_url} is not the certificate of TLS_CERT; after a change of it: "
                f"chimera reload ({error})"
            ) from error
        raise StartRefused(
            f"no gateway answers at {settings.gateway_url}; start one with `make run` or `chimera start`"
        ) from error
    except httpx.HTTPError as error:
        raise StartRefused(f"{settings.gateway_url}: {str(error) or type(error).__name__}") from error


def _checked(answer: httpx.Response) -> httpx.Response:
    if answer.status_code < 400:
        return answer
    try:
        sentence = answer.json()["error"]
    except (ValueError, KeyError, TypeError):
        sentence = f"{answer.url} answered {answer.status_code}; is another program listening there?"
    raise Refused(str(sentence))


def _object(answer: httpx.Response) -> dict[str, Any]:
    """Return the JSON object of a good answer; refuse what no Chimera answers."""
    try:
        value = _checked(answer).json()
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise Refused(f"{answer.url} answered no JSON object; is another program listening there?")
    return value


def _get(settings: Settings, path: str) -> dict[str, Any]:
    with _client(settings) as client, _connected(settings):
        return _object(client.get(path))


def _post(settings: Settings, path: str, body: object) -> dict[str, Any]:
    with _client(settings) as client, _connected(settings):
        try:
            return _object(client.post(path, json=body) if body else client.post(path))
        except KeyboardInterrupt as error:
            raise Refused("interrupted; what was asked for goes on, see: chimera status") from error


def _call(env_file: Path, method: str, path: str, body: object = None) -> dict[str, Any]:
    """Make any call of the admin API, for commands in files of their own."""
    with faults_told():
        settings = settings_from(env_file, os.environ)
        with _client(settings) as client, _connected(settings):
            return _object(client.request(method, path, json=body))
    raise AssertionError("faults_told does not swallow")


def _gateways() -> GatewaysPart:
    from supervisor.__main__ import gateways_part

    return gateways_part()


def _database_for(settings: Settings) -> str:
    from supervisor.__main__ import database_for

    return database_for(settings)


main.add_command(key_commands(_call))
main.add_command(doctor_command(servable_settings, _gateways))
for each in service_commands(servable_settings, read_dotenv, faults_told, _database_for):
    main.add_command(each)


def _fleet(settings: Settings) -> dict[str, Any]:
    return _get(settings, "/admin/instances")


def _fleet_of(settings: Settings) -> Callable[[], dict[str, Any] | None]:
    """Return a way to ask for the fleet that says None while nobody answers yet."""

    def ask() -> dict[str, Any] | None:
        try:
            return _fleet(settings)
        except StartRefused:
            return None

    return ask


def _print_status(settings: Settings) -> None:
    show.console().print(show.status(settings.shown_url, _fleet(settings), _get(settings, "/admin/gpus")))


if __name__ == "__main__":
    main()
