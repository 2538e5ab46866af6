"""The page that ``trace.save_html`` writes, in a browser: what it draws is what the trace says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import minisgl
from minisgl.core import Added, Admitted, Finished, Reused, SamplingParams
from minisgl.inspector.film import EVENTS
from minisgl.trace import Trace
from tests.hash_engine import hash_engine
from tests.inspector.test_page import Hostile
from tests.scheduler.test_policy import own_words

if TYPE_CHECKING:
    from playwright.sync_api import Page

Opened = Callable[..., "Page"]
KINDS = ("prefill", "decode", "zombie")


def busy(overlap: bool, codec: Any = None) -> Trace:
    """A run with shared prefixes, chunks, eviction, preemption and an abort."""
    engine = hash_engine(
        num_pages=26,
        page_size=2,
        depth=2 if overlap else 1,
        policy="mixed",
        admission="optimistic",
        expected_output=1,
        max_step_tokens=9,
        max_seq_len=50,
        codec=codec,
    )
    for number in range(14):
        prompt = [1 + number % 3] * 8 + [4 + number % 5] * (number % 7)
        engine.add(prompt, SamplingParams(max_tokens=9, ignore_eos=True))
        engine.run(max_steps=2)
    engine.abort(12)
    engine.run()
    return engine.trace


@pytest.fixture(scope="module")
def trace() -> Trace:
    trace = busy(overlap=True)
    happened = {type(event).__name__ for record in trace for event in record.events}
    assert happened == {kind.__name__ for kind in EVENTS}, "the run shows everything there is"
    return trace


def ready(page: Page) -> None:
    page.locator("#inspector > *").wait_for()
    page.evaluate("document.querySelector('#inspector > *').minisgl.ready.then(() => null)")


def drawn(page: Page, step: int) -> dict[str, Any]:
    """What stands on the page with the cursor at a step."""
    view = "(k) => document.querySelector('#inspector > *').minisgl.view(k)"
    found: dict[str, Any] = page.evaluate(view, step)
    return found


def test_every_figure_at_every_step_equals_the_trace(
    open_file: Opened, trace: Trace, tmp_path: Path
) -> None:
    trace.save_html(tmp_path / "run.html")
    page = open_file(tmp_path / "run.html", 1200, 1000)
    ready(page)
    steps, over, queue = trace.to_frame("steps"), set[int](), set[int]()
    for record in trace:
        k = record.batch.step
        seen = drawn(page, k)
        assert seen["cursor"] == k and seen["sentence"].startswith(f"step {k}: ")
        state = trace.scheduler(k)
        assert seen["pages"]["holders"] == list(state.pool.counts)
        assert sum(count == 0 for count in seen["pages"]["holders"]) == steps["free_pages"][k]
        nodes = {node.id: node for node in state.pool.nodes()}
        shown = {node["id"]: node for node in seen["tree"] if node["state"] != "evicted"}
        assert shown.keys() == nodes.keys()
        for id_, node in nodes.items():
            told = shown[id_]
            assert (told["parent"], told["depth"], told["size"], told["used"]) == (
                node.parent or 0,
                node.depth,
                len(node.pages),
                node.last_used,
            )
            held = state.pool.counts[node.pages[0]] > 1
            assert (told["state"] == "held") == held
        ended = [event for event in record.events if isinstance(event, Finished)]
        over |= {event.rid for event in ended if event.reason == "abort"}
        rows = [
            [r.rid, r.start, r.length, 2 if r.rid in over else int(r.token_ids is None)]
            for r in record.batch.rows
        ]
        assert sorted(seen["batch"]["rows"]) == sorted(rows)
        for event in record.events:
            if isinstance(event, Reused):
                marks = {seen["pages"]["state"][page] for page in event.pages}
                assert marks <= {"hit", "free"}, "the marks of a step are those of its record"
        assert seen["batch"]["used"] == record.batch.num_tokens == steps["computed"][k]
        lives = {life["rid"]: life for life in seen["batch"]["life"]}
        for event in record.events:
            if isinstance(event, Added):
                queue.add(event.rid)
            elif isinstance(event, Admitted | Finished):
                queue.discard(event.rid)
        assert {rid for rid, life in lives.items() if life["state"] == "queued"} <= queue
        over |= {event.rid for event in ended}


def test_lanes_timeline_and_log_equal_the_trace(
    open_file: Opened, trace: Trace, tmp_path: Path
) -> None:
    trace.save_html(tmp_path / "run.html")
    page = open_file(tmp_path / "run.html", 1200, 1000)
    ready(page)
    seen = drawn(page, len(trace) - 1)
    requests = trace.to_frame("requests").set_index("rid")
    assert sorted(lane["rid"] for lane in seen["lanes"]) == list(requests.index)
    boxes = {
        (lane["rid"], step): (kind, length)
        for lane in seen["lanes"]
        for step, kind, length in lane["boxes"]
    }
    want = {
        (row.rid, record.batch.step): (row.token_ids is not None, row.length)
        for record in trace
        for row in record.batch.rows
    }
    assert boxes.keys() == want.keys()
    for where, (kind, length) in boxes.items():
        is_prefill, positions = want[where]
        assert length == positions and (kind == 0 or not is_prefill or kind == 2)
    for lane in seen["lanes"]:
        row = requests.loc[lane["rid"]]
        assert (lane["finished"], lane["reason"]) == (row["finished"], row["finish"])
        assert sum(tokens for _, tokens in lane["reused"]) == row["reused"]
        assert len(lane["preempted"]) == row["preemptions"]
        waiting = sum(last - first + 1 for first, last in lane["waiting"])
        assert waiting == row["waited"], f"r{lane['rid']}"
    account = trace.timeline()
    sums: dict[str, float] = {}
    for _, cause, _, nanoseconds in seen["timeline"]["gaps"]:
        sums[cause] = sums.get(cause, 0.0) + nanoseconds / 1e9
    assert sums == pytest.approx(account.idle, abs=1e-6)
    events = [
        (record.batch.step, type(event).__name__.lower(), getattr(event, "rid", -1))
        for record in trace
        for event in record.events
    ]
    told = [(step, kind, rid) for step, kind, rid, *_ in seen["log"]]
    tokens = [event for event in events if event[1] == "sampled"]
    assert sorted(told) == sorted(e for e in events if e not in tokens) or sorted(told) == sorted(
        events
    )
    reused = sum(e.num_tokens for record in trace for e in record.events if isinstance(e, Reused))
    assert sum(tokens for lane in seen["lanes"] for _, tokens in lane["reused"]) == reused


def test_a_policys_own_words_are_shown_and_do_nothing(open_file: Opened, tmp_path: Path) -> None:
    engine = hash_engine(policy=own_words, depth=1, max_running=9)
    for first in range(1, 4):
        engine.add([first] * 4, SamplingParams(max_tokens=3, ignore_eos=True))
        engine.step()
    engine.trace.save_html(tmp_path / "run.html")
    page = open_file(tmp_path / "run.html")
    ready(page)
    for step in (1, 2):
        assert drawn(page, step)["batch"]["why"]["0"] == [f"<b>prompts</b> first at {step}; {{by}}"]
    assert page.locator(".msgl-why", has_text="<b>prompts</b> first at 2; {by}").count() == 2


def test_hostile_prompts_are_shown_and_do_nothing(open_file: Opened, tmp_path: Path) -> None:
    busy(overlap=False, codec=Hostile()).save_html(tmp_path / "run.html")
    page = open_file(tmp_path / "run.html")
    page.on("dialog", lambda dialog: pytest.fail("a prompt ran a script"))
    ready(page)
    seen = drawn(page, 6)
    assert any("<script>alert(1)</script>" in node["text"] for node in seen["tree"])
    assert page.locator("img").count() == 0 and page.locator("script").count() == 1


def test_a_jump_shows_the_lanes_of_those_who_run(open_file: Opened, tmp_path: Path) -> None:
    engine = hash_engine(max_running=2, depth=1)
    for number in range(90):
        engine.add([1 + number % 9] * 3, SamplingParams(max_tokens=6, ignore_eos=True))
    engine.run()
    engine.trace.save_html(tmp_path / "run.html")
    page = open_file(tmp_path / "run.html", 1200, 1000)
    ready(page)
    for step in (0, len(engine.trace) - 1, len(engine.trace) // 2):
        rows = [rid for rid, *_ in drawn(page, step)["batch"]["rows"]]
        top, high = page.locator(".msgl-scroll").evaluate("el => [el.scrollTop, el.clientHeight]")
        lanes = page.locator(".msgl-scroll .msgl-inner").evaluate("el => el.clientHeight - 22")
        assert any(top <= rid * lanes / 90 < top + high - 22 for rid in rows), (step, rows, top)


def test_keys_move_the_cursor_only_while_the_page_has_the_focus(
    open_file: Opened, trace: Trace, tmp_path: Path
) -> None:
    trace.save_html(tmp_path / "run.html")
    page = open_file(tmp_path / "run.html", 1200, 1000)
    ready(page)
    drawn(page, 5)
    page.locator("#inspector > *").focus()
    cursor = "document.querySelector('#inspector > *').minisgl.drawn().cursor"
    for key, want in (("ArrowRight", 6), ("ArrowLeft", 5), ("Home", 0), ("End", len(trace) - 1)):
        page.keyboard.press(key)
        assert page.evaluate(cursor) == want
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("Home")
    assert page.evaluate(cursor) == len(trace) - 1


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda text: text.replace('"films":["', '"films":["AAAA'), "film"),
        (lambda text: text.replace('"films":["', '"films":["!'), "film"),
    ],
)
def test_a_broken_page_says_so(
    open_file: Opened, trace: Trace, tmp_path: Path, break_it: Callable[[str], str], words: str
) -> None:
    trace.save_html(tmp_path / "run.html")
    path = tmp_path / "broken.html"
    path.write_text(break_it((tmp_path / "run.html").read_text()))
    page = open_file(path)
    page.locator("#inspector > *").wait_for()
    page.wait_for_timeout(500)
    assert words in page.locator("#inspector").inner_text().lower()


def test_a_comparison_shows_both_runs_and_where_they_part(
    open_file: Opened, tmp_path: Path
) -> None:
    compared = minisgl.compare(busy(overlap=True), busy(overlap=False))
    compared.save_html(tmp_path / "both.html")
    page = open_file(tmp_path / "both.html", 1200, 1000)
    ready(page)
    assert compared.divergence is not None
    assert compared.divergence.what in page.locator("#inspector").inner_text()
