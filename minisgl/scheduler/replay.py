"""From a history back to a state: the same inputs make the same scheduler."""

from __future__ import annotations

from collections.abc import Iterable

from minisgl.core import Abort, Add, Input, Outcome, Plan
from minisgl.scheduler.scheduler import Scheduler


def replay(inputs: Iterable[Input], state: Scheduler) -> Scheduler:
    """Pass ``inputs`` through the doors of a fresh scheduler, and return it as it then stands.

    No device is needed: outcomes are among the inputs.
    """
    for item in inputs:
        match item:
            case Add():
                state.add(item)
            case Abort():
                state.abort(item)
            case Plan():
                state.commit(item)
            case Outcome():
                state.apply(item)
    return state
