"""Runs to draw, and what happened in them."""

from __future__ import annotations

from typing import TypeVar

from hypothesis import strategies as st

from minisgl.engine.engine import Engine
from minisgl.trace import Trace
from tests.hash_engine import hash_engine
from tests.scheduler.test_workloads import Options, Workload

E = TypeVar("E")


def driven(workload: Workload, options: Options, data: st.DataObject) -> Engine:
    """A run in which anything may happen, in pools that may be too small."""
    if data.draw(st.booleans(), "tiny pool"):
        options |= {"num_pages": data.draw(st.integers(4, 14)), "admission": "optimistic"}
        pool = options["num_pages"] * options["page_size"]
        options |= {"max_seq_len": min(23, pool)}
        workload = [(prompt, sampling) for prompt, sampling in workload if len(prompt) < pool]
    engine = hash_engine(**options)
    for rid, (prompt, sampling) in enumerate(workload):
        engine.add(prompt, sampling)
        engine.run(max_steps=data.draw(st.integers(0, 3), "steps"))
        if data.draw(st.integers(0, 5), "abort") == 0:
            engine.abort(data.draw(st.integers(0, rid), "whom"))
    engine.run()
    return engine


def events(trace: Trace, kind: type[E]) -> list[tuple[int, E]]:
    return [(r.batch.step, e) for r in trace for e in r.events if isinstance(e, kind)]
