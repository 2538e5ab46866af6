"""The driver: every request is served whole, when it is due, and measured from then."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minisgl.bench.drive import METRICS, Run, Served, Wall, drive
from minisgl.bench.item import Item, Piece
from minisgl.bench.workload import Workload
from minisgl.core import Added, Finished, Reused, Sampled, SamplingParams, StepRecord
from minisgl.engine.engine import Engine
from tests.hash_engine import expected, hash_engine

ROOM = 400


class Clock:
    """Seconds that pass only when somebody waits, and while an engine works."""

    def __init__(self, engine: Engine, step: float = 1.0) -> None:
        self.now, self.slept, self.step = 100.0, list[float](), step
        engine.observers.append(self.worked)

    def worked(self, record: StepRecord) -> None:
        self.now += self.step

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    @property
    def wall(self) -> Wall:
        return Wall(lambda: self.now, self.sleep)


def small(kind: Any = "shared_prefix", requests: int = 8, **sizes: Any) -> Workload:
    """Work that the hash engine's pool holds."""
    some = {"chat": {"system_len": 9}, "few_shot": {"shot_len": 7}, "tree": {"depth": 3}}
    some |= dict.fromkeys(("shared_prefix", "long_documents"), {"prefix_len": 20})
    given = {"output_len": (1, 6), "prompt_len": (1, 9)} | some[kind] | sizes
    return Workload.synthetic(kind, requests, **given)


def items(*arrivals: float, prompt_len: int = 3, output_len: int = 2) -> tuple[Item, ...]:
    return tuple(
        Item((Piece(str(i), prompt_len),), output_len, arrival=t) for i, t in enumerate(arrivals)
    )


def engine_of(**options: Any) -> Engine:
    return hash_engine(ROOM, **{"depth": 1, **options})


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("kind", ["shared_prefix", "chat", "few_shot", "tree", "long_documents"])
def test_every_request_generates_what_the_model_says_to_its_exact_length(
    kind: str, depth: int
) -> None:
    workload = small(kind)
    with engine_of(depth=depth) as engine:
        prompts: list[Any] = workload.prompts(engine)
        run = drive(engine, workload, prompts)
    for item, prompt, served in zip(workload, prompts, run.requests, strict=True):
        ask = SamplingParams(max_tokens=item.output_len, ignore_eos=True)
        assert served.tokens == expected(prompt, ask, ROOM)
        assert len(served.tokens) == len(served.times) == item.output_len
        assert served.prompt_len == item.prompt_len


