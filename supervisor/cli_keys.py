"""`chimera keys`: API keys from the command line, through the admin API like every other command."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import click

from supervisor import show
from supervisor.admin_client import call
from supervisor.cli_faults import faults_told
from supervisor.env_file import settings_from

Function = TypeVar("Function", bound=Callable[..., Any])

# What JSON has null for.
NO_LIMIT = "none"


class Limit(click.ParamType[int | str]):
    """A limit: a whole number from 1 on, or none."""

    name = "N|none"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> int | str:
        """Return the number, or NO_LIMIT."""
        if value == NO_LIMIT:
            return NO_LIMIT
        if re.fullmatch(r"0*[1-9][0-9]{0,9}", str(value)) is None:
            self.fail(f"{value!r} is not a whole number from 1 on, or {NO_LIMIT}", param, context)
        return int(value)


def _limits(function: Function) -> Function:
    for option in (
        click.option("--priority", type=click.IntRange(0, 9), help="The highest that it may ask for; default: 0."),
        click.option("--tokens-per-minute", type=Limit(), help="Tokens a minute, of prompts and answers."),
        click.option("--requests-per-minute", type=Limit(), help="Requests a minute."),
        click.option("--concurrency", type=Limit(), help="Requests at the same time, waiting ones too."),
    ):
        function = option(function)
    return function


def _body(fields: dict[str, Any]) -> dict[str, Any]:
    """Return what was given, as the admin API has it."""
    return {name: None if value == NO_LIMIT else value for name, value in fields.items() if value is not None}


@click.group(invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.pass_context
@faults_told()
def keys(context: click.Context, as_json: bool) -> None:
    """Show the API keys; make, limit and revoke them."""
    if context.invoked_subcommand is not None:
        return
    answer = _call(context.obj, "GET", "/admin/keys")
    if as_json:
        click.echo(json.dumps(answer, indent=1))
    elif answer["keys"]:
        show.console().print(show.keys(answer["keys"]))
    else:
        click.echo("no keys; make one with: chimera keys create NAME")
    if answer["keys"] and not answer["required"] and not as_json:
        click.echo("requests without a key are answered too, until API_KEYS_REQUIRED=true")


@keys.command()
@click.argument("name")
@_limits
@click.option("--models", is_flag=True, help="It may pull, push, create, copy and delete models.")
@click.pass_obj
@faults_told()
def create(env_file: Path, /, **fields: Any) -> None:
    """Make a key, and print it, this once, alone on standard output: KEY=$(chimera keys create NAME)."""
    row = _call(env_file, "POST", "/admin/keys", _body(fields))
    click.echo(f"{row['id']}  {row['name']}: keep it now, it cannot be shown again", err=True)
    click.echo(row["key"])


@keys.command()
@click.argument("key_id", metavar="ID")
@_limits
@click.option("--name", help="Another name.")
@click.option("--models/--no-models", default=None, help="Whether it may change the model store.")
@click.pass_obj
@faults_told()
def limit(env_file: Path, /, key_id: str, **fields: Any) -> None:
    """Change what is named of a key, at once; `none` takes a limit away."""
    body = _body(fields)
    if not body:
        raise click.UsageError("say what is to change, such as --concurrency 2")
    row = _call(env_file, "PATCH", _path(key_id), body)
    click.echo(f"{row['id']}  {row['name']}: " + ", ".join(f"{name} {_said(row[name])}" for name in sorted(body)))


@keys.command()
@click.argument("key_id", metavar="ID")
@click.pass_obj
@faults_told()
def revoke(env_file: Path, key_id: str) -> None:
    """Let a key count no more, at once; its running requests end in peace."""
    click.echo(f"revoked {_call(env_file, 'DELETE', _path(key_id))['revoked']}")


def _call(env_file: Path, method: str, path: str, body: object = None) -> dict[str, Any]:
    return call(settings_from(env_file, os.environ), method, path, body)


def _path(key_id: str) -> str:
    return f"/admin/keys/{quote(key_id, safe='')}"


def _said(value: object) -> str:
    return NO_LIMIT if value is None else str(value).lower() if isinstance(value, bool) else str(value)
