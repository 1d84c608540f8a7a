"""Cutting off what the gateway does at one of its waits, and knowing which waits its code has.

trio says after each step of a task where the task waits now (`Task.iter_await_frames`). So every wait of a request
can be met, one run for each, without a word of it in the code that is tested.
"""

import ast
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from itertools import islice
from pathlib import Path
from types import CodeType, FrameType

import trio

import gateway

GATEWAY = Path(gateway.__file__).parent


@dataclass(frozen=True, slots=True, order=True)
class Wait:
    """One `await`, `async with` or `async for` of the gateway. Lines and columns are the file's, from 1 and from 0."""

    module: str
    line: int
    column: int
    function: str = field(compare=False)
    text: str = field(compare=False)
    last_line: int = field(compare=False)  # of its head: the body of an `async with` is none of it
    exact: bool = field(compare=False)  # an `await`: there may be two on one line

    @property
    def name(self) -> str:
        """Which one it is, whatever stands above it."""
        return f"{self.module}.{self.function}: {self.text}"

    def __str__(self) -> str:
        return f"gateway/{self.module}.py:{self.line}, in {self.function}: {self.text}"


# Where a task waits: the gateway's waits on its stack, the outermost first.
Stack = tuple[Wait, ...]


def modules() -> list[str]:
    """Return the modules of the gateway that wait for anything."""
    return [path.stem for path in sorted(GATEWAY.glob("*.py")) if waits_of(path.stem)]


@cache
def waits_of(module: str) -> tuple[Wait, ...]:
    """Return every wait of a module of the gateway, by line."""
    source = (GATEWAY / f"{module}.py").read_text(encoding="utf-8")
    lines = source.splitlines()
    found: list[Wait] = []

    def look(node: ast.AST, function: str) -> None:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            function = f"{function}.{node.name}".lstrip(".")
        if isinstance(node, ast.Await):
            note(node, function, node.end_lineno or node.lineno, exact=True)
        elif isinstance(node, ast.AsyncWith):
            note(node, function, max(item.context_expr.end_lineno or 0 for item in node.items), exact=False)
        elif isinstance(node, ast.AsyncFor):
            note(node, function, node.iter.end_lineno or node.lineno, exact=False)
        for child in ast.iter_child_nodes(node):
            look(child, function)

    def note(node: ast.Await | ast.AsyncWith | ast.AsyncFor, function: str, last_line: int, *, exact: bool) -> None:
        text = lines[node.lineno - 1].strip()
        found.append(Wait(module, node.lineno, node.col_offset, function, text, last_line, exact))

    look(ast.parse(source), "")
    return tuple(sorted(found))


@cache
def _wait_at(code: CodeType, instruction: int) -> Wait | None:
    """Return the wait that an instruction of the gateway's code belongs to."""
    path = Path(code.co_filename)
    if path.parent != GATEWAY:
        return None
    line, _, column, _ = next(islice(code.co_positions(), instruction // 2, None))
    waits = waits_of(path.stem)
    exact = next((wait for wait in waits if wait.exact and (wait.line, wait.column) == (line, column)), None)
    return exact or next(wait for wait in waits if not wait.exact and wait.line <= (line or 0) <= wait.last_line)


def stack_of(task: trio.lowlevel.Task) -> Stack:
    """Return where the gateway waits in a task; empty for a task that has nothing to do with it."""
    frames: list[FrameType] = [frame for frame, _ in task.iter_await_frames()]
    found = (_wait_at(frame.f_code, frame.f_lasti) for frame in frames)
    return tuple(wait for wait in found if wait is not None)


# A wait on its way, and the how-manieth time it is met: one thing to do in a run.
Visit = tuple[Stack, int]


class Cut(trio.abc.Instrument):
    """Calls `cut` when a task of the gateway has come to wait where, and as often as, `target` says; notes all waits.

    At that moment the task sleeps, or has just done what it waited for: both are places for a cancellation to fall.
    """

    def __init__(self, target: Visit | None) -> None:
        self.target = target
        self.cut: Callable[[], None] = lambda: None
        self.done = False
        self.visits: Counter[Stack] = Counter()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        """Part of trio.abc.Instrument."""
        stack = stack_of(task)
        if not stack or self.done:
            return
        self.visits[stack] += 1
        if (stack, self.visits[stack]) == self.target:
            self.done = True
            self.cut()

    def met(self) -> set[Visit]:
        """Return all that was met, up to the cut."""
        return {(stack, time + 1) for stack, times in self.visits.items() for time in range(times)}