@given(
    kind=st.sampled_from(["shared_prefix", "chat", "tree"]),
    arrivals=st.sampled_from(["at_once", "closed", "poisson"]),
    number=st.integers(1, 3),
    depth=st.integers(1, 2),
    page_size=st.sampled_from([1, 4]),
)
def test_a_repeatable_workload_makes_the_same_run_every_time(
    kind: Any, arrivals: Any, number: int, depth: int, page_size: int
) -> None:
    how: dict[str, dict[str, Any]] = {
        "at_once": {},
        "closed": {"concurrency": number},
        "poisson": {"rate": number / 3},
    }
    workload = small(kind, 6).arriving(arrivals, clock="steps", **how[arrivals])
    assert workload.repeatable

    def once() -> Run:
        with hash_engine(ROOM // page_size, page_size, depth=depth) as engine:
            clock = Clock(engine)
            run = drive(engine, workload, wall=clock.wall)
            assert not clock.slept, "nobody waits for a clock of steps"
            return run

    assert once() == once()


def test_totals_are_those_of_the_trace() -> None:
    workload = small("few_shot", 10)
    with engine_of() as engine:
        run = drive(engine, workload)
        events = [event for record in engine.trace for event in record.events]
        records, frame = list(engine.trace), engine.trace.to_frame("steps")
    assert run.steps == sum(bool(record.batch.rows) for record in records)
    assert run.queued == frame["waiting"].sum()
    assert run.computed == frame["computed"].sum()
    assert run.metrics["reused"] == frame["reused"].sum() > 0
    held = ROOM - frame["free_pages"] - frame["evictable_pages"]
    assert run.peak_pages == held.max() > 0
    assert sum(map(len, run.tokens)) == sum(isinstance(event, Sampled) for event in events)


def test_a_request_is_queued_in_every_step_until_it_is_admitted() -> None:
    with engine_of(depth=1, max_running=1) as engine:
        run = drive(engine, Workload(items(0, 0, 0), clock="steps"))
        waited = [engine.trace.explain(rid).parts for rid in engine.requests]
    causes = [sum(parts.values()) - parts["prefill"] - parts["decode"] for parts in waited]
    assert run.queued == sum(causes) > 0


def test_reused_tokens_belong_to_the_request_that_reused_them() -> None:
    workload = small("long_documents", 5, groups=1)
    with engine_of() as engine:
        run = drive(engine, workload)
        reused = {e.rid: e.num_tokens for r in engine.trace for e in r.events if type(e) is Reused}
    assert [served.reused for served in run.requests] == [reused.get(i, 0) for i in range(5)]
    assert reused


def test_a_request_waits_from_when_it_is_due_not_from_when_it_is_taken() -> None:
    """Steps take a second. What is due at 0.25 is added after the first step, at 1."""
    with engine_of() as engine:
        run = drive(engine, Workload(items(0, 0.25)), wall=Clock(engine).wall)
    first, late = run.requests
    assert (first.arrival, late.arrival) == (0, 0.25)
    assert list(first.times) == [1, 3], "the other's prompt goes first"
    assert late.times[0] == 2 and late.ttft == 1.75


def test_nobody_is_sent_before_it_is_due_and_an_idle_engine_waits() -> None:
    with engine_of() as engine:
        clock = Clock(engine)
        run = drive(engine, Workload(items(0.5, 10)), wall=clock.wall)
        added = [e.rid for r in engine.trace for e in r.events if isinstance(e, Added)]
    assert clock.slept == [0.5, 7.5], "to 0.5; then from 2.5 to 10"
    assert added == [0, 1]
    assert [served.times for served in run.requests] == [(1.5, 2.5), (11, 12)]
    assert run.seconds == 12 and run.metrics["throughput"] == pytest.approx(4 / 12)


def test_on_a_clock_of_steps_idle_ones_are_left_out_and_gaps_are_kept() -> None:
    with engine_of() as engine:
        drive(engine, Workload(items(0, 100, 101), clock="steps"))
        trace = list(engine.trace)
    when = {e.rid: r.batch.step for r in trace for e in r.events if isinstance(e, Added)}
    assert when[0] == 0 and when[2] == when[1] + 1
    assert len(trace) < 10


@pytest.mark.parametrize("depth", [1, 2])
def test_in_a_closed_loop_so_many_are_under_way_and_no_more(depth: int) -> None:
    workload = small("shared_prefix", 9, output_len=4).arriving("closed", concurrency=3)
    with engine_of(depth=depth, max_running=9) as engine:
        drive(engine, workload)
        under_way, most = 0, list[int]()
        for record in engine.trace:
            for event in record.events:
                under_way += isinstance(event, Added) - isinstance(event, Finished)
                most.append(under_way)
    assert max(most) == 3 and under_way == 0
    assert sum(n == 3 for n in most) > 6, "and no fewer while there are others"


def test_a_closed_loop_ends_a_conversation_before_it_begins_another() -> None:
    workload = small("chat", 6, turns=3).arriving("closed", concurrency=1)
    with engine_of() as engine:
        run = drive(engine, workload)
    ends = [served.times[-1] for served in run.requests]
    assert ends == sorted(ends)


@pytest.mark.parametrize("clock", ["seconds", "steps"])
def test_what_goes_on_from_an_answer_is_sent_after_it(clock: Any) -> None:
    workload = small("tree", 14).arriving("at_once", clock=clock)
    with engine_of(max_running=14) as engine:
        run = drive(engine, workload, wall=Clock(engine).wall)
    for item, served in zip(workload, run.requests, strict=True):
        if item.after is not None:
            assert served.arrival == run.requests[item.after].times[-1]


def test_of_the_numbers_each_is_what_it_is_called() -> None:
    one = Served(1.0, 5, (7, 7, 7), (3.0, 4.0, 7.0), 2)
    two = Served(0.0, 5, (7,), (2.0,), 0)
    run = Run((one, two), 9, 6, 20, 4)
    assert (one.ttft, one.tpot, one.itl, one.latency) == (2, 2, (1, 3), 6)
    assert (two.ttft, two.tpot, two.itl) == (2, None, ())
    assert run.metrics == {
        "throughput": 4 / 7,
        "ttft": 2,
        "tpot": 2,
        "itl": 2,
        "itl_p99": 3,
        "steps": 9,
        "queued": 6,
        "computed": 20,
        "reused": 2,
        "peak_pages": 4,
    }
    assert set(run.metrics) == set(METRICS)
    alone = Run((two,), 1, 0, 5, 1).metrics
    assert (alone["tpot"], alone["itl"], alone["itl_p99"]) == (None, None, None)


def test_the_99th_percentile_is_the_time_that_one_gap_in_a_hundred_exceeds() -> None:
    times = tuple(float(sum(range(n + 1))) for n in range(201))  # gaps of 1 to 200
    run = Run((Served(0.0, 1, (0,) * 201, times, 0),), 1, 0, 1, 1)
    assert run.metrics["itl_p99"] == 198


def test_a_request_that_cannot_be_served_whole_is_refused() -> None:
    with engine_of() as engine, pytest.raises(ValueError, match="generates 9; .* holds 400"):
        drive(engine, Workload(items(0, prompt_len=395, output_len=9)))
    with engine_of() as engine, pytest.raises(ValueError, match="2 prompts were given for 1"):
        drive(engine, Workload(items(0)), [[1], [2]])


def test_an_engine_with_other_work_is_not_measured() -> None:
    with engine_of() as engine:
        engine.add([1, 2])
        with pytest.raises(RuntimeError, match="the engine has other requests"):
            drive(engine, Workload(items(0)))
        engine.run()
        assert drive(engine, Workload(items(0, 3, 9), clock="steps")).steps > 0
        # its steps have numbers of their own by now
        assert len(drive(engine, Workload(items(0, 2), clock="steps")).requests) == 2


class Broken:
    """A device that cannot compute."""

    def __init__(self, runner: Any) -> None:
        self._runner = runner

    def launch(self, batch: Any) -> Any:
        raise OSError("the device is on fire")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_run_whose_request_failed_is_no_run() -> None:
    ended = pytest.raises(RuntimeError, match="request 0 ended with 'error': .*on fire")
    with engine_of(runner=Broken) as engine, ended:
        drive(engine, Workload(items(0)))


def test_the_embedded_model_generates_the_same_under_every_arrival() -> None:
    import minisgl

    workload = small("shared_prefix", 6)
    runs: list[Sequence[Any]] = []
    for arriving in (
        workload,
        workload.arriving("closed", concurrency=2),
        workload.arriving("poisson", rate=200.0),
    ):
        with minisgl.load("tiny", threads=1) as engine:
            run = drive(engine, arriving)
        runs.append(run.tokens)
        assert run.seconds > 0 and all(served.ttft > 0 for served in run.requests)
    assert runs[0] == runs[1] == runs[2]
