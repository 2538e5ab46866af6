"""What the host's own work costs per step, with a device that answers at once.

A step's time less the wait: planning, committing, launching, booking and recording.
"""

from __future__ import annotations

from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

from minisgl.config import EngineConfig
from minisgl.core import Batch, Outcome, SamplingParams, StepRecord
from minisgl.engine.engine import Engine
from minisgl.engine.runner import HashRunner, Launch
from minisgl.scheduler.policy import find_policy
from minisgl.scheduler.replay import fresh

_VOCAB, _PAGE = 1 << 20, 16
_LONG = 100_000  # tokens: nobody finishes while we measure


class Cost(NamedTuple):
    """Milliseconds per step, medians."""

    what: str
    at: int  # decoding or waiting requests, or nodes in the tree
    step: float  # all of the host's work
    commit: float  # taking pages, evictions included


class _Answered:
    def __init__(self, outcome: Outcome) -> None:
        self._outcome = outcome

    def result(self) -> Outcome:
        return self._outcome


class _Instant(HashRunner):
    """Answers token 7 at once."""

    def __init__(self) -> None:
        super().__init__(0, _PAGE, 0, _VOCAB)

    def launch(self, batch: Batch) -> Launch:
        """See ``Runner``."""
        tokens = tuple(7 if row.emits else None for row in batch.rows)
        return _Answered(Outcome(batch.step, tokens))

    def snapshot(self, *args: Any, **kwargs: Any) -> Any:
        """Nothing: there is no memory."""
        return _Nothing()


class _Nothing:
    num_bytes = 0
    parts: dict[Any, int] = {}


def engine(num_pages: int, max_running: int, **toggles: Any) -> Engine:
    """An engine without a model."""
    sizes: dict[str, Any] = dict(
        num_pages=num_pages,
        max_running=max_running,
        max_seq_len=1 << 20,
        max_step_tokens=8192,
        overlap=False,
        record=False,
    )
    config = EngineConfig(**(sizes | toggles))
    scheduler = fresh(config, (), find_policy(config.policy))
    return Engine(scheduler, _Instant(), config, vocab_size=_VOCAB)


def decoding(requests: int, waiting: int = 0, steps: int = 300, **toggles: Any) -> Cost:
    """So many requests decode, so many more wait for a slot."""
    made = engine(requests * 100, requests, admission="optimistic", expected_output=1, **toggles)
    for i in range(requests + waiting):
        made.add([i + 1] * 20, SamplingParams(max_tokens=1000, ignore_eos=True))
    while made.gauges.running < requests or made.gauges.waiting > waiting:
        made.step()
    made.run(max_steps=20)
    name = f"decoding beside {waiting} waiting" if waiting else "decoding"
    return _cost(made, name, requests, steps)


def evicting(nodes: int, steps: int = 300) -> Cost:
    """A pool full of cached prompts, ``nodes`` of them; each step runs a prompt that evicts one."""
    made = engine(nodes, 8)
    ask = SamplingParams(max_tokens=1, ignore_eos=True)

    def add(i: int) -> None:
        made.add([i + 1] * _PAGE, ask)

    for i in range(nodes + 8):
        add(i)
        if i % 8 == 7:
            made.run()
    times = []
    for i in range(nodes + 8, nodes + 8 + steps):
        add(i)
        times.append(_times(made))
    assert made.gauges.cached_pages >= nodes - 8, "the pool is not full"
    step, commit = (median(column) for column in zip(*times, strict=True))
    return Cost("evicting, nodes", nodes, step * 1e3, commit * 1e3)


def _cost(made: Engine, what: str, at: int, steps: int) -> Cost:
    times = [_times(made) for _ in range(steps)]
    step, commit = (median(column) for column in zip(*times, strict=True))
    return Cost(what, at, step * 1e3, commit * 1e3)


def _times(made: Engine) -> tuple[float, float]:
    start = perf_counter()
    record = made.step()
    whole = perf_counter() - start
    assert record is not None
    return whole - _span(record, "wait"), _span(record, "commit")


def _span(record: StepRecord, name: str) -> float:
    return sum(s.end - s.start for s in record.spans if (s.lane, s.name) == ("host", name))
