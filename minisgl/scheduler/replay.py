"""From a history back to a state: the same inputs make the same scheduler."""

from __future__ import annotations

from collections.abc import Iterable

from minisgl.config import EngineConfig
from minisgl.core import Abort, Add, Change, Input, Outcome, Plan
from minisgl.kvcache.base import PrefixCache
from minisgl.registry import find
from minisgl.scheduler.policy import Policy, prefill_first
from minisgl.scheduler.scheduler import Scheduler


def fresh(config: EngineConfig, eos: Iterable[int], policy: Policy = prefill_first) -> Scheduler:
    """The scheduler of a resolved configuration before anything happened.

    A replay needs no policy: plans are among the inputs.
    """
    cache: PrefixCache = find("prefix_cache", config.prefix_cache)(config.page_size)
    return Scheduler(config.limits, policy, cache, eos)


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
            case Change():
                state.change(item)
            case Plan():
                state.commit(item)
            case Outcome():
                state.apply(item)
    return state
