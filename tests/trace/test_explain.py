"""An explanation in a notebook and as a frame."""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from minisgl.core import SamplingParams
from minisgl.display import STATES
from tests.hash_engine import hash_engine
from tests.scheduler.test_workloads import Options, Workload, engines, workloads
from tests.seen import Seen


@settings(max_examples=50)
@given(workloads, engines)
def test_an_explanation_shows_its_parts_with_their_shares(
    workload: Workload, options: Options
) -> None:
    engine = hash_engine(**options)
    for prompt, sampling in workload:
        engine.add(prompt, sampling)
    engine.run()
    for rid in engine.requests:
        why = engine.trace.explain(rid)
        page = why._repr_html_()
        seen = Seen(page)
        assert seen.words.startswith(f"Request {rid} {why.latency} step")
        rows = {cause.strip(): int(steps) for cause, steps, *_ in seen.tables[0][1:]}
        assert rows == why.parts
        assert seen.labels == ["steps: " + ", ".join(f"{c} {n}" for c, n in why.parts.items())]
        for cause, _, share, first in seen.tables[0][1:]:
            part = next(part for part in why.steps if part.cause == cause.strip())
            assert share == f"{why.parts[part.cause] / why.latency:.0%}"
            assert first == "; ".join(refusal.reason for refusal in part.refusals)
        assert page == why._repr_html_()


def test_waiting_and_running_have_the_colours_of_their_states() -> None:
    engine = hash_engine(depth=1, max_running=1)
    for tokens in (3, 2):
        engine.add([1, 2], SamplingParams(max_tokens=tokens, ignore_eos=True))
    engine.run()
    seen = Seen(engine.trace.explain(1)._repr_html_())
    colours = [style["background-color"] for style in seen.styles if "width" in style][:3]
    assert colours == [STATES["waiting"], STATES["prefill"], STATES["decode"]]


def test_a_frame_has_a_row_per_step_with_every_refusal() -> None:
    pytest.importorskip("pandas", reason="frames need pandas")
    engine = hash_engine(depth=1, max_running=1, num_pages=5, max_seq_len=5)
    for prompt in ([1, 2], [3, 2]):
        engine.add(prompt, SamplingParams(max_tokens=4, ignore_eos=True))
    engine.run()
    why = engine.trace.explain(1)
    frame = why.to_frame()
    assert list(frame.columns) == ["step", "doing", "cause", "refusals"]
    assert list(frame.step) == [part.step for part in why.steps]
    assert dict(frame.cause.value_counts()) == why.parts
    waits = frame[frame.doing == "waiting"]
    assert len(waits) and all("all 1 slots are taken" in said for said in waits.refusals)
    two = [part for part in why.steps if len(part.refusals) > 1]
    assert two and all(frame.refusals[p.step].count("; ") == len(p.refusals) - 1 for p in two)
    assert not any(frame[frame.doing == "decode"].refusals)
