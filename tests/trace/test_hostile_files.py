"""Trace files that lie: each is refused by its name and line, soon, and within bounds."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minisgl.core import SamplingParams
from minisgl.trace import Trace
from tests.hash_engine import hash_engine


def lines_of_a_run() -> list[Any]:
    """A small run's file, parsed: reuse, preemption, an abort, stops, logprobs, a fork."""
    engine = hash_engine(
        num_pages=14, max_seq_len=12, max_running=3, admission="optimistic", expected_output=1
    )
    for i in range(4):
        sampling = SamplingParams(
            max_tokens=6, ignore_eos=True, logprobs=1, prompt_logprobs=0 if i == 2 else None
        )
        engine.add([1, 2, 1 + i], sampling)
        engine.run(max_steps=2)
    engine.abort(1)
    twin = engine.fork(policy="mixed", max_step_tokens=32)
    twin.add([1, 2, 4], SamplingParams(max_tokens=3, stop_token_ids=(5,)))
    twin.run()
    return saved(twin.trace)


def saved(trace: Trace) -> list[Any]:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "run.jsonl"
        trace.save(path)
        return [json.loads(line) for line in path.read_text().splitlines()]


LINES = lines_of_a_run()


def write(path: Path, lines: list[Any]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def refused(path: Path, line: int, says: str = "") -> None:
    named = f"{re.escape(str(path))}.*line {line}[^0-9].*{says}"
    with pytest.raises(ValueError, match=re.compile(named, re.DOTALL)):
        Trace.load(path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.jsonl"


def test_nesting_beyond_all_measure_is_not_json(path: Path) -> None:
    write(path, LINES)
    with path.open("a") as file:
        file.write("[" * 200_000 + "]" * 200_000 + "\n")
    refused(path, len(LINES) + 1, "is not JSON")
    path.write_text("[" * 200_000)
    refused(path, 1, "is not JSON")


def test_a_line_beyond_all_measure_is_not_read_to_its_end(path: Path) -> None:
    write(path, LINES)
    with path.open("ab") as file:
        file.truncate(path.stat().st_size + (1 << 40))  # a hole: no file system writes it
    refused(path, len(LINES) + 1, "is longer than 16777216 bytes")


HUGE = 10**30


@pytest.mark.parametrize(
    "line",
    [
        {"add": HUGE, "prompt": [1], "sampling": {}},
        {"add": 3, "prompt": [1], "sampling": {}},  # below the ones before
        {"add": True, "prompt": [1], "sampling": {}},
        {"add": "50", "prompt": [1], "sampling": {}},
        {"add": 50.0, "prompt": [1], "sampling": {}},
        {"add": 50, "prompt": [HUGE], "sampling": {}},
        {"add": 50, "prompt": [13], "sampling": {}},  # the vocabulary has 13 ids
        {"add": 50, "prompt": [-1], "sampling": {}},
        {"add": 50, "prompt": [1.0], "sampling": {}},
        {"add": 50, "prompt": "12", "sampling": {}},
        {"add": 50, "prompt": [1] * 100_000, "sampling": {}},
        {"add": 50, "prompt": [1], "sampling": {"stop": ["x"] * 20_000}},
        {"add": 50, "prompt": [1], "sampling": []},
        {"abort": None},
        {"abort": [1]},
        {"change": {"max_step_tokens": HUGE, "chunked_prefill": True, "optimistic": True}},
        {"change": {"max_step_tokens": "8", "chunked_prefill": True, "optimistic": True}},
        {"change": {"max_step_tokens": 8, "chunked_prefill": 1, "optimistic": True}},
        {"plan": [[HUGE, 1]], "preempt": [], "refusals": []},
        {"plan": [[50, HUGE]], "preempt": [], "refusals": []},
        {"plan": [[50]], "preempt": [], "refusals": []},
        {"plan": [], "preempt": [50], "refusals": []},
        {"plan": [], "preempt": "50", "refusals": []},
        {"plan": [], "preempt": [], "refusals": [[50, "NO_SLOT", HUGE, 0, None]]},
        {"plan": [], "preempt": [], "refusals": [[50, "BECAUSE", 0, 0, None]]},
        {"plan": [], "preempt": [], "refusals": [[50, "NO_SLOT", "many", 0, None]]},
        {"plan": [], "preempt": [], "refusals": [[50, "NO_SLOT", 1, 2, 3, 4]]},
    ],
    ids=lambda line: json.dumps(line)[:60],
)
def test_numbers_and_shapes_that_no_engine_writes_are_refused(path: Path, line: Any) -> None:
    refused(write(path, [*LINES, line]), len(LINES) + 1)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("step", 0.0),
        ("step", HUGE),
        ("tokens", [13]),
        ("tokens", ["1"]),
        ("tokens", [None]),
        ("tokens", [1, 1]),
        ("error", 7),
        ("logprobs", [[0.5, 1, []]] * 2),
        ("logprobs", [[None, 1, []]]),
        ("logprobs", [[1e400, 1, []]]),
        ("logprobs", [[0.5, 0, []]]),
        ("logprobs", [[0.5, 1, [[HUGE, 0.5]]]]),
        ("prompt_logprobs", [[[0.5, 1, []]] * 9]),
        ("stops", [[9, "x", 0]]),
        ("stops", [[0, 1, 0]]),
        ("stops", [[0, "x", -1]]),
        ("spans", [["host", "plan", 2.0, 1.0]]),
        ("spans", [["host", "plan", 0.0, 1e400]]),
        ("spans", [["host", "plan", "0", 1.0]]),
        ("spans", [[1, "plan", 0.0, 1.0]]),
        ("spans", [["host", "plan", 0.0]]),
        ("spans", 3),
        ("more", 3),
    ],
)
def test_an_outcome_that_no_device_gives_is_refused(path: Path, field: str, value: Any) -> None:
    engine = hash_engine(depth=1)
    engine.add([1, 2], SamplingParams(max_tokens=1))
    engine.run()
    lines = saved(engine.trace)
    line = lines[-1]
    if field == "spans":
        line["spans"] = value
    else:
        line["outcome"][field] = value
    refused(write(path, lines), len(lines))


