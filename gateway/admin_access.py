"""The access line of a request to the admin API: who asked for what, and what became of it.

As of other requests: never a query, a body, a token or a key. What a change was about is in the events.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from random import getrandbits

import trio

from gateway.access import AccessLog, fields_of
from gateway.errors import ClientGone
from gateway.forwarded import TrustedProxies
from gateway.headers import Headers, first_values, request_id_of
from gateway.phases import Phases, outcome_of

PREFIX = "/admin/"


@dataclass(slots=True)
class Followed:
    """One request to the admin API; who answers it writes down `status` and `answer_bytes`."""

    id: str
    client: str
    method: str
    path: str
    arrived_at: float
    status: int = 0
    answer_bytes: int = 0
    phases: Phases = field(default_factory=Phases)


@contextmanager
def following(
    access: Callable[[], AccessLog | None], proxies: TrustedProxies, method: str, path: str, peer: str, headers: Headers
) -> Iterator[Followed]:  # fmt: skip
    """Follow a request for the block, however it is left, and write its line then.

    A client that leaves while it waits, which cancels the block, has asked nevertheless. An answer without end (logs
    and events that are followed) has its line when it begins.
    """
    client = proxies.origin(peer, headers).address
    asked = Followed(request_id_of(first_values(headers), getrandbits), client, method, path, trio.current_time())
    try:
        yield asked
    except trio.Cancelled:
        asked.phases.fault = ClientGone()
        raise
    finally:
        _tell(access(), asked)


def _tell(access: AccessLog | None, asked: Followed) -> None:
    phases = asked.phases
    phases.ended_at = trio.current_time()
    phases.answered_at = phases.ended_at if asked.status else None
    phases.status, phases.bytes_out = asked.status, asked.answer_bytes
    phases.outcome = outcome_of(phases)
    if access is not None and access.wants(phases.outcome):
        access.tell(
            fields_of(
                request_id=asked.id, client=asked.client, method=asked.method, path=asked.path, worker_id=None,
                attempts=0, arrived_at=asked.arrived_at, waited_s=0.0, phases=phases,
            )
        )  # fmt: skip
