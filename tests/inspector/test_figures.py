"""What figures show is what the trace says: read back from what was drawn, and from the words."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from typing import TypeVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.collections import QuadMesh
from matplotlib.colors import to_hex

from minisgl.core import (
    Evicted,
    Finished,
    Inserted,
    Preempted,
    Reused,
    Sampled,
    SamplingParams,
    Span,
    StepRecord,
)
from minisgl.display import STATES, contrast, ink
from minisgl.engine.engine import Engine
from minisgl.inspector.figures.clock import Clock
from minisgl.inspector.figures.lettering import GREY, INK
from minisgl.inspector.figures.life import lives
from minisgl.inspector.figures.page_grid import STATES_OF_PAGES, Pages
from minisgl.inspector.figures.picture import Picture, show
from minisgl.inspector.figures.radix_tree import Branch, Tree
from minisgl.inspector.figures.step_batch import Step
from minisgl.inspector.plot import Plot
from minisgl.scheduler.scheduler import Scheduler
from minisgl.trace import Trace, timeline
from minisgl.trace.timeline import CAUSES
from tests.engine.test_engine import Flaky
from tests.hash_engine import hash_engine
from tests.inspector.drawn import axes_of, boxes, heights, lines, marks, of, stressed
from tests.scheduler.test_workloads import Options, Workload, engines, workloads

E = TypeVar("E")


@pytest.fixture(scope="module")
def trace() -> Trace:
    return stressed().trace


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


def length(shapes: list[tuple[float, float, float, float]]) -> float:
    return sum(x1 - x0 for x0, x1, _, _ in shapes)


def test_the_stress_has_everything(trace: Trace) -> None:
    fates = Counter((b.fate, b.prompt) for life in lives(list(trace)) for b in life.boxes)
    assert fates["dropped", True] and fates["dropped", False] and fates["kept", True] > 10
    for kind in (Evicted, Preempted, Reused, Inserted):
        assert events(trace, kind), kind
    assert {e.reason for _, e in events(trace, Finished)} == {"abort", "length", "stop"}
    assert any(record.plan.refusals for record in trace)


# ---- lanes ---------------------------------------------------------------------------------------


def test_every_row_of_every_batch_is_a_box_in_its_lane(trace: Trace) -> None:
    picture, steps = of(trace.plot.lanes()), trace.to_frame("steps")
    rows = {(r.batch.step, row.rid) for r in trace for row in r.batch.rows}
    drawn = [
        (round((x0 + x1) / 2), round((y0 + y1) / 2))
        for name in ("prefill", "decode", "dropped prefill", "dropped decode")
        for x0, x1, y0, y1 in boxes(picture, name)
    ]
    assert len(drawn) == len(rows) and set(drawn) == rows  # here lane y is that of request y
    for kind in ("prefill", "decode"):
        some = len(boxes(picture, kind)) + len(boxes(picture, f"dropped {kind}"))
        assert some == steps[f"{kind}_rows"].sum()


def test_tall_boxes_are_prefills_and_carry_their_positions(trace: Trace) -> None:
    picture = of(trace.plot.lanes(0, 11))
    (ax,) = axes_of(picture)
    said = {(round(t.get_position()[0]), t.get_text()) for t in ax.texts}
    for record in list(trace)[:12]:
        for row in record.batch.rows:
            if row.token_ids is not None:
                assert (record.batch.step, str(row.length)) in said
    tall = min(y1 - y0 for _, _, y0, y1 in boxes(picture, "prefill"))
    low = max(y1 - y0 for _, _, y0, y1 in boxes(picture, "decode"))
    assert tall > 1.5 * low


def test_where_nothing_but_a_line_is_drawn_a_request_waits(trace: Trace) -> None:
    waits = Counter[int]()
    for (x0, y), (x1, _) in lines(of(trace.plot.lanes()), "waiting"):
        waits[round(y)] += round(x1 - x0)
    for rid in trace.to_frame("requests").rid:
        why = trace.explain(rid)
        ran = why.parts.get("prefill", 0) + why.parts.get("decode", 0)
        assert waits[rid] == why.latency - ran


def test_reuse_ends_and_preemptions_are_marked_where_they_happen(trace: Trace) -> None:
    picture, requests = of(trace.plot.lanes()), trace.to_frame("requests").set_index("rid")
    edges = {(round(x1), round((y0 + y1) / 2)) for _, x1, y0, y1 in boxes(picture, "reused")}
    assert edges == {(step, e.rid) for step, e in events(trace, Reused)}
    preempted = {(round(x + 0.5), round(y)) for x, y in marks(picture, "preempted")}
    assert preempted == {(step, e.rid) for step, e in events(trace, Preempted)}
    aborted = set(requests.index[requests.finish == "abort"])
    assert {round(y) for _, y in marks(picture, "aborted")} == aborted
    assert {round(y) for _, y in marks(picture, "ended")} == set(requests.index) - aborted
    last = {life.rid: max((b.step for b in life.boxes), default=0) for life in lives(list(trace))}
    for x, y in marks(picture, "ended") + marks(picture, "aborted"):
        end = max(requests.finished[round(y)], last[round(y)])
        assert end + 0.5 < x < end + 1.5


@settings(max_examples=60, deadline=None)
@given(workloads, engines, st.data())
def test_a_result_is_dropped_where_nobody_got_its_token(
    workload: Workload, options: Options, data: st.DataObject
) -> None:
    trace = driven(workload, options, data).trace
    got = {(step, event.rid) for step, event in events(trace, Sampled)}
    emits = {(r.batch.step, row.rid) for r in trace for row in r.batch.rows if row.emits}
    for life in lives(list(trace)):
        for box in life.boxes:
            if (box.step, life.rid) in emits:
                assert (box.fate == "dropped") == ((box.step, life.rid) not in got)
        ran = sum(b.step <= life.end[0] for b in life.boxes) if life.end else len(life.boxes)
        waits = sum(b - a + 1 for a, b in life.waits(len(trace) - 1))
        assert waits + ran == trace.explain(life.rid).latency


def test_a_failed_step_is_red_and_nothing_else_is() -> None:
    engine = hash_engine(runner=lambda inner: Flaky(inner, set(), {3}))
    for i in range(3):
        engine.add([1 + i, 2], SamplingParams(max_tokens=9, ignore_eos=True))
    with pytest.warns(RuntimeWarning, match="step 3 failed"):
        engine.run()
    picture = of(engine.trace.plot.lanes())
    assert len(boxes(picture, "failed decode")) == 3
    assert {round(y) for _, y in marks(picture, "failed")} == {0, 1, 2}
    (ax,) = axes_of(picture)
    fills = [(s.get_gid(), np.asarray(s.get_facecolor())) for s in ax.collections]
    red = [name for name, fill in fills if len(fill) and to_hex(fill[0]) == STATES["fault"]]
    assert red == ["failed decode"]
    assert "failed step in 1 step (3)" in picture.alt and "(error)" in picture.alt


def test_boxes_that_are_too_narrow_are_put_together_and_cover_as_much() -> None:
    engine = hash_engine(num_pages=400, max_running=8, check=False, max_seq_len=400)
    for i in range(30):
        engine.add([1 + i % 9, 2], SamplingParams(max_tokens=60 + i, ignore_eos=True))
        engine.run(max_steps=7)
    engine.run()
    steps, picture = engine.trace.to_frame("steps"), of(engine.trace.plot.lanes())
    for kind in ("prefill", "decode"):
        some = boxes(picture, kind) + boxes(picture, f"dropped {kind}")
        assert round(length(some)) == steps[f"{kind}_rows"].sum()
        assert kind == "prefill" or len(some) < steps.decode_rows.sum() / 10
    assert f"Decode: {steps.decode_rows.sum():,} rows" in picture.alt


# ---- tree ----------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(workloads, engines, st.data())
def test_the_tree_is_as_wide_as_what_is_cached(
    workload: Workload, options: Options, data: st.DataObject
) -> None:
    engine = driven(workload, options, data)
    for record in engine.trace:
        state = engine.trace.scheduler(record.batch.step)
        tree, gauges, size = Tree(record, state), state.gauges, state.limits.page_size
        assert tree.tokens() == gauges.cached_pages * size
        new = {page for e in record.events if isinstance(e, Inserted) for page in e.pages}
        hit = {page for e in record.events if isinstance(e, Reused) for page in e.pages}
        idle = [p for p, holders in enumerate(state.pool.counts) if state.pool.is_idle(p)]
        assert tree.tokens("evictable") == len(set(idle) - hit) * size
        assert tree.tokens("reused") == sum(map(state.pool.is_cached, hit)) * size
        assert tree.tokens(inserted=True) == sum(map(state.pool.is_cached, new)) * size
        _stands(tree, size)


def _stands(tree: Tree, size: int) -> None:
    """Children begin where their parent ends and share its rows out among themselves."""
    by_id = {branch.node.id: branch for branch in tree.branches}
    below: dict[int | None, list[tuple[int, int]]] = {}
    for branch in tree.branches:
        node = branch.node
        below.setdefault(node.parent, []).append((branch.top, branch.top + branch.rows))
        assert branch.pieces[0].start == node.depth * size
        assert all(a.start + a.length == b.start for a, b in pairwise(branch.pieces))
        if node.parent is not None:
            above = by_id[node.parent].node
            assert node.depth == above.depth + len(above.pages)
    for parent, rows in below.items():
        whole = (0, tree.leaves) if parent is None else _rows(by_id[parent])
        assert (rows[0][0], rows[-1][1]) == whole
        assert all(a[1] == b[0] for a, b in pairwise(rows))


def _rows(branch: Branch) -> tuple[int, int]:
    return branch.top, branch.top + branch.rows


def test_the_tree_is_drawn_as_it_stands(trace: Trace) -> None:
    for step in range(2, len(trace), 5):
        state, picture = trace.scheduler(step), of(trace.plot.tree(step))
        drawn = sum(length(boxes(picture, name)) for name in ("held", "reused", "evictable"))
        assert round(drawn) == state.gauges.cached_pages * state.limits.page_size
        tree = Tree(trace[step], state)
        assert round(length(boxes(picture, "inserted"))) == tree.tokens(inserted=True)
        assert f"{tree.tokens('evictable'):,} evictable" in picture.alt or not tree.branches
        for branch in tree.branches:
            for rid in branch.holders:
                assert branch.node.pages[0] in state.running[rid].pages


def test_a_tree_of_nothing_says_so() -> None:
    engine = hash_engine(prefix_cache="naive")
    engine.add([1, 2, 3], SamplingParams(max_tokens=2))
    engine.run()
    picture = of(engine.trace.plot.tree())
    assert picture.alt == f"The prefix cache is empty after step {len(engine.trace) - 1}."


# ---- pages ---------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(workloads, engines, st.data())
def test_every_page_is_in_the_state_that_its_holders_give_it(
    workload: Workload, options: Options, data: st.DataObject
) -> None:
    _pages_hold(driven(workload, options, data).trace)


def _pages_hold(trace: Trace) -> None:
    records = list(trace)
    reused: dict[int, tuple[int, ...]] = {}  # by a run of its own: what each got when admitted last
    for k, record in enumerate(records):
        state = trace.scheduler(k)
        pages, gauges = Pages(records[: k + 1], state), state.gauges
        assert pages.count("free") == gauges.free_pages
        assert pages.count("evictable") == gauges.evictable_pages
        assert sum(cell.cached for cell in pages.cells) == gauges.cached_pages
        for event in record.events:
            if isinstance(event, Reused):
                reused[event.rid] = event.pages
            elif isinstance(event, Preempted):
                reused.pop(event.rid, None)
        for page, cell in enumerate(pages.cells):
            assert len(cell.requests) + cell.cached == state.pool.counts[page]
            known = [rid for rid in cell.requests if not _came_later(state, rid, k)]
            if len(known) == len(cell.requests) and cell.requests:
                got = any(page in reused.get(rid, ()) for rid in cell.requests)
                assert (cell.state == "reused") == got


def _came_later(state: Scheduler, rid: int, step: int) -> bool:
    """Whether it was admitted by a step whose record was not there yet."""
    return any(
        row.rid == rid and not row.first_page
        for batch in state.in_flight
        if batch.step > step
        for row in batch.rows
    )


def test_the_grid_shows_every_page_once(trace: Trace) -> None:
    for step in range(0, len(trace), 4):
        picture, state = of(trace.plot.pages(step)), trace.scheduler(step)
        (ax,) = axes_of(picture)
        (grid,) = (shapes for shapes in ax.collections if isinstance(shapes, QuadMesh))
        codes: list[float] = np.ma.asarray(grid.get_array()).compressed().tolist()
        drawn = Counter(STATES_OF_PAGES[int(code)] for code in codes)
        assert sum(drawn.values()) == state.limits.num_pages
        assert drawn["free"] == state.gauges.free_pages
        assert drawn["evictable"] == state.gauges.evictable_pages
        assert f"{state.gauges.promised_pages} promised" in picture.alt
        gone = {page for e in trace[step].events if isinstance(e, Evicted) for page in e.pages}
        assert len(boxes(picture, "evicted")) == len(gone)
        owners = Counter(t.get_text() for t in ax.texts if t.get_text().startswith("r"))
        for name, n in owners.items():
            pages = state.running[int(name[1:])].pages
            assert n == sum(sum(p in r.pages for r in state.running.values()) == 1 for p in pages)


# ---- batch ---------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(workloads, engines, st.data())
def test_a_life_is_what_was_found_and_computed_and_is_to_come(
    workload: Workload, options: Options, data: st.DataObject
) -> None:
    _lives_hold(driven(workload, options, data).trace)


def test_a_preempted_life_begins_with_what_was_found_when_it_came_back(trace: Trace) -> None:
    back = {event.rid for _, event in events(trace, Preempted)}
    found = {(event.rid, event.num_tokens) for _, event in events(trace, Reused)}
    assert any(sum(rid == one for one, _ in found) > 1 for rid in back)
    _lives_hold(trace)
    _pages_hold(trace)


def _lives_hold(trace: Trace) -> None:
    records, plot = list(trace), Plot(trace)
    ends = {event.rid: step for step, event in events(trace, Finished)}
    done: dict[int, int] = {}  # positions, counted from the rows
    for k, record in enumerate(records):
        shown = {bar.rid: bar for bar in Step(records[: k + 1], plot._launched(k)).bars}
        found = {e.rid: e.num_tokens for e in record.events if isinstance(e, Reused)}
        for rid in record.plan.preempt:
            done.pop(rid, None)
        for row in record.batch.rows:
            done[row.rid] = done.get(row.rid, found.get(row.rid, 0)) + row.length
            bar = shown[row.rid]
            assert bar.reused + bar.prefilled + bar.decoded == done[row.rid]
            assert row.rid not in found or bar.reused == found[row.rid]
        for rid, bar in shown.items():
            request = trace.scheduler(k).waiting.get(rid)
            if bar.waits and rid not in record.plan.preempt:
                told = [p for p in trace.explain(rid).steps if p.step == k]
                # with several steps in flight it may have been aborted before this one's record
                assert all(bar.note == (p.words or p.doing) for p in told)
                assert told or ends[rid] < k
                assert request is None or bar.to_come == request.max_len


def test_the_budget_is_packed_with_the_rows_of_the_step(trace: Trace) -> None:
    for step in range(0, len(trace), 3):
        picture, record = of(trace.plot.batch(step)), trace[step]
        rows = boxes(picture, "budget prefill") + boxes(picture, "budget decode")
        assert len(rows) == len(record.batch.rows)
        starts = sorted(x0 for x0, _, _, _ in rows)
        lengths = [row.length for row in record.batch.rows]
        assert starts == [sum(lengths[:i]) for i in range(len(lengths))]
        left = trace.config.limits.max_step_tokens - record.batch.num_tokens
        assert round(length(boxes(picture, "budget free"))) == left
        assert f"{record.batch.num_tokens} of 7 tokens, {left} left" in picture.alt


def test_bars_are_drawn_as_long_as_they_say(trace: Trace) -> None:
    plot = Plot(trace)
    for step in range(0, len(trace), 4):
        picture = of(plot.batch(step))
        bars = Step(list(trace)[: step + 1], plot._launched(step)).bars
        for name, at in (("reused", 1), ("prefill", 2), ("decode", 3), ("free", 4)):
            want = sorted((y, bar[at]) for y, bar in enumerate(bars) if bar[at])
            drawn = boxes(picture, name)
            got = sorted((round((y0 + y1) / 2), round(x1 - x0)) for x0, x1, y0, y1 in drawn)
            assert got == want
        said = {text.get_text() for ax in axes_of(picture) for text in ax.texts}
        assert {bar.note for bar in bars if bar.waits} <= said


def test_those_behind_many_who_wait_are_counted() -> None:
    engine = hash_engine(num_pages=200, max_running=2, max_seq_len=40)
    for i in range(40):
        engine.add([1 + i % 9, 2], SamplingParams(max_tokens=4, ignore_eos=True))
    engine.run(max_steps=2)
    picture = of(engine.trace.plot.batch(1))
    assert "and 22 requests waiting behind them" in picture.alt
    assert "38 requests waiting" in picture.alt


# ---- budget --------------------------------------------------------------------------------------


def test_the_stacks_are_the_columns_of_the_frame(trace: Trace) -> None:
    picture, frame = of(trace.plot.budget()), trace.to_frame("steps")
    decode = np.array(heights(picture, "decode"))
    assert list(decode) == list(frame.decode_rows)
    assert list(heights(picture, "prefill") + decode) == list(frame.computed)
    assert heights(picture, "free") == list(frame.free_pages)
    assert heights(picture, "evictable") == list(frame.evictable_pages)
    held = trace.config.limits.num_pages - frame.free_pages - frame.evictable_pages
    assert heights(picture, "held") == list(held)
    assert heights(picture, "promised") == list(held + frame.promised_pages)
    assert f"{frame.computed.sum():,} tokens in {len(frame):,} steps" in picture.alt
    assert f"Pages held, of 17: {held.min()} to {held.max()}" in picture.alt


def test_a_window_shows_its_steps_alone(trace: Trace) -> None:
    picture, frame = of(trace.plot.budget(5, 9)), trace.to_frame("steps")[5:10]
    assert heights(picture, "free") == list(frame.free_pages)
    assert "steps 5 to 9" in picture.alt and "5 to 9" in of(trace.plot.lanes(5, 9)).alt


def test_a_fork_has_its_own_limit_from_where_it_began() -> None:
    engine = hash_engine(max_step_tokens=5)
    engine.add([1, 2, 3, 4, 5, 6, 7], SamplingParams(max_tokens=3, ignore_eos=True))
    engine.run(max_steps=2)
    twin = engine.fork(max_step_tokens=9)
    begun = len(twin.trace)
    twin.add([2] * 9, SamplingParams(max_tokens=2, ignore_eos=True))
    twin.run()
    limits = heights(of(twin.trace.plot.budget()), "limit of tokens")
    assert limits == [5.0] * begun + [9.0] * (len(twin.trace) - begun)


def test_many_steps_are_averaged_and_nothing_is_lost() -> None:
    engine = hash_engine(num_pages=60, max_running=2, check=False)
    for i in range(30):
        engine.add([1 + i % 9, 2, 3], SamplingParams(max_tokens=30, ignore_eos=True))
    engine.run()
    frame, picture = engine.trace.to_frame("steps"), of(engine.trace.plot.budget())
    drawn, n = heights(picture, "prefill"), len(frame)
    assert len(drawn) < n / 1.9 and "each place is the mean of 2 steps" in _said(picture)
    whole = sum(drawn[:-1]) * 2 + drawn[-1] * (n - 2 * (len(drawn) - 1))
    assert round(whole) == frame.computed.sum() - frame.decode_rows.sum()


def _said(picture: Picture) -> str:
    return " ".join(t.get_text() for ax in axes_of(picture) for t in ax.texts)


# ---- timeline ------------------------------------------------------------------------------------


def timed(trace: Trace) -> list[StepRecord]:
    """The same steps on a clock of their own: two devices, and a host that is slow now and then."""
    out, at = [], 100.0
    for record in trace:
        k = record.batch.step
        slow = 3e-3 if k % 3 == 0 else 1e-3
        begin, end = at + slow + 2e-4, at + slow + 5e-3
        spans = [
            Span("host", "plan", at, at + slow),
            Span("host", "launch", at + slow, begin),
            Span("host", "wait", begin, end + 1e-4),
            Span("host", "apply", end + 1e-4, end + 3e-4),
            Span("device 0", "batch", begin, end),
            Span("device 1", "batch", begin + 1e-4, end - 1e-4),
        ]
        out.append(replace(record, spans=tuple(spans)))
        at = end + (8e-3 if k % 4 == 0 else 3e-4)
    return out


def test_lanes_on_the_clock_are_the_spans_and_the_gaps_between_them(trace: Trace) -> None:
    records = timed(trace)
    for steps in (range(len(records)), range(4, 9)):
        account = timeline.account(records, steps)
        assert account.clocks_agree and len(account.idle) > 2
        picture = of(show(Clock(records, steps, account), None))
        drawn = boxes(picture, "prefill") + boxes(picture, "decode")
        whole = sum(  # a batch of both kinds is drawn as two halves
            (y1 - y0) / 0.64 * (x1 - x0) for x0, x1, y0, y1 in drawn
        )
        assert math.isclose(whole, account.busy * 1e3, rel_tol=1e-6)
        for cause in CAUSES:
            seconds = length(boxes(picture, cause)) / 1e3
            assert math.isclose(seconds, account.idle.get(cause, 0.0), rel_tol=1e-6, abs_tol=1e-9)
            assert (cause in picture.alt) == (cause in account.idle)
        assert f"devices busy {account.busy / account.total:.0%}" in picture.alt
        assert f"host work {account.hidden_share:.0%} hidden" in picture.alt
        waits = length(boxes(picture, "waiting")) / 1e3
        assert math.isclose(waits, account.host["wait"], rel_tol=1e-6)
        (ax,) = axes_of(picture)
        assert [t.get_text() for t in ax.get_yticklabels()] == ["host", "device 0", "device 1"]


def test_a_device_with_another_clock_stands_alone(trace: Trace) -> None:
    picture = of(trace.plot.timeline())
    (ax,) = axes_of(picture)
    assert [t.get_text() for t in ax.get_yticklabels()] == ["device"]
    assert "the devices' clock is not the host's" in picture.alt and "Host:" not in picture.alt
    assert len(boxes(picture, "decode")) + len(boxes(picture, "prefill")) >= 12


def test_steps_that_nobody_timed_cannot_be_put_on_a_clock() -> None:
    engine = hash_engine()
    engine.add([1, 2, 3], SamplingParams(max_tokens=2))
    engine.abort(0)
    engine.run()
    with pytest.raises(ValueError, match="steps 0 to 0 were not timed"):
        engine.trace.plot.timeline()


# ---- colours -------------------------------------------------------------------------------------


def test_text_can_be_read_on_every_state() -> None:
    for state, colour in STATES.items():
        assert contrast(ink(colour), colour) >= 4.5, state
    for letters in (INK, GREY):
        assert contrast(letters, "#ffffff") >= 4.5
