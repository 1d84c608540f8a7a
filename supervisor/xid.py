"""What an Xid means and what Chimera does about it: one table, with the source of each row. Pure.

An Xid is a numbered error report of the NVIDIA driver. The sources, by the letters of the rows' `source`:

- *catalogue*: NVIDIA's Xid catalogue (docs.nvidia.com/deploy/xid-errors, "Resolution Bucket (Immediate Action)").
- *device plugin*: NVIDIA's Kubernetes device plugin 0.20: every Xid makes a GPU unhealthy but 13, 31, 43, 45, 68, 109.
- *DCGM*: NVIDIA's DCGM 4.6, health watch and policy ("devastating" and memory Xids).

Where they disagree the catalogue decides, as it names an action; the row says so.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Action(StrEnum):
    """What is done about an Xid."""

    NOTE = "note"  # told to the operator; nothing is stopped
    RESTART = "restart"  # the GPU is well, the program on it is not: its workers start anew on the same GPU
    QUARANTINE = "quarantine"  # the GPU takes no worker until it is well again


@dataclass(frozen=True, slots=True)
class Xid:
    """One row of the table.

    `needs_reset`: the fault stays until the GPU is reset (or the machine rebooted), however well it answers.
    `void`: answers computed there now are not to be trusted or will never come, so nothing is waited for.
    `source`: who says so, in their words.
    """

    code: int
    meaning: str
    action: Action
    needs_reset: bool
    source: str
    void: bool = False


def _note(code: int, meaning: str, source: str) -> Xid:
    return Xid(code, meaning, Action.NOTE, needs_reset=False, source=source)


def _restart(code: int, meaning: str, source: str) -> Xid:
    return Xid(code, meaning, Action.RESTART, needs_reset=False, source=source)


def _quarantine(code: int, meaning: str, source: str, *, void: bool = False) -> Xid:
    return Xid(code, meaning, Action.QUARANTINE, needs_reset=True, source=source, void=void)


_APP: Final = "catalogue: RESTART_APP"
_APP_IGNORED: Final = f"{_APP}; device plugin: ignored, the application's own fault"
_RESET: Final = "catalogue: RESET_GPU"

_ROWS: Final = (
    # The program's fault, or harm that was kept to the program. The GPU goes on.
    _restart(13, "graphics engine exception", _APP_IGNORED),
    _restart(31, "GPU memory page fault", _APP_IGNORED),
    _restart(32, "invalid or corrupted push buffer stream", f"{_APP}; DCGM: memory, warn"),
    _restart(39, "copy engine exception", _APP),
    _restart(40, "copy engine exception", _APP),
    _restart(41, "copy engine exception", _APP),
    _restart(68, "video decoder exception", _APP_IGNORED),
    _restart(69, "graphics engine class error", _APP),
    _restart(80, "corrupted data sent to the GPU", _APP),
    _restart(94, "contained memory error", f"{_APP}; DCGM: devastating, warn; device plugin: unhealthy"),
    # Told, with nothing to be done about it now.
    _note(43, "GPU stopped processing for one program", "catalogue: IGNORE; device plugin: ignored; DCGM: warn"),
    _note(44, "graphics engine fault during context switch", "catalogue: IGNORE"),
    _note(45, "pre-emptive cleanup after an earlier error", "catalogue: follow the other Xid; device plugin: ignored"),
    _note(63, "memory row remapping or page retirement recorded", "catalogue: IGNORE; DCGM: memory, warn"),
    _note(74, "NVLink error", "catalogue: workflow; DCGM: fail. No worker of Chimera's spans GPUs"),
    _note(92, "high rate of single-bit ECC errors", "catalogue: IGNORE"),
    _note(93, "InfoROM wear limit exceeded", "catalogue: IGNORE"),
    _note(154, "GPU recovery action changed", "catalogue: informational; the action itself is NVML's field 230"),
    _note(157, "resource retirement failure", "catalogue: IGNORE"),
    _note(171, "uncorrectable DRAM error", "catalogue: details on the Xid 48 it comes with"),
    _note(172, "uncorrectable SRAM error", "catalogue: details on the Xid 48 it comes with"),
    # The GPU is not to be computed on before it has been reset.
    _quarantine(46, "GPU stopped processing: timeout", _RESET),
    _quarantine(48, "double bit ECC error", "catalogue: workflow, ends in a reset; DCGM: devastating, fail", void=True),
    _quarantine(62, "internal micro-controller halt", _RESET),
    _quarantine(64, "memory row remapping failure", f"{_RESET}; DCGM: memory, fail"),
    _quarantine(79, "GPU has fallen off the bus", "catalogue: RESTART_BM, reboot; DCGM: devastating, fail", void=True),
    _quarantine(95, "uncontained memory error", f"{_RESET}; DCGM: devastating, fail", void=True),
    _quarantine(109, "context switch timeout", f"{_RESET}; device plugin: ignored"),
    _quarantine(110, "security fault", _RESET),
    _quarantine(119, "GSP RPC timeout", f"{_RESET}; DCGM: devastating, fail"),
    _quarantine(120, "GSP error", f"{_RESET}; DCGM: devastating, fail"),
    _quarantine(140, "unrecovered ECC error", f"{_RESET}; DCGM: devastating, fail", void=True),
    _quarantine(143, "GPU initialisation error", _RESET),
    _quarantine(155, "NVLink software-defined error", _RESET),
    _quarantine(156, "resource retirement event", _RESET),
    _quarantine(158, "GPU fatal timeout", _RESET, void=True),
)

XIDS: Final[dict[int, Xid]] = {row.code: row for row in _ROWS}


def xid(code: int) -> Xid:
    """Return the row of an Xid; one that the table does not have is a note that says so."""
    return XIDS.get(code) or _note(code, "unknown to Chimera; see NVIDIA's Xid catalogue", "none: not in the table")