def test_a_token_of_a_row_that_samples_none_is_refused(path: Path) -> None:
    engine = hash_engine(depth=1, max_step_tokens=2)
    engine.add([1, 2, 1], SamplingParams(max_tokens=1))
    engine.run()
    lines = saved(engine.trace)
    assert lines[3]["outcome"]["tokens"] == [None]  # the first chunk
    lines[3]["outcome"]["tokens"] = [1]
    refused(write(path, lines), 4, "emits")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_pages", 5_000_000),
        ("max_running", 20_000),
        ("page_size", HUGE),
        ("max_seq_len", HUGE),
        ("max_step_tokens", HUGE),
        ("expected_output", HUGE),
        ("num_pages", "auto"),
        ("num_pages", 1e30),
        ("policy", "os.system"),
        ("overlap", 1),
    ],
)
def test_a_configuration_out_of_bounds_is_refused_before_it_costs_memory(
    path: Path, field: str, value: Any
) -> None:
    first = LINES[0] | {"origin": LINES[0]["origin"] | {field: value}}
    write(path, [first, *LINES[1:]])
    with pytest.raises(ValueError, match=f"{re.escape(str(path))}: the header is wrong.*{field}"):
        Trace.load(path)


def test_a_version_to_come_says_what_can_be_read(path: Path) -> None:
    write(path, [LINES[0] | {"version": 2}, {"new": "things"}])
    with pytest.raises(ValueError, match="has version 2; this minisgl reads version 1, a newer"):
        Trace.load(path)
    write(path, [LINES[0] | {"version": [1] * 10_000}])
    with pytest.raises(ValueError, match="has version ") as error:
        Trace.load(path)
    assert len(str(error.value)) < 400


def test_control_characters_are_spelled_out_in_what_is_said(path: Path) -> None:
    write(path, [*LINES, {"\x1b[2J\u202e": "\x07"}])
    with pytest.raises(ValueError, match="line") as error:
        Trace.load(path)
    assert str(error.value).isprintable()
    path.write_bytes(b'{"format": "\x1b[2J"}\n')
    refused(path, 1, "is not JSON")
    path.write_bytes(b"\xff\xfe\x00garbage\n")
    refused(path, 1, "is not JSON")


def test_plans_that_compute_the_same_again_and_again_end_before_the_memory_does(
    path: Path,
) -> None:
    """A request that is preempted and admitted again costs records far larger than its lines."""
    config = LINES[0]["origin"] | {"num_pages": 60_000, "max_seq_len": 60_000, "page_size": 1}
    config |= {"max_step_tokens": 60_000}
    lines: list[Any] = [LINES[0] | {"config": config, "origin": config}]
    lines.append({"add": 0, "prompt": [1] * 50_000, "sampling": {"max_tokens": 500}})
    step = 0
    for _ in range(200):
        plan = {"plan": [[0, 50_000 if not step else 1]], "preempt": [], "refusals": []}
        told = {"step": step, "tokens": [2], "error": None, "logprobs": [], "prompt_logprobs": []}
        lines += [plan, {"outcome": told | {"stops": []}, "spans": []}]
        lines.append({"plan": [], "preempt": [0], "refusals": []})
        told = told | {"step": step + 1, "tokens": [], "stops": []}
        lines.append({"outcome": told, "spans": []})
        step += 2
    with pytest.raises(ValueError, match="line [0-9]+: .*far more than their requests hold"):
        Trace.load(write(path, lines))


def leaves(value: Any, where: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path to everything in a JSON value, itself included."""
    yield where
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    for key, inner in items:
        yield from leaves(inner, (*where, key))


def replaced(value: Any, where: tuple[Any, ...], by: Any) -> Any:
    if not where:
        return by
    out = value.copy()
    out[where[0]] = replaced(value[where[0]], where[1:], by)
    return out


PLACES = [(n, where) for n, line in enumerate(LINES) for where in leaves(line)]
values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 20),
    st.sampled_from([2**31, HUGE, -HUGE, 1e308, 0.5]),
    st.text(max_size=3),
    st.just([]),
    st.just({}),
)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(PLACES), values, st.sampled_from(["change", "drop", "twice"]))
def test_a_file_with_anything_changed_loads_and_can_be_looked_at_or_names_the_line(
    path: Path, place: tuple[int, tuple[Any, ...]], value: Any, how: str
) -> None:
    at, where = place
    lines = list(LINES)
    if how == "change":
        lines[at] = replaced(lines[at], where, value)
    elif how == "drop":
        del lines[at]
    else:
        lines.insert(at, lines[at])
    write(path, lines)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            trace = Trace.load(path)
    except ValueError as error:
        said = str(error)
        assert said.startswith(str(path)) and said.isprintable() and len(said) < 1000, said
        return
    trace.scheduler().check()
    for kind in ("steps", "requests", "events", "spans", "pages"):
        trace.to_frame(kind)
    for told in (trace.describe(times=True), trace.reuse(), trace.regret(), trace.timeline()):
        assert repr(told)
    trace.save_chrome(path.with_suffix(".json"))
    trace.save(path)
    again = Trace.load(path)
    assert [r.events for r in again] == [r.events for r in trace]
