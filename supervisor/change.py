"""What a new configuration changes, as a plan. Pure: the doing is `reload`'s.

A reload takes the difference, not the file: what is the same is left alone, requests under way most of all.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from supervisor.config import Settings


class Reach(Enum):
    """What it takes until a changed setting counts."""

    NOW = "now"  # it is looked at where it is used
    WORKERS = "workers"  # each worker has it from its start: they restart, one after the other, drained
    FLEET = "fleet"  # workers are added or drained and removed
    CHIMERA = "chimera"  # nothing less than a restart of Chimera


# Every setting, by its field's name; a test holds this table to `Settings`.
REACH: dict[str, Reach] = {
    "gateway_host": Reach.CHIMERA,
    "gateway_port": Reach.CHIMERA,
    "tls_cert": Reach.NOW,
    "tls_key": Reach.NOW,
    "ollama_bin": Reach.CHIMERA,  # the primary runs it too
    "ollama_port": Reach.CHIMERA,
    "ollama_models": Reach.CHIMERA,  # one store for all: no two workers may have different ones
    "required_models": Reach.WORKERS,
    "workers": Reach.FLEET,
    "worker_port_base": Reach.CHIMERA,
    "worker_slots": Reach.WORKERS,
    "worker_env": Reach.WORKERS,
    "queue_size": Reach.NOW,
    "queue_bytes": Reach.NOW,
    "queue_timeout_s": Reach.NOW,
    "first_byte_timeout_s": Reach.CHIMERA,
    "stall_timeout_s": Reach.CHIMERA,
    "start_timeout_s": Reach.NOW,
    "hang_timeout_s": Reach.NOW,
    "canary_after_s": Reach.NOW,
    "worker_memory_limit_bytes": Reach.NOW,
    "load_options": Reach.NOW,
    "max_body_bytes": Reach.NOW,
    "max_connections": Reach.NOW,
    "drain_timeout_s": Reach.NOW,
    "stop_timeout_s": Reach.NOW,
    "admin_token": Reach.NOW,
    "api_keys_required": Reach.NOW,
    "trusted_proxies": Reach.NOW,
    "api_domains": Reach.NOW,
    "page_domains": Reach.NOW,
    "database_url": Reach.CHIMERA,
    "state_dir": Reach.CHIMERA,
    "log_dir": Reach.CHIMERA,
    "log_max_bytes": Reach.NOW,
    "log_level": Reach.NOW,
    "log_format": Reach.CHIMERA,
    "access_log": Reach.NOW,
    "otel_endpoint": Reach.CHIMERA,
    "otel_traces_endpoint": Reach.CHIMERA,
}


@dataclass(frozen=True, slots=True)
class Plan:
    """What a new configuration changes. `settings` is what counts from now on: the new one, but for what waits.

    `by_reach` has the names of the changed variables, as `.env` has them.
    """

    settings: Settings
    by_reach: dict[Reach, tuple[str, ...]]

    def names(self, reach: Reach) -> tuple[str, ...]:
        """Return the changed variables of one reach."""
        return self.by_reach.get(reach, ())

    @property
    def lines(self) -> list[str]:
        """Say for people what is done about each change; no value, which may be a secret."""
        said = {
            Reach.NOW: "in force: {}",
            Reach.FLEET: "the fleet is changed to fit: {}",
            Reach.WORKERS: "workers restart one after the other, drained, for: {}",
            Reach.CHIMERA: "not in force until Chimera is restarted (systemctl restart chimera): {}",
        }
        there = [text.format(", ".join(self.names(reach))) for reach, text in said.items() if self.names(reach)]
        return there or ["nothing has changed"]


def plan(now: Settings, new: Settings) -> Plan:
    """Return what it takes to get from one configuration to another.

    What needs a restart of Chimera is left as it is now, so that nothing is half in force.
    """
    changed: dict[Reach, list[str]] = {}
    waits: dict[str, object] = {}
    for name, field in Settings.model_fields.items():
        if getattr(now, name) == getattr(new, name):
            continue
        changed.setdefault(REACH[name], []).append(str(field.alias))
        if REACH[name] is Reach.CHIMERA:
            waits[name] = getattr(now, name)
    return Plan(new.model_copy(update=waits), {reach: tuple(sorted(names)) for reach, names in changed.items()})


@dataclass(frozen=True, slots=True)
class Seat:
    """A worker as far as a change of WORKERS concerns it."""

    id: str
    placement: str
    ready: bool


def refit(seats: Sequence[Seat], wanted: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the ids of the workers that go and the placements that get one more, so that the fleet is as wanted.

    Those that are not ready go first, then the youngest; `seats` are in the order of their age.
    """
    over = Counter(seat.placement for seat in seats)
    over.subtract(Counter(wanted))
    going: list[str] = []
    youngest_first = list(reversed(seats))
    for seat in sorted(youngest_first, key=lambda seat: seat.ready):
        if over[seat.placement] > 0:
            over[seat.placement] -= 1
            going.append(seat.id)
    missing = Counter({placement: -count for placement, count in over.items() if count < 0})
    coming: list[str] = []
    for placement in wanted:
        if missing[placement] > 0:
            missing[placement] -= 1
            coming.append(placement)
    return going, coming


@dataclass(frozen=True, slots=True)
class Turn:
    """A worker as far as restarting one after the other concerns it.

    `stale`: its process was started with older settings. `served`: it was ready when the change came, or has been
    since. `held`: the operator keeps it from serving (cordoned), or it is going.
    """

    id: str
    stale: bool
    ready: bool
    served: bool
    held: bool = False


def next_to_restart(turns: Sequence[Turn]) -> str | None:
    """Return the worker that restarts now, None: wait, or nothing is left to do.

    One that does not serve costs nobody anything. One that serves goes only while every worker that has restarted
    serves again: if the new settings keep the first from becoming ready, the others go on with the old ones.
    """
    stale = [turn for turn in turns if turn.stale]
    idle = next((turn for turn in stale if not turn.ready), None)
    if idle is not None:
        return idle.id
    returning = any(turn.served and not turn.ready and not turn.held for turn in turns)
    return None if returning or not stale else stale[0].id
