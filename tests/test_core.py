"""Plans, batches, steps and gauges as text and in notebooks."""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from minisgl.core import (
    Batch,
    Evicted,
    Gauges,
    Outcome,
    Plan,
    Refusal,
    Row,
    Sampled,
    SamplingParams,
    StepRecord,
    Why,
)
from minisgl.display import MOST
from tests.hash_engine import hash_engine
from tests.scheduler.test_workloads import Options, Workload, engines, workloads
from tests.seen import Seen

GREEDY = SamplingParams()


def row(rid: int, start: int, length: int, prefill: bool = True) -> Row:
    ids = tuple(range(length)) if prefill else None
    return Row(rid, rid, start, length, ids, 0, (rid,), True, GREEDY)


@settings(max_examples=50)
@given(workloads, engines)
def test_a_step_shows_what_it_computed_and_who_waits(workload: Workload, options: Options) -> None:
    engine = hash_engine(**options)
    for prompt, sampling in workload:
        engine.add(prompt, sampling)
    for record in engine.steps():
        seen = Seen(record._repr_html_())
        assert seen.words.startswith(f"Step {record.batch.step} ")
        tables = {table[0][0]: table[1:] for table in seen.tables}
        rows = zip(record.batch.rows, record.outcome.tokens, strict=True)
        assert tables.get("request", []) == [
            [
                f"r{row.rid}",
                "decode" if row.token_ids is None else "prefill",
                str(row.start),
                str(row.start + row.length),
                ", ".join(map(str, row.new_pages)),
                "–" if token is None else str(token),
            ]
            for row, token in rows
        ]
        waits = dict(tables.get("waits", []))
        assert list(waits) == list(dict.fromkeys(f"r{r.rid}" for r in record.plan.refusals))
        for refusal in record.plan.refusals:
            assert refusal.reason in waits[f"r{refusal.rid}"]
        for name, value in record.gauges._asdict().items():
            assert f"{name.replace('_', ' ')} {value}" in seen.words
        others = [event for event in record.events if not isinstance(event, Sampled)]
        assert ("besides tokens" in seen.words) == bool(others)
        assert all(type(event).__name__ in seen.words for event in others[:MOST])


def test_a_step_that_failed_says_so_and_its_error_stays_text() -> None:
    batch = Batch(3, (row(1, 0, 5),))
    outcome = Outcome(3, (None,), error="<b>CUDA</b> error")
    gauges = Gauges(1, 0, 0, 0, 0, 1)
    record = StepRecord(Plan(((1, 5),)), batch, outcome, (Evicted((4, 5)),), gauges, ())
    seen = Seen(record._repr_html_())
    assert seen.facts["failed"] == "<b>CUDA</b> error"
    assert seen.facts["Evicted"] == "pages=(4, 5)"


def test_a_plan_shows_its_rows_its_victims_and_every_check_that_failed() -> None:
    plan = Plan(
        ((0, 1), (4, 126)),
        preempt=(7,),
        refusals=(Refusal(5, Why.NO_SLOT, 4), Refusal(5, Why.KV_RESERVE, 41, 12)),
    )
    seen = Seen(plan._repr_html_())
    assert "2 rows, 127 positions" in seen.words
    assert seen.facts == {
        "request": "positions",
        "r0": "1",
        "r4": "126",
        "r7": "gives its pages back first",
        "waits": "because",
        "r5": "all 4 slots are taken; 41 pages asked, 12 left",
    }
    assert Seen(Plan()._repr_html_()).words.strip() == "Plan runs nothing"


def test_a_refusal_is_written_with_the_numbers_that_it_has() -> None:
    assert (
        repr(Refusal(7, Why.KV_RESERVE, 41, 12)) == "Refusal(7, Why.KV_RESERVE, asked=41, left=12)"
    )
    assert repr(Refusal(7, Why.HEAD_OF_LINE, by=0)) == "Refusal(7, Why.HEAD_OF_LINE, by=0)"
    assert str(Refusal(7, Why.HEAD_OF_LINE, by=0)) == "r7 waits: r0 waits before it"
    own = Refusal(7, Why.POLICY, words="{asked} is not for us")
    assert str(own) == "r7 waits: {asked} is not for us" and own == eval(repr(own))


def test_a_batch_is_written_as_what_it_computes() -> None:
    batch = Batch(9, (row(1, 16, 8), row(2, 30, 1, False), row(3, 40, 1, False)))
    assert repr(batch) == "Batch(step 9: prefill r1[16:24]; decode 2)"
    assert repr(Batch(9, ())) == "Batch(step 9: nothing to compute)"
    seen = Seen(batch._repr_html_())
    assert seen.labels == ["positions computed: r1 8, decode 2"]
    assert seen.tables[0][1:] == [
        ["r1", "prefill", "16", "24", "1"],
        ["r2", "decode", "30", "31", "2"],
        ["r3", "decode", "40", "41", "3"],
    ]


def test_gauges_show_every_number() -> None:
    gauges = Gauges(1, 2, 3, 4, 5, 6)
    names = [name.replace("_", " ") for name in gauges._fields]
    assert Seen(gauges._repr_html_()).facts == dict(zip(names, "123456", strict=True))


@pytest.mark.parametrize("width", [300, 3000])
def test_a_wide_step_is_cut_and_says_so(width: int) -> None:
    batch = Batch(0, tuple(row(rid, 0, 5) for rid in range(width)))
    refusals = tuple(Refusal(width + i, Why.NO_SLOT, 3) for i in range(width))
    plan = Plan(tuple((rid, 5) for rid in range(width)), refusals=refusals)
    events = (Evicted(tuple(range(width))),) * width
    gauges = Gauges(1, 0, 0, 0, 0, 1)
    record = StepRecord(plan, batch, Outcome(0, (1,) * width), events, gauges, ())
    for shown in (record, plan, batch):
        page = shown._repr_html_()
        assert f"and {width - MOST:,} more" in Seen(page).words
        assert len(page) < 40_000
    assert f"{width - MOST} more, together {5 * (width - MOST)}" in Seen(batch._repr_html_()).words
