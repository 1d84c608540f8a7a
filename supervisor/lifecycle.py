"""A worker's states, the events that move it, and the one table that says which move is allowed.

Wanted, running and ready are three separate facts (design.md). A worker in this table is wanted until it is
GONE; it is running between STARTING and the end of STOPPING; it is ready only in READY. STOPPING is the one
way out of running: there the whole process group is ended and reaped, whatever came before, so that no other
state has to think about leftovers.
"""

from enum import StrEnum


class State(StrEnum):
    """Where a worker is in its life."""

    STARTING = "STARTING"  # the process is there; it does not answer yet, or the port is not yet its own
    WARMING = "WARMING"  # it answers; required models are being fetched and the first one loaded
    READY = "READY"  # may be given leases (shown as IDLE or BUSY)
    CORDONED = "CORDONED"  # healthy, takes no new leases until uncordoned
    DRAINING = "DRAINING"  # takes no new leases and waits for the last one to end; then CORDONED, or stopped
    STOPPING = "STOPPING"  # its process group is being ended and reaped
    BACKOFF = "BACKOFF"  # failed; waits before the next start
    QUARANTINED = "QUARANTINED"  # its GPU takes no worker until it is released
    GONE = "GONE"  # pruned; the end


class Event(StrEnum):
    """What happened to a worker."""

    ANSWERED = "answered"  # HTTP answers, and the port belongs to this worker's process
    WARMED = "warmed"  # the required models are present, the first one is loaded
    CORDON = "cordon"
    UNCORDON = "uncordon"
    DRAIN = "drain"
    DRAINED = "drained"
    STOP = "stop"  # drained, start failed, found unhealthy, or told to stop at once
    EXITED = "exited"  # the process ended by itself
    BACK_OFF = "back_off"  # the group is gone; it failed and will be tried again
    RESTART = "restart"  # the group is gone; start again at once
    RETRY = "retry"  # the back-off is over
    QUARANTINE = "quarantine"
    RELEASE = "release"
    REMOVE = "remove"


TRANSITIONS: dict[State, dict[Event, State]] = {
    State.STARTING: {Event.ANSWERED: State.WARMING, Event.STOP: State.STOPPING, Event.EXITED: State.STOPPING},
    State.WARMING: {Event.WARMED: State.READY, Event.STOP: State.STOPPING, Event.EXITED: State.STOPPING},
    State.READY: {
        Event.CORDON: State.CORDONED,
        Event.DRAIN: State.DRAINING,
        Event.STOP: State.STOPPING,
        Event.EXITED: State.STOPPING,
    },
    State.CORDONED: {
        Event.UNCORDON: State.READY,
        Event.DRAIN: State.DRAINING,
        Event.STOP: State.STOPPING,
        Event.EXITED: State.STOPPING,
    },
    State.DRAINING: {
        Event.DRAINED: State.CORDONED,
        Event.UNCORDON: State.READY,
        Event.STOP: State.STOPPING,
        Event.EXITED: State.STOPPING,
    },
    State.STOPPING: {
        Event.BACK_OFF: State.BACKOFF,
        Event.RESTART: State.STARTING,
        Event.QUARANTINE: State.QUARANTINED,
        Event.REMOVE: State.GONE,
    },
    State.BACKOFF: {Event.RETRY: State.STARTING, Event.QUARANTINE: State.QUARANTINED, Event.REMOVE: State.GONE},
    State.QUARANTINED: {Event.RELEASE: State.STARTING, Event.REMOVE: State.GONE},
    State.GONE: {},
}

RUNNING = frozenset({State.STARTING, State.WARMING, State.READY, State.CORDONED, State.DRAINING, State.STOPPING})


class IllegalTransition(Exception):
    """A worker's owner asked for a move that the table does not have: a bug in Chimera, never a user's fault."""


def after(state: State, event: Event) -> State:
    """Return the state that follows `event` in `state`.

    Raises IllegalTransition when the table has no such move.
    """
    try:
        return TRANSITIONS[state][event]
    except KeyError:
        raise IllegalTransition(f"{event} in {state}") from None


def shown(state: State, inflight: int) -> str:
    """Return the state as operators see it: READY is IDLE without and BUSY with leases in flight."""
    if state is not State.READY:
        return state.value
    return "BUSY" if inflight else "IDLE"


def diagram() -> str:
    """Return the table as a Mermaid state diagram, for the README (a test holds the two together)."""
    lines = ["stateDiagram-v2", "    [*] --> STARTING"]
    for state, moves in TRANSITIONS.items():
        targets: dict[State, list[str]] = {}
        for event, target in moves.items():
            targets.setdefault(target, []).append(event.value)
        lines += [f"    {state} --> {target}: {', '.join(events)}" for target, events in targets.items()]
    return "\n".join([*lines, "    GONE --> [*]"])
