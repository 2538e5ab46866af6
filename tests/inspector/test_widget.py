"""What the widget answers to the renderer, without a browser: ``tests/browser`` has one."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

import minisgl
from minisgl.core import SamplingParams, StepRecord, Why
from minisgl.engine.engine import Engine
from minisgl.inspector.widget import Inspector
from minisgl.trace import Trace
from tests.hash_engine import hash_engine
from tests.inspector.films import Seen, holds_against
from tests.scheduler.test_policy import own_words


class Browser:
    """What a renderer would have been sent, and a way to ask like one."""

    def __init__(self, inspector: Inspector) -> None:
        self.inspector = inspector
        self.sent: list[tuple[dict[str, Any], list[bytes]]] = []
        self.films = [bytes(film) for film in inspector.get_state()["films"]]
        inspector.send = self._take

    def _take(self, content: dict[str, Any], buffers: list[bytes] | None = None) -> None:
        self.sent.append((content, buffers or []))
        if "chunk" in content:
            index = content["chunk"]
            self.films[index:] = self.films[index:] or [b""]
            self.films[index] = (b"" if content["reset"] else self.films[index]) + (buffers or [])[
                0
            ]

    def ask(self, **command: Any) -> dict[str, Any]:
        """The answer to a command."""
        self.inspector._on_message(None, {"id": 7, **command}, [])
        answer = self.sent[-1][0]
        assert answer["done"] == 7
        return answer

    def holds(self) -> None:
        """Assert that what was sent is what the runs are."""
        for film, what in zip(self.films, self.inspector.runs, strict=True):
            trace = what if isinstance(what, Trace) else what.trace
            if len(trace):
                holds_against(trace, Seen().read(film))


@pytest.fixture
def engine() -> Engine:
    engine = hash_engine(num_pages=20, page_size=2)
    for first in (1, 1, 2, 3):
        engine.add([first] * 6, SamplingParams(max_tokens=8, ignore_eos=True))
    return engine


@pytest.fixture
def browser(engine: Engine) -> Iterator[Browser]:
    engine.run(max_steps=3)
    inspector = minisgl.inspect(engine)
    yield Browser(inspector)
    inspector.close()


def test_a_step_is_made_and_shown(browser: Browser, engine: Engine) -> None:
    assert browser.inspector.cursor == 2
    assert browser.ask(do="step") == {"done": 7, "error": None, "ran": 1}
    assert len(engine.trace) == 4 and browser.inspector.cursor == 3
    assert browser.inspector.record is engine.trace[3]
    browser.holds()


def test_steps_made_elsewhere_are_shown_too(browser: Browser, engine: Engine) -> None:
    engine.run()
    browser.inspector.refresh()
    assert browser.inspector.cursor == len(engine.trace) - 1
    browser.holds()
    last = len(engine.trace) - 1
    assert repr(browser.inspector) == f"Inspector(live, step {last} of 0 to {last})"


def test_a_cursor_that_looks_back_stays_where_it_is(browser: Browser, engine: Engine) -> None:
    browser.inspector.cursor = 1
    engine.run()
    browser.inspector.refresh()
    assert browser.inspector.cursor == 1


def test_running_stops_at_a_breakpoint_and_says_so(browser: Browser, engine: Engine) -> None:
    assert browser.ask(do="break", condition="finish")["error"] is None
    answer = browser.ask(do="run", steps=200)
    assert answer["stopped"] == "breakpoint"
    assert "ends" in repr(engine.trace[-1])
    assert browser.inspector.status["runs"][0]["breakpoints"] == [
        {"label": "finish", "on": True, "hits": None}
    ]
    browser.ask(do="break_set", index=0, on=False)
    assert browser.ask(do="run", steps=200)["stopped"] == "idle"
    browser.ask(do="break_remove", index=0)
    assert engine.breakpoints == ()


def test_a_breakpoint_of_ones_own_shows_where_it_held(browser: Browser, engine: Engine) -> None:
    def fourth(record: StepRecord) -> bool:
        return record.batch.step == 4

    engine.break_when(fourth)
    assert browser.ask(do="run", steps=200)["stopped"] == "breakpoint"
    browser.ask(do="run", steps=200)
    (told,) = browser.inspector.status["runs"][0]["breakpoints"]
    assert told["label"].endswith("fourth") and told["hits"] == [4]


def test_a_breakpoint_that_raises_is_told_and_the_engine_goes_on(
    browser: Browser, engine: Engine
) -> None:
    engine.break_when(lambda record: 1 / 0)
    browser.inspector.refresh()
    assert "failed and was disabled: ZeroDivisionError" in browser.inspector.status["message"]
    assert browser.ask(do="run", steps=200)["stopped"] == "idle"
    assert all(request.finish for request in engine.requests.values())


def test_rewinding_replaces_the_film(browser: Browser, engine: Engine) -> None:
    engine.run()
    browser.ask(do="rewind", to=2)
    assert len(engine.trace) == 2 and browser.inspector.cursor == 1
    browser.holds()
    engine.rewind(to=1)  # in another cell
    browser.inspector.refresh()
    browser.holds()
    browser.ask(do="run", steps=200)
    browser.holds()


def test_a_fork_becomes_a_run_of_its_own(browser: Browser, engine: Engine) -> None:
    engine.run()
    answer = browser.ask(do="fork", at=2, changes={"policy": "mixed", "overlap": False})
    assert answer["error"] is None and browser.inspector.run == 1
    twin = browser.inspector.engine
    assert twin is not engine and twin.config.policy == "mixed"
    assert browser.inspector.status["runs"][1]["name"] == "fork at 2: policy=mixed, overlap=False"
    browser.ask(do="run", run=1, steps=200)
    assert [r.output for r in twin.requests.values()] == [
        r.output for r in engine.requests.values()
    ]
    browser.holds()


def test_a_plan_is_edited_and_launched(browser: Browser, engine: Engine) -> None:
    engine.rewind(to=0)
    browser.inspector.refresh()
    plan = browser.inspector.status["runs"][0]["plan"]
    assert plan["rows"] and plan["addable"]
    rows = [*plan["rows"][1:], plan["addable"][-1]]
    answer = browser.ask(do="launch", rows=rows, preempt=[])
    assert answer["error"] is None
    assert [[row.rid, row.length] for row in engine.trace[-1].batch.rows] == rows
    wrong = browser.ask(do="launch", rows=[[99, 5]], preempt=[])
    assert "request 99, which neither waits nor runs" in wrong["error"]
    browser.holds()


def test_an_arrival_is_left_out_and_the_rest_runs_again(browser: Browser, engine: Engine) -> None:
    engine.run()
    assert browser.ask(do="skip", rid=1)["error"] is None
    twin = browser.inspector.engine
    assert all(row.rid != 1 for record in twin.trace for row in record.batch.rows)
    assert twin.requests[3].output == engine.requests[3].output
    assert browser.ask(do="skip", rid=99)["error"] == "request 99 does not arrive in this history"


def test_a_request_is_aborted(browser: Browser, engine: Engine) -> None:
    browser.ask(do="abort", rid=3)
    assert engine.requests[3].finish == "abort"


@pytest.mark.parametrize(
    "command",
    [
        {"do": "fly"},
        {"do": ["step"]},
        {"do": "step", "run": 5},
        {"do": "step", "run": "0"},
        {"do": "run", "steps": -1},
        {"do": "run", "steps": 10**30, "run": -1},
        {"do": "rewind", "to": 10**9},
        {"do": "rewind", "to": None},
        {"do": "fork", "at": 1, "changes": {"__class__": 1}},
        {"do": "fork", "at": 1, "changes": {"page_size": 1}},
        {"do": "fork", "at": 1, "changes": {"policy": "os.system"}},
        {"do": "fork", "at": 1, "changes": [1]},
        {"do": "break", "condition": "__import__('os')"},
        {"do": "break_set", "index": 3, "on": True},
        {"do": "break_set", "index": 0, "on": "yes"},
        {"do": "launch", "rows": [[1, 2, 3]]},
        {"do": "launch", "rows": [["1", 2]]},
        {"do": "launch", "rows": []},
        {"do": "abort", "rid": 1.5},
        {"do": "skip"},
    ],
)
def test_a_wrong_command_gets_a_sentence_and_changes_nothing(
    browser: Browser, engine: Engine, command: dict[str, Any]
) -> None:
    engine.collect()  # a rewind would collect it first, even one that is refused
    browser.inspector.refresh()
    before = repr(list(engine.trace)), repr(engine), len(browser.inspector.runs)
    answer = browser.ask(**command)
    assert answer["error"] and len(answer["error"]) < 300
    assert (repr(list(engine.trace)), repr(engine), len(browser.inspector.runs)) == before
    browser.holds()


def test_a_trace_can_be_looked_at_and_broken_into_but_not_run(
    engine: Engine, tmp_path: Path
) -> None:
    engine.run()
    engine.trace.save(tmp_path / "run.jsonl")
    browser = Browser(minisgl.inspect(Trace.load(tmp_path / "run.jsonl")))
    assert browser.inspector.status["mode"] == "replay"
    assert (
        browser.ask(do="step")["error"] == "run is a recorded trace: it can be looked at, not run"
    )
    browser.ask(do="break", condition="finish")
    assert browser.inspector.status["runs"][0]["breakpoints"][0]["label"] == "finish"
    with pytest.raises(ValueError, match="no engine"):
        _ = browser.inspector.engine
    browser.holds()


def test_an_engine_closed_under_the_inspector_is_told(browser: Browser, engine: Engine) -> None:
    engine.close()
    assert browser.ask(do="step")["error"] == "the engine is closed; load another"
    told = browser.inspector.status["runs"][0]
    assert told["closed"] and not told["live"] and told["plan"] is None


def test_an_engine_that_ran_nothing_yet_can_be_inspected() -> None:
    engine = hash_engine()
    browser = Browser(minisgl.inspect(engine))
    assert browser.inspector.cursor == -1
    engine.add([1, 2], SamplingParams(max_tokens=3))
    browser.ask(do="step")
    assert browser.inspector.cursor == 0
    browser.holds()


def test_many_small_readings_are_told_anew_as_one(browser: Browser, engine: Engine) -> None:
    for n in range(90):
        engine.add([1 + n % 3], SamplingParams(max_tokens=2))
        browser.ask(do="step")
    seen = Seen().read(bytes(browser.inspector.get_state()["films"][0]))
    holds_against(engine.trace, seen)
    browser.ask(do="run", steps=200)
    browser.films = [bytes(film) for film in browser.inspector.get_state()["films"]]
    browser.holds()


def test_a_live_run_keeps_no_more_than_its_engine_and_a_new_view_gets_what_there_is() -> None:
    engine = hash_engine(num_pages=40, page_size=2, history=60)
    inspector = minisgl.inspect(engine)
    inspector.engine.break_when(lambda record: record.batch.step % 2 == 0)
    sizes, hits = list[int](), list[int]()
    for number in range(900):
        if number % 4 == 0:
            engine.add([1 + number % 3] * 5, SamplingParams(max_tokens=4, ignore_eos=True))
        engine.run(max_steps=1)
        inspector.refresh()
        (run,) = inspector._runs
        kept = [*(run._chunks or ()), *run._film._over, *inspector.status["runs"][0]["breakpoints"]]
        hits = inspector.status["runs"][0]["breakpoints"][0]["hits"]
        sizes.append(len(kept) + len(hits))
    first = engine.trace.history.first
    assert first > 700 and max(sizes[500:]) <= 64 + 8 + 1 + 120 and min(hits) >= first
    seen = Seen().read(inspector.get_state()["films"][0])
    assert seen.first == seen.header["kept"] == first
    holds_against(engine.trace, seen, every=9)
    inspector.close()


def test_a_policys_reasons_keep_their_numbers_where_a_film_is_read_anew() -> None:
    engine = hash_engine(policy=own_words, history=30, max_running=9, depth=1)
    inspector = minisgl.inspect(engine)
    browser, told = Browser(inspector), dict[str, str]()
    for number in range(200):
        engine.add([1 + number % 3] * 3, SamplingParams(max_tokens=3, ignore_eos=True))
        engine.run(max_steps=2)
        inspector.refresh()
        if number % 90 == 0:
            inspector.get_state()  # a further view begins
    for content, buffers in browser.sent:
        if "chunk" in content and buffers and buffers[0]:
            length = int.from_bytes(buffers[0][8:12], "little")
            for reason, words in json.loads(buffers[0][12 : 12 + length])["reasons"].items():
                assert told.setdefault(reason, words) == words
    assert len(told) > 100 and min(map(int, told)) == len(Why)
    inspector.close()


def test_steps_that_were_forgotten_unread_begin_the_film_anew() -> None:
    engine = hash_engine(page_size=2, history=20)
    engine.add([1] * 5, SamplingParams(max_tokens=2))
    inspector = minisgl.inspect(engine)
    browser = Browser(inspector)
    engine.observers.clear()  # it hears of nothing until it looks again
    for number in range(200):
        engine.add([1 + number % 3] * 5, SamplingParams(max_tokens=4, ignore_eos=True))
        engine.run(max_steps=2)
    assert engine.trace.history.first > 100
    inspector.refresh()
    browser.holds()
    inspector.close()


def test_a_policy_that_raises_is_shown_where_the_plan_would_be() -> None:
    def broken(ledger: Any) -> Any:
        raise KeyError("mine")

    browser = Browser(minisgl.inspect(hash_engine(policy=broken)))
    plan = browser.inspector.status["runs"][0]["plan"]
    assert plan["refusals"] == ["the policy failed: KeyError('mine')"]


def test_a_closed_inspector_leaves_the_engine_alone(engine: Engine) -> None:
    inspector = minisgl.inspect(engine)
    inspector.close()
    assert engine.observers == []
    engine.run()
    gc.collect()


def test_only_engines_and_traces_are_inspected() -> None:
    with pytest.raises(TypeError, match="takes an engine or a trace, got 3"):
        minisgl.inspect(cast(Engine, 3))


def test_two_runs_open_together_where_they_part(tmp_path: Path) -> None:
    def run(policy: str) -> Engine:
        engine = hash_engine(num_pages=60, page_size=2, policy=policy)
        for first in range(1, 6):
            engine.add([first] * 9, SamplingParams(max_tokens=6, ignore_eos=True))
            engine.run(max_steps=2)
        engine.run()
        return engine

    compared = minisgl.compare(run("prefill_first"), run("decode_first"))
    browser = Browser(compared.inspect())
    assert compared.step is not None
    parting = browser.inspector.status["divergence"]
    assert f"step {parting['step']}: {parting['words']}" == str(compared.divergence)
    assert browser.inspector.cursor == compared.step
    browser.holds()
    compared.save_html(tmp_path / "both.html")
    assert parting["words"] in (tmp_path / "both.html").read_text()
