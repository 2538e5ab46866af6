"""A run in a notebook: what was computed and reused, and its requests."""

from __future__ import annotations

from hypothesis import given, settings

from minisgl.core import Reused, SamplingParams
from minisgl.display import MOST
from minisgl.trace.card import trace_card
from tests.hash_engine import hash_engine
from tests.scheduler.test_workloads import Options, Workload, engines, workloads
from tests.seen import Seen

SHORT = SamplingParams(max_tokens=1, ignore_eos=True)


@settings(max_examples=50)
@given(workloads, engines)
def test_a_run_shows_what_became_of_every_position(workload: Workload, options: Options) -> None:
    engine = hash_engine(**options)
    for prompt, sampling in workload:
        engine.add(prompt, sampling)
    engine.run(max_steps=9)
    page, records = engine.trace._repr_html_(), list(engine.trace)
    seen = Seen(page)
    assert repr(engine.trace)[len("Trace(") : -1] in seen.words
    rows = [row for record in records for row in record.batch.rows]
    events = [event for record in records for event in record.events]
    prefill = sum(row.length for row in rows if row.token_ids is not None)
    decode = sum(row.token_ids is None for row in rows)
    reused = sum(event.num_tokens for event in events if isinstance(event, Reused))
    number = {name: int(fact.split()[0]) for name, fact in seen.facts.items() if name != "model"}
    assert (number["prefill"], number["decode"], number["reused"]) == (prefill, decode, reused)
    assert number["output"] == sum(len(request.output) for request in engine.requests.values())
    assert number["requests over"] == sum(r.finish is not None for r in engine.requests.values())
    for rid, prompt_len, _, output_len, *_, end in seen.tables[1][1:] if records else ():
        request = engine.requests[int(rid[1:])]
        assert (int(prompt_len), int(output_len)) == (request.prompt_len, len(request.output))
        assert end == (request.finish or "–")
    assert page == engine.trace._repr_html_()


def test_a_run_of_many_requests_is_cut_and_says_so() -> None:
    engine = hash_engine(check=False)
    for _ in range(300):
        engine.add([1, 2], SHORT)
    engine.run()
    page = engine.trace._repr_html_()
    seen = Seen(page)
    assert seen.tables[1][-1] == [f"and {300 - MOST} more"] and len(page) < 14_000
    assert seen.facts["requests over"] == "300 of 300"


def test_the_name_of_a_model_stays_text() -> None:
    assert (
        Seen(trace_card("0 steps", "<b>/evil/folder</b>", ())).facts["model"]
        == "<b>/evil/folder</b>"
    )
