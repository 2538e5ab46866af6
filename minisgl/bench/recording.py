"""What recording takes of a step, measured where it happens.

Throughput with recording on and off differs by less than this machine's noise, so the time that the
engine spends on its history and checkpoints is summed up instead.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any, NamedTuple

from minisgl.build import load
from minisgl.core import SamplingParams
from minisgl.engine.travel import Past


class Recording(NamedTuple):
    """Means over a run of the embedded model, in milliseconds."""

    requests: int
    recording: float  # of a step, on the host: noting inputs and records, making checkpoints
    step: float  # whole


def recording(requests: int, steps: int) -> Recording:
    """Decode so many requests for so many steps, recorded as by default."""
    with load("tiny", threads=1) as engine:
        ask = SamplingParams(max_tokens=steps + 100, ignore_eos=True)
        for i in range(requests):
            engine.add([5 + i] + [7] * 40, ask)
        engine.run(max_steps=20)
        timed: Any = _Timed(engine._past)
        engine._past = timed
        start = perf_counter()
        engine.run(max_steps=steps)
        whole = perf_counter() - start
    return Recording(requests, timed.seconds / steps * 1e3, whole / steps * 1e3)


class _Timed:
    """A past that counts the time spent in what every step calls."""

    def __init__(self, past: Past) -> None:
        self._past, self.seconds = past, 0.0

    def add_input(self, *given: Any) -> Any:
        return self._time(self._past.add_input, *given)

    def add_record(self, *given: Any) -> Any:
        return self._time(self._past.add_record, *given)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._past, name)

    def _time(self, call: Callable[..., Any], *given: Any) -> Any:
        start = perf_counter()
        try:
            return call(*given)
        finally:
            self.seconds += perf_counter() - start
