"""What a scenario is, and the times that all of them share. Pure."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from scripts.faults.trial import Trial

Kind = Literal["real", "fake"]

# The watchdogs, short: a table of 30 faults is to take minutes.
HANG_S, STALL_S, FIRST_BYTE_S, START_S, STOP_S, CANARY_S = 4.0, 4.0, 5.0, 2.5, 2.0, 3.0
# A real model loads for seconds on two busy cores, a request may wait for two loads, and a token for a load.
REAL_FIRST_BYTE_S, REAL_STALL_S, REAL_START_S = 40.0, 12.0, 60.0
HEAL_S = 30.0
# Point 2 of the issue, and how much slower a loaded machine may be before the row counts as broken.
NOTICED_S, REPLACED_S, SLACK = 0.05, 1.0, 4.0
# A hung one: within its watchdog's time and 2 s. Timers of a loaded machine are late, never early.
WATCHDOG_GRACE_S, LATE_S = 2.0, 2.0
# The silence of an answer counts from its last byte, which may have come a moment before the fault.
LAST_BYTE_S = 1.0


@dataclass(frozen=True)
class Scenario:
    """One fault: how Chimera is set up for it, and what is done.

    `cuts`: it strikes answers under way. `tokens`: how long an answer of real Ollama is. `resend`: clients ask again
    when there is no gateway. `begins`: Chimera and the load run already when `play` begins. `quick`: a test too.
    `slow`: it takes a minute or more, and begins before the others. `unary`: every second request is no stream.
    """

    name: str
    kind: Kind
    play: "Callable[[Trial], None]"
    env: dict[str, str] = field(default_factory=dict)
    workers: int = 2
    cuts: bool = False
    gpus: bool = False
    tokens: int = 6
    resend: bool = False
    begins: bool = True
    quick: bool = False
    slow: bool = False
    unary: bool = True
    model: str = "tiny"


def settings_of(scenario: Scenario, *, real_models: str, path: str) -> dict[str, str]:
    """Return a scenario's settings, beside those of every Chimera of a test (tests/fakes/chimera.py).

    `real_models` is the store that all real ones share, `path` a PATH without an `ollama` of the machine's own.
    """
    real = scenario.kind == "real"
    first_byte_s, stall_s, start_s = (
        (REAL_FIRST_BYTE_S, REAL_STALL_S, REAL_START_S) if real else (FIRST_BYTE_S, STALL_S, START_S)
    )
    env = {
        "WORKERS": "auto" if scenario.gpus else "cpu=2",
        "WORKER_SLOTS": "2",
        "STOP_TIMEOUT_S": f"{STOP_S:g}",
        "DRAIN_TIMEOUT_S": "5",
        "HANG_TIMEOUT_S": f"{HANG_S:g}",
        "STALL_TIMEOUT_S": f"{stall_s:g}",
        "CANARY_AFTER_S": "0",
        "FIRST_BYTE_TIMEOUT_S": f"{first_byte_s:g}",
        "START_TIMEOUT_S": f"{start_s:g}",
    }
    own = {"OLLAMA_BIN": "", "OLLAMA_MODELS": real_models, "PATH": path} if real else {"REQUIRED_MODEL": "tiny"}
    return env | own | scenario.env
