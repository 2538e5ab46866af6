"""What was evicted and computed again, held against a look at every prefix after every door."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minisgl.core import (
    Abort,
    Add,
    Admitted,
    Change,
    Evicted,
    Outcome,
    Plan,
    Reused,
    SamplingParams,
)
from minisgl.scheduler.scheduler import Scheduler
from minisgl.trace import Trace
from tests.engine.test_engine import Flaky
from tests.hash_engine import hash_engine
from tests.scheduler.test_workloads import Options, Workload, engines, workloads
from tests.trace.test_reuse import run

Prefix = tuple[int, ...]


def prefixes(state: Scheduler) -> set[Prefix]:
    """Every whole-page prefix that the cache knows, as tokens."""
    size, of, known = state.limits.page_size, dict[int | None, Prefix]({None: ()}), set[Prefix]()
    for node in state.pool.nodes():
        of[node.id] = of[node.parent] + node.tokens
        above = len(of[node.parent])
        known |= {of[node.id][: above + n * size] for n in range(1, len(node.pages) + 1)}
    return known


def twin(trace: Trace) -> tuple[Counter[tuple[int, int]], int]:
    """(tokens by (evicted at, computed again by), tokens evicted), from looking at all of it."""
    state, size = trace.start(), trace.config.page_size
    ever: set[Prefix] = set()
    left: dict[Prefix, int] = {}  # the step that evicted it last
    missed: dict[int, dict[Prefix, int]] = {}
    again: Counter[tuple[int, int]] = Counter()
    evicted = 0
    tokens = {r.rid: r.tokens for r in (*state.waiting.values(), *state.running.values())}
    history = trace.history
    for item in history.inputs(history.first_input, history.num_inputs):
        now = prefixes(state)
        ever |= now
        match item:
            case Add():
                tokens[item.rid] = state.add(item)[0].tokens
            case Abort():
                state.abort(item)
            case Change():
                state.change(item)
            case Outcome():
                state.apply(item)
                if item.error is not None:
                    ever.clear()
            case Plan():
                lost = {prefix: left[prefix] for prefix in ever - now}
                waiting = dict(state.waiting)
                middle = state.copy()
                for rid in item.preempt:
                    middle._preempt(middle.running[rid])
                between = prefixes(middle)
                batch, events = state.commit(item)
                left |= dict.fromkeys((now | between) - prefixes(state), batch.step)
                ever |= between
                evicted += sum(len(e.pages) * size for e in events if isinstance(e, Evicted))
                for event in events:
                    if isinstance(event, Admitted):
                        request, n = waiting[event.rid], 0
                        found = {e.rid: e.num_tokens for e in events if isinstance(e, Reused)}
                        missed[event.rid] = {}
                        n = found.get(event.rid, 0) + size
                        while not request.scores_prompt and n < len(request.tokens):
                            prefix = tuple(request.tokens[:n])
                            if prefix not in lost:
                                break
                            missed[event.rid][prefix] = lost[prefix]
                            n += size
                for row in batch.rows:
                    if row.token_ids is None:
                        continue
                    for position in range(row.start, row.start + row.length):
                        prefix = tuple(tokens[row.rid][: (position // size + 1) * size])
                        if prefix in missed.get(row.rid, {}):
                            again[missed[row.rid][prefix], row.rid] += 1
    return again, evicted


def compare(trace: Trace) -> int:
    told, (again, evicted) = trace.regret(), twin(trace)
    got: Counter[tuple[int, int]] = Counter()
    for regret in told.regrets:
        got[regret.evicted_at, regret.again_by] += regret.tokens
        assert regret.evicted_for and regret.evicted_at <= regret.again_at
    assert (got, told.evicted) == (again, evicted)
    assert told.tokens == again.total() <= told.computed
    return told.tokens


@settings(max_examples=200)
@given(workloads, engines, st.data())
def test_regret_is_what_a_look_at_every_prefix_finds(
    workload: Workload, options: Options, data: st.DataObject
) -> None:
    compare(run(workload * 2, options, data).trace)


@pytest.mark.filterwarnings("ignore:step .* failed")
def test_many_crowded_runs_regret_much_and_are_all_right() -> None:
    """Seeded, so that it is known to reach what hypothesis only may."""
    random, found = Random(0), 0
    for _ in range(40):
        size, pages = random.choice([1, 2, 4]), random.randint(6, 14)
        engine = hash_engine(
            num_pages=pages,
            page_size=size,
            depth=random.randint(1, 3),
            admission=random.choice(["optimistic", "reserve"]),
            expected_output=1,
            max_seq_len=min(20, size * pages),
            runner=lambda oracle: Flaky(oracle, set(), {random.randint(0, 60)}),
        )
        for _ in range(24):
            prompt = [random.randint(1, 2) for _ in range(random.randint(1, 14))]
            if len(prompt) < engine.config.limits.max_seq_len:
                asks = random.choice([None, None, None, 0])
                engine.add(prompt, SamplingParams(max_tokens=6, prompt_logprobs=asks))
            engine.run(max_steps=2)
        engine.run()
        found += compare(engine.trace)
    assert found > 300, found


def test_what_is_evicted_and_asked_again_is_told_with_all_names() -> None:
    engine = hash_engine(num_pages=8, page_size=2, depth=1, max_running=1)
    one = SamplingParams(max_tokens=1)
    engine.add([1, 1, 1, 1, 3, 3, 1], one)  # leaves three pages in the cache
    engine.run()
    engine.add([2] * 13, one)  # needs seven pages of eight
    engine.run()
    engine.add([1, 1, 1, 1, 3, 3, 4], one)
    engine.run()
    told = engine.trace.regret()
    assert told.regrets == ((1, (1,), 0, 2, 2, 4),) and compare(engine.trace) == 4
    assert repr(told).splitlines() == [
        "4 of 25 prompt tokens computed had been evicted before; 8 tokens were evicted in all",
        "step 1 evicted 4 tokens of r0 for r1; r2 computed them again from step 2",
    ]
    columns = ["evicted_at", "evicted_for", "owner", "again_by", "again_at", "tokens"]
    assert list(told.to_frame().columns) == columns
    assert list(hash_engine().trace.regret().to_frame().columns) == columns
    assert "computed again by" in told._repr_html_() and ">r2<" in told._repr_html_()


@pytest.mark.filterwarnings("ignore:step .* failed")
def test_a_cache_that_a_failure_emptied_is_no_regret() -> None:
    one = SamplingParams(max_tokens=1)

    def again(failing: set[int]) -> int:
        engine = hash_engine(
            num_pages=5, max_seq_len=5, depth=1, runner=lambda oracle: Flaky(oracle, set(), failing)
        )
        for token in (1, 2, 3, 1):  # the second evicts the first
            engine.add([token] * 4, one)
            engine.run()
        return compare(engine.trace)

    assert again(set()) > 0 and again({2}) == 0


def test_a_long_list_is_shown_from_its_largest_on() -> None:
    engine = hash_engine(num_pages=8, max_seq_len=8, depth=1)
    for i in range(60):
        engine.add([1 + i % 2] * (4 + i % 3), SamplingParams(max_tokens=1))
        engine.run()
    told = engine.trace.regret()
    lines = repr(told).splitlines()
    assert lines[-1] == f"... and {len(told.regrets) - 12} smaller ones: see to_frame()"
    assert len(lines) == 14 and len(told.to_frame()) == len(told.regrets)


def test_it_works_on_what_is_kept_of_a_long_run() -> None:
    engine = hash_engine(num_pages=14, history=12, check=False, max_seq_len=14)
    for i in range(60):
        engine.add([1 + i % 3, 2, 2, 1 + i % 2], SamplingParams(max_tokens=5, ignore_eos=True))
        if i % 2:
            engine.run()
    trace = engine.trace
    assert trace.history.first > 0 and trace.regret().evicted > 0
    compare(trace)
