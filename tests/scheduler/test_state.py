"""A state that was written down goes on as the one that was not."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minisgl.core import SamplingParams
from minisgl.engine.engine import Engine
from minisgl.scheduler.replay import replay
from minisgl.scheduler.scheduler import Scheduler
from minisgl.scheduler.state import read, written
from tests.hash_engine import EOS, hash_engine, state
from tests.scheduler.test_workloads import Options, Workload, engines, workloads


def drain(engine: Engine) -> None:
    while engine.in_flight:
        engine.collect()


def through_json(engine: Engine) -> Scheduler:
    text = json.dumps(written(engine._scheduler), allow_nan=False)
    return read(json.loads(text), engine.config, {EOS})


class Holding:
    """What ``state`` looks into."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler


@given(workloads, engines, st.data())
def test_what_was_read_is_what_was_written_and_goes_on_alike(
    work: Workload, options: Options, data: st.DataObject
) -> None:
    engine = hash_engine(**options)
    for prompt, sampling in work:
        engine.add(prompt, sampling)
        engine.run(max_steps=data.draw(st.integers(0, 3)))
    engine.run(max_steps=data.draw(st.integers(0, 20)))
    drain(engine)
    twin: Any = Holding(through_json(engine))
    assert state(twin) == state(engine)
    inputs_before = engine.trace.history.num_inputs
    engine.add([1, 2, 1, 1], SamplingParams(max_tokens=3))
    engine.run()
    history = engine.trace.history
    replay(history.inputs(inputs_before, history.num_inputs), twin._scheduler)
    assert state(twin) == state(engine)


def test_a_state_is_not_written_while_a_step_is_in_flight() -> None:
    engine = hash_engine(depth=2)
    engine.add([1, 2, 1], SamplingParams(max_tokens=5))
    engine.step()
    with pytest.raises(ValueError, match="a step is in flight; collect it first"):
        written(engine._scheduler)


@pytest.mark.parametrize(
    "change",
    [
        {"free_slots": [0, 1, 2, 3]},  # one of them is taken
        {"free_slots": [-1]},
        {"step": "1"},
        {"running": []},
        {"pages": {"free": [], "cache": {}}},
        {
            "pages": {
                "free": [99],
                "cache": {"next_id": 1, "root_used": 0, "nodes": [], "queue": []},
            }
        },
    ],
    ids=str,
)
def test_a_state_that_does_not_add_up_is_refused(change: dict[str, Any]) -> None:
    engine = hash_engine(depth=1)
    engine.add([1, 2, 1], SamplingParams(max_tokens=5, ignore_eos=True))
    engine.run(max_steps=2)
    good = written(engine._scheduler)
    assert read(good, engine.config, {EOS}).running
    with pytest.raises((ValueError, TypeError, KeyError)):
        read(good | change, engine.config, {EOS})
