"""An engine on several processes does what an engine on one does, step by step."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import minisgl
from minisgl import EngineConfig, SamplingParams
from minisgl.core import Batch, Draw, Logprob, Row, StepRecord
from minisgl.engine.engine import Engine
from minisgl.executor import wire
from minisgl.executor.tp_runner import TPRunner
from tests.executor.batches import Sequences
from tests.executor.processes import parent_of
from tests.models.random_checkpoints import KINDS, checkpoint

# checkpoints every eight steps: going back restores snapshots
SIZES: dict[str, Any] = dict(num_pages=40, page_size=4, max_running=4, history=16, check=True)
STORY = list(range(20, 46))


@pytest.fixture(scope="module")
def alone() -> Iterator[Engine]:
    with minisgl.load("tiny", **SIZES) as engine:
        yield engine


@pytest.fixture(scope="module")
def shared() -> Iterator[Engine]:
    """Not stepped itself: each test takes a fork, which costs no process."""
    with minisgl.load("tiny", tp=2, **SIZES) as engine:
        yield engine


def add_some(engine: Engine) -> None:
    """Greedy and sampled requests that share a prefix, with all that may be asked of them."""
    for i, sampling in enumerate(
        [
            SamplingParams(max_tokens=12, ignore_eos=True, logprobs=20, prompt_logprobs=3),
            SamplingParams(max_tokens=12, temperature=0.9, seed=5, logprobs=2, ignore_eos=True),
            SamplingParams(max_tokens=9, temperature=0.7, top_p=0.9, top_k=40, min_p=0.01, seed=6),
            SamplingParams(max_tokens=9, repetition_penalty=1.2, frequency_penalty=0.4),
            SamplingParams(max_tokens=9, temperature=1.0, presence_penalty=0.7, seed=-4),
            SamplingParams(max_tokens=0, prompt_logprobs=1),
            SamplingParams(max_tokens=15, ignore_eos=True),
        ]
    ):
        engine.add(STORY + [50 + i % 3, 60 + i], sampling)


def decided(records: list[StepRecord]) -> list[tuple[Any, ...]]:
    """All of a run but times and the last bits of logprobs."""
    return [(r.plan, r.batch, r.outcome.tokens, r.events, r.gauges) for r in records]


def scores(engine: Engine) -> list[Logprob]:
    requests = engine.requests.values()
    every = [s for r in requests for s in (*(r.logprobs or ()), *(r.prompt_logprobs or ()))]
    return [score for score in every if score is not None]


@pytest.mark.parametrize(
    "toggles",
    [{}, {"overlap": False, "policy": "mixed"}, {"max_step_tokens": 20, "admission": "optimistic"}],
)
def test_plans_tokens_and_logprobs_are_those_of_one_process(
    alone: Engine, shared: Engine, toggles: dict[str, Any]
) -> None:
    with alone.fork(**toggles) as one, shared.fork(**toggles) as two:
        add_some(one)
        add_some(two)
        assert decided(one.run()) == decided(two.run())
        expected, got = scores(one), scores(two)
        assert len(expected) == len(got) > 70
        for a, b in zip(expected, got, strict=True):
            # logits agree within 1e-4; a logprob is one of them less another number of their kind
            assert abs(a.logprob - b.logprob) < 2e-4
            assert [x for _, x in a.top] == pytest.approx([x for _, x in b.top], abs=2e-4)


def test_going_back_computes_the_same_again(shared: Engine) -> None:
    with shared.fork() as engine:
        add_some(engine)
        first = engine.run()
        assert len(first) > 24
        for to in (len(first) - 3, len(first) - 9):
            engine.rewind(to=to)
            assert decided(engine.run()) == decided(first[to:])


def test_a_fork_goes_its_own_way_in_the_same_processes(shared: Engine) -> None:
    with shared.fork() as engine:
        add_some(engine)
        first = engine.run()
        at = len(first) - 6
        twin = engine.fork(at=at)
        assert twin.workers == engine.workers == shared.workers
        other = twin.add(STORY[::-1], SamplingParams(max_tokens=5, ignore_eos=True))
        engine.rewind(to=at)
        again = []
        while record := engine.step():  # in turns
            again.append(record)
            twin.step()
        assert decided(again) == decided(first[at:])
        twin.run()
        for rid, request in engine.requests.items():
            assert request.output == twin.requests[rid].output
        assert len(other.output) == 5
        twin.close()
        assert twin.workers == () and len(engine.workers) == 2


def test_there_is_a_worker_and_a_lane_for_each_rank(shared: Engine) -> None:
    with shared.fork() as engine:
        assert [worker.rank for worker in engine.workers] == [0, 1]
        for worker in engine.workers:
            assert parent_of(worker.pid) == os.getpid()
        add_some(engine)
        records = engine.run()
        account = engine.trace.timeline()
        assert account.clocks_agree
        assert [lane.name for lane in account.lanes] == ["device 0", "device 1"]
        # attention and MLP of six layers, embedding, logits, the sampled ids
        names = {span.name for span in records[-1].spans if span.lane != "host"}
        assert names == {f"step {records[-1].batch.step}, {2 * 6 + 3} collectives"}


def test_each_rank_is_profiled_and_nothing_else_changes(shared: Engine) -> None:
    with shared.fork() as plain, shared.fork() as watched:
        for engine in (plain, watched):
            add_some(engine)
        expected = plain.run()
        profile = watched.profile(steps=4)
        assert decided([*profile.records, *watched.run()]) == decided(expected)
        assert watched.profile(steps=1).spans == ()
    assert profile.steps == range(profile.steps.start, profile.steps.start + 4)
    lanes = {f"device {rank} operators" for rank in (0, 1)}
    assert {(span.lane, span.step) for span in profile.spans} == {
        (lane, step) for lane in lanes for step in profile.steps
    }
    spans = [span for record in profile.records for span in record.spans]
    for kernel in profile.spans:  # all processes of a machine have one clock
        (batch,) = (
            span
            for span in spans
            if span.lane in kernel.lane and span.name.startswith(f"step {kernel.step},")
        )
        assert batch.start - 1e-3 < kernel.start <= kernel.end < batch.end + 1e-3
    names = {span.name for span in profile.spans}
    assert {"c10d::allreduce_", "native::linear", "native::attend"} <= names


def test_an_engine_in_this_process_has_no_workers(alone: Engine) -> None:
    assert alone.workers == ()


# ---- the runner itself, in batches made by hand ------------------------------------------------


@pytest.fixture
def runner(shared: Engine) -> Iterator[TPRunner]:
    assert isinstance(shared._runner, TPRunner)
    twin = shared._runner.fork()
    yield twin
    twin.close()


def test_a_snapshot_is_what_was_there_when_it_was_made(runner: TPRunner) -> None:
    to = Sequences(4, 40)

    def decode(count: int) -> list[Any]:
        asks = SamplingParams(logprobs=5), Draw(0, 0, None, ())  # an order of pages shows in them
        rows = [to.row(0)._replace(sampling=asks[0], draw=asks[1]) for _ in range(count)]
        outcomes = [runner.launch(to.batch(row)).result() for row in rows]
        return [(outcome.tokens, outcome.logprobs) for outcome in outcomes]

    runner.launch(to.batch(to.row(0, STORY)))
    pages = tuple(to.pages[0])
    early = runner.snapshot(pages, pages, None)
    first, known = decode(3), list(to.pages[0])
    late = runner.snapshot(to.pages[0][::-1], to.pages[0][-2:], early)  # in whatever order
    then = decode(6)
    whole = sum(early.parts.values())
    assert whole == runner.snapshot_bytes(len(pages)) + runner._ranks.table_bytes
    for snapshot, computed, again in ((late, 29, then), (early, 26, first), (late, 29, then)):
        runner.restore(snapshot)
        to.computed[0], to.pages[0][:] = computed, known
        assert decode(3) == again[:3]


def test_what_no_snapshot_names_is_forgotten_with_the_next_command(runner: TPRunner) -> None:
    to, ranks = Sequences(4, 40), runner._ranks
    runner.launch(to.batch(to.row(0, STORY)))
    early = runner.snapshot(to.pages[0], to.pages[0], None)
    late = runner.snapshot(to.pages[0], [], early)
    gc.collect()
    ranks.gone.clear()
    assert isinstance(early, tuple)
    tables = early[1].number
    del early
    gc.collect()
    assert list(ranks.gone) == [tables], "the contents are the later snapshot's, too"
    runner.restore(late)
    assert not ranks.gone
    with pytest.raises(RuntimeError, match=f"rank 0: KeyError: {tables}"):
        ranks.send(wire.Restore(runner._number, (), tables)).result()


def test_a_batch_that_no_rank_can_compute_fails_and_later_ones_are_computed(
    runner: TPRunner,
) -> None:
    to = Sequences(4, 40)
    row = Row(0, 0, 0, 164, (7,) * 164, 0, (1,) * 41, True, SamplingParams())
    too_long = runner.launch(Batch(0, (row,)))
    good = runner.launch(to.batch(to.row(1, STORY)))
    for _ in range(2):
        with pytest.raises(ValueError, match="rank 0: slot 0 was given 41 pages; its table has 40"):
            too_long.result()
    assert good.result().tokens[0] is not None
    assert good.result() == good.result()
    assert runner.broken is None


def test_a_closed_runner_refuses_and_its_fork_goes_on(runner: TPRunner) -> None:
    twin = runner.fork()
    to = Sequences(4, 40)
    under_way = runner.launch(to.batch(to.row(0, STORY)))
    runner.close()
    runner.close()
    assert runner.workers == () and len(twin.workers) == 2
    assert under_way.result().tokens == twin.launch(Batch(0, under_way_rows(to))).result().tokens
    with pytest.raises(RuntimeError, match="the runner is closed; load a new engine"):
        runner.launch(Batch(1, ()))
    twin.close()


def under_way_rows(to: Sequences) -> Any:
    pages = tuple(to.pages[0])
    return (to.row(0, STORY, start=0)._replace(first_page=0, new_pages=pages),)


# ---- all architectures -------------------------------------------------------------------------


def told(folder: Path, **toggles: Any) -> tuple[list[Any], list[Logprob]]:
    sampling = SamplingParams(max_tokens=16, ignore_eos=True, logprobs=20, prompt_logprobs=0)
    with minisgl.load(folder, page_size=4, num_pages=64, **toggles) as engine:
        for prompt in ([5, 17, 3, 88, 41, 2, 9], [5, 17, 3, 88, 4], [1]):
            engine.add(prompt, sampling)
        return decided(engine.run()), scores(engine)


@pytest.mark.parametrize(
    "name",
    [
        name if name in ("llama3", "qwen3_sharded") else pytest.param(name, marks=pytest.mark.slow)
        for name in KINDS
    ],
)
@pytest.mark.filterwarnings("ignore:no C")
def test_every_architecture_says_the_same_on_two_processes(name: str) -> None:
    one, two = (told(checkpoint(name).folder, tp=tp) for tp in (1, 2))
    assert one[0] == two[0]
    for a, b in zip(one[1], two[1], strict=True):
        assert abs(a.logprob - b.logprob) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama_biased", "qwen3_sharded"])
def test_four_processes_share_fewer_key_heads(name: str) -> None:
    one, four = (told(checkpoint(name).folder, tp=tp) for tp in (1, 4))
    assert one[0] == four[0]


def test_a_policy_of_ones_own_stays_in_this_process(shared: Engine) -> None:
    from minisgl.scheduler.policy import mixed

    with shared.fork(policy=lambda ledger: mixed(ledger)) as engine:
        add_some(engine)
        assert all(request.finish is None for request in engine.requests.values())
        engine.run()
        assert all(request.finish == "length" for request in engine.requests.values())


def test_the_configuration_that_workers_get_is_the_engines() -> None:
    config = EngineConfig(tp=2, quantization=None, seed=7)
    start = wire.Start(0, 2, "x", vars(config), 1, "y", 1.0)
    arrived = wire.command(wire.pack(start))
    assert isinstance(arrived, wire.Start) and EngineConfig().but(**arrived.config) == config
