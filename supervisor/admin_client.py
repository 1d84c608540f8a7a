"""Calls of the admin API of the Chimera that runs by these settings, for the commands.

Raises Refused with the gateway's own sentence, and StartRefused when no gateway answers there.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from supervisor.cli_faults import Refused
from supervisor.config import Settings
from supervisor.errors import StartRefused
from supervisor.tls import no_tls, trusting

# Spawning with --wait waits for a model to load, pruning for answers to end; the gateway has its own limits.
HTTP_TIMEOUT_S = 1000.0


def call(settings: Settings, method: str, path: str, body: object = None) -> dict[str, Any]:
    """Return the JSON object that is answered."""
    with _client(settings) as client, _connected(settings):
        try:
            return _object(client.request(method, path, json=body))
        except KeyboardInterrupt as error:
            if method == "GET":
                raise
            raise Refused("interrupted; what was asked for goes on, see: chimera status") from error


def lines(settings: Settings, path: str) -> Iterator[str]:
    """Yield an answer line by line, as they come, without a limit of time."""
    with _client(settings) as client, _connected(settings), client.stream("GET", path, timeout=None) as answer:
        if answer.status_code >= 400:
            answer.read()
            _checked(answer)
        yield from answer.iter_lines()


def _client(settings: Settings) -> httpx.Client:
    token = settings.admin_token
    headers = {"Authorization": f"Bearer {token.get_secret_value()}"} if token else {}
    trusted = trusting(settings.tls_cert) if settings.tls_cert else no_tls()
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
