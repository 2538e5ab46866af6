"""Where ``run`` stops: conditions on step records, functions or names, never text to run."""

from __future__ import annotations

import ast
import inspect
import textwrap
import warnings
from collections.abc import Callable
from typing import Final

from minisgl.core import (
    Added,
    Admitted,
    Evicted,
    Finished,
    Inserted,
    Preempted,
    Released,
    Reused,
    StepRecord,
)

Condition = str | Callable[[StepRecord], object]

EVENTS: Final[dict[str, type]] = {
    "add": Added,
    "admit": Admitted,
    "reuse": Reused,
    "insert": Inserted,
    "evict": Evicted,
    "preempt": Preempted,
    "finish": Finished,
    "release": Released,
}


def as_condition(condition: Condition) -> Callable[[StepRecord], object]:
    """A function of a step record: itself, or the one that a name stands for.

    A name of ``EVENTS``: an event of that kind is in the record; "wait": somebody was refused;
    "abort", "error": a request ended so. Raises ValueError for another name, TypeError for
    something that is neither.
    """
    if callable(condition):
        return condition
    if not isinstance(condition, str):
        raise TypeError(f"a condition is a name or a function of a StepRecord, got {condition!r}")
    if condition == "wait":
        return lambda record: record.plan.refusals
    if condition in ("abort", "error"):
        return lambda record: any(
            isinstance(event, Finished) and event.reason == condition for event in record.events
        )
    if condition not in EVENTS:
        known = ", ".join((*EVENTS, "wait", "abort", "error"))
        raise ValueError(f"unknown condition {condition!r}; there are {known}, or give a function")
    kind = EVENTS[condition]
    return lambda record: any(isinstance(event, kind) for event in record.events)


class Breakpoint:
    """A condition that stops ``run``, unless ``enabled`` is False; ``remove`` ends it for good.

    label: what to call it: a name as it was given, a function's name, a lambda's own text.
    """

    def __init__(self, condition: Condition, among: list[Breakpoint]) -> None:
        self.condition, self.label = condition, _label(condition)
        self.enabled = True
        self._holds, self._among = as_condition(condition), among

    def holds(self, record: StepRecord) -> bool:
        """Whether to stop after this record. One that raises is disabled, with a warning."""
        if not self.enabled:
            return False
        try:
            return bool(self._holds(record))
        except Exception as error:
            self.enabled = False
            message = f"breakpoint {self} failed and was disabled: {error!r}"
            warnings.warn(message, RuntimeWarning, stacklevel=2)
            return False

    def remove(self) -> None:
        """Forget this breakpoint. Twice is harmless."""
        if self in self._among:
            self._among.remove(self)

    def __repr__(self) -> str:
        state = "" if self.enabled else ", disabled"
        return f"Breakpoint({self}{state})"

    def __str__(self) -> str:
        return repr(self.condition) if isinstance(self.condition, str) else self.label


def _label(condition: Condition) -> str:
    if isinstance(condition, str):
        return condition
    name = str(getattr(condition, "__name__", type(condition).__name__))  # it has no address
    return (_lambda(condition) if name == "<lambda>" else None) or name


def _lambda(function: Callable[[StepRecord], object]) -> str | None:
    """The text of a lambda; None where it cannot be had, or stands beside another one."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return None
    found = [node for node in ast.walk(tree) if isinstance(node, ast.Lambda)]
    return ast.unparse(found[0]) if len(found) == 1 else None
