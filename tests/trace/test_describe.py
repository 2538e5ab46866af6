"""A run in words, and every request's life in numbers."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from minisgl.core import Evicted, Preempted, Reused, Sampled, SamplingParams
from minisgl.trace.lives import lives
from tests.hash_engine import hash_engine
from tests.scheduler.test_workloads import Options, Workload, engines, workloads
from tests.trace.test_reuse import run

RAN = {"prefill", "decode", "launched before"}


@settings(max_examples=150)
@given(workloads, engines, st.data())
def test_each_life_agrees_with_what_explains_it(
    workload: Workload, options: Options, data: st.DataObject
) -> None:
    engine = run(workload, options, data)
    trace = engine.trace
    if len(trace) > 3 and data.draw(st.booleans(), "unfinished"):
        engine.rewind(to=data.draw(st.integers(1, len(trace)), "to"))
        trace = engine.trace
    records = list(trace)
    told = lives(records)
    assert sum(life.computed for life in told.values()) == sum(r.batch.num_tokens for r in records)
    for rid, life in told.items():
        why = trace.explain(rid)
        assert life.latency == why.latency and (life.over is not None) == why.finished
        assert life.waited == sum(n for cause, n in why.parts.items() if cause not in RAN)
        mine = [e for r in records for e in r.events if getattr(e, "rid", None) == rid]
        assert life.output == [e.token for e in mine if isinstance(e, Sampled)]
        assert life.reused == sum(e.num_tokens for e in mine if isinstance(e, Reused))
        assert life.preemptions == sum(isinstance(e, Preempted) for e in mine)


@settings(max_examples=50)
@given(workloads, engines, st.data())
def test_a_description_has_the_numbers_of_the_records(
    workload: Workload, options: Options, data: st.DataObject
) -> None:
    trace = run(workload, options, data).trace
    told, records = trace.describe(), list(trace)
    assert (told.steps, told.requests) == (len(trace), len(trace.to_frame("requests")))
    assert told.computed == trace.reuse().computed and told.reused == trace.reuse().reused
    assert told.again == trace.regret().tokens and told.hit_share == trace.reuse().share
    gone = [e for r in records for e in r.events if isinstance(e, Evicted)]
    assert told.evicted == sum(len(event.pages) for event in gone)
    assert told.peak_running == max((len(r.batch.rows) for r in records), default=0)
    waits = {life.rid: life.waited for life in lives(records).values()}
    if told.longest is None:
        assert not any(waits.values())
    else:
        assert waits[told.longest.rid] == max(waits.values()) > 0
    assert repr(told) == repr(trace.describe())


def test_a_run_reads_as_a_paragraph() -> None:
    engine = hash_engine(num_pages=12, page_size=2, depth=1, max_running=2, max_seq_len=20)
    one = SamplingParams(max_tokens=4, ignore_eos=True)
    for last in (1, 2, 1):
        engine.add([1, 2, 3, 4, 5, last], one)
    engine.run(max_steps=2)
    engine.abort(1)
    engine.run()
    engine.add([3] * 10, SamplingParams(max_tokens=10, ignore_eos=True))
    engine.run(max_steps=1)
    engine.add([1, 2, 3, 4, 5, 1], one)
    engine.run()
    assert repr(engine.trace.describe()) == TOLD
    assert "devices: " in repr(engine.trace.describe(times=True))
    numbers = engine.trace.describe().to_frame().set_index("name").value
    assert numbers["requests"] == 5 and numbers["evicted"] == engine.trace.describe().evicted
    assert "r4 waited longest" in engine.trace.describe()._repr_html_()


TOLD = (
    "20 steps; 5 requests came; 4 ended (length); 1 ended (abort). Of 34 prompt positions 22 were "
    "computed and 12 (35.3 %) found in the prefix cache; 23 tokens were generated. A step ran 1.1 "
    "requests on average and 2 at most; after a step at most 2 waited, and requests held at most "
    "9 of 12 pages. 5 pages were evicted. r4 waited longest, 9 steps of 13: kv reserve 9."
)


def test_before_the_first_step_there_is_nothing_to_tell() -> None:
    assert repr(hash_engine().trace.describe()) == "Nothing has run yet."


def test_what_is_kept_of_a_long_run_says_where_it_begins() -> None:
    engine = hash_engine(history=12, check=False)
    for i in range(30):
        engine.add([1 + i % 3, 2, 2], SamplingParams(max_tokens=5, ignore_eos=True))
        engine.run()
    first = engine.trace.history.first
    assert first > 0
    assert f"steps from step {first} on; " in repr(engine.trace.describe())
