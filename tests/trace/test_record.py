"""A recording is the run: each of its files loads by itself and has the same plans and tokens."""

from __future__ import annotations

import warnings
from pathlib import Path
from random import Random
from typing import Any

import pytest

from minisgl.core import Add, Added, Preempted, SamplingParams, StepRecord
from minisgl.engine.engine import Engine
from minisgl.trace import Trace
from minisgl.trace.record import Limits, Recorder
from minisgl.trace.redact import Redaction
from tests.engine.test_stops import Bytes
from tests.hash_engine import VOCAB, hash_engine

SMALL: dict[str, Any] = {
    "num_pages": 16,
    "page_size": 2,
    "admission": "optimistic",
    "expected_output": 1,  # so that requests are preempted
    "record": False,
    "codec": Bytes(),
}


class Recorded:
    """An engine, its recorder, and the records as they were made."""

    def __init__(self, engine: Engine, recorder: Recorder) -> None:
        self.engine, self.recorder = engine, recorder
        self.records: list[StepRecord] = []
        engine.listeners.append(recorder.listen)
        engine.observers += [recorder.record, self.records.append]

    def step(self) -> StepRecord | None:
        """A step, and a new file before it where one is due."""
        if self.recorder.wants_state:
            self.begin_anew()
        return self.engine.step()

    def begin_anew(self) -> None:
        """Collect what is in flight, then begin a file."""
        while self.engine.in_flight:
            self.engine.collect()
        self.recorder.begin(self.engine.state())


def drive(run: Recorded, seed: int, steps: int = 60) -> None:
    """Requests that share prefixes, stop, are aborted and preempted; files as they fill up."""
    random = Random(seed)
    heads = [[random.randrange(1, 4) for _ in range(8)] for _ in range(3)]
    alive: list[int] = []
    for _ in range(steps):
        for _ in range(random.choice((0, 0, 1, 3))):
            sampling = SamplingParams(
                max_tokens=random.randrange(0, 12),
                temperature=random.choice((0.0, 1.0)),
                ignore_eos=random.random() < 0.5,
                stop_token_ids=random.choice(((), (5,), (3, 7))),
                logprobs=random.choice((None, 1)),
                prompt_logprobs=random.choice((None, None, 1)),
                repetition_penalty=random.choice((1.0, 2.0)),
                logit_bias=random.choice(((), ((2, 1.5),))),
                stop=random.choice(((), ("ab", "b b"))),
            )
            tail = [random.randrange(1, VOCAB) for _ in range(random.randrange(1, 5))]
            alive.append(run.engine.add(random.choice(heads) + tail, sampling).rid)
        if alive and random.random() < 0.2:
            run.engine.abort(alive.pop(random.randrange(len(alive))))
        run.step()
    while run.step():
        pass
    run.recorder.end()


def plain(record: StepRecord) -> Any:
    """What two runs must have in common; arrivals before a file's beginning are not in it."""
    events = [event for event in record.events if not isinstance(event, Added)]
    outcome = record.outcome._replace(spans=())
    return record.plan, record.batch, outcome, events, record.gauges, record.spans


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("seed", range(4))
def test_a_recording_loads_as_the_run_that_it_is_of(seed: int, depth: int, tmp_path: Path) -> None:
    engine = hash_engine(depth=depth, **SMALL)
    run = Recorded(engine, Recorder(tmp_path / "run.jsonl", engine.header))
    run.recorder.begin(None)
    drive(run, seed)
    read = Trace.load(tmp_path / "run.jsonl")
    assert [(plain(r), r.events) for r in read] == [(plain(r), r.events) for r in run.records]
    assert len(read) > 60 and read.config == engine.config
    preempted = [e for record in read for e in record.events if isinstance(e, Preempted)]
    assert preempted


@pytest.mark.parametrize("redact", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_each_file_of_a_recording_loads_by_itself(seed: int, redact: bool, tmp_path: Path) -> None:
    engine = hash_engine(depth=2, **SMALL)
    limits = Limits(num_bytes=20_000, num_files=3)
    run = Recorded(engine, Recorder(tmp_path / "run.jsonl", engine.header, limits, redact))
    run.recorder.begin(None)
    drive(run, seed, steps=200)
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == ["run.1.jsonl", "run.2.jsonl", "run.jsonl"]
    assert all(file.stat().st_size < 40_000 for file in files)
    traces = [Trace.load(tmp_path / name) for name in ("run.2.jsonl", "run.1.jsonl", "run.jsonl")]
    first, last = traces[0].history.first, len(traces[-1]) - 1
    assert first > 0 and last == run.records[-1].batch.step
    steps = [record for trace in traces for record in trace]
    assert [record.batch.step for record in steps] == list(range(first, last + 1))
    for read, made in zip(steps, run.records[first:], strict=True):
        assert read.plan == made.plan and read.gauges == made.gauges
        assert [row.new_pages for row in read.batch.rows] == [r.new_pages for r in made.batch.rows]
        if not redact:
            assert plain(read) == plain(made)


def test_a_redacted_recording_tells_no_token(tmp_path: Path) -> None:
    engine = hash_engine(depth=2, **SMALL)
    path = tmp_path / "run.jsonl"
    run = Recorded(engine, Recorder(path, engine.header, redact=True))
    run.recorder.begin(None)
    drive(run, 5)
    run.begin_anew()  # with the host's state, which holds every prompt and the tree
    engine.add([4] * 9, SamplingParams(max_tokens=2, stop_token_ids=[1]))
    engine.run()
    run.recorder.end()
    for file in (path, tmp_path / "run.1.jsonl"):
        trace = Trace.load(file)
        said = [token for record in trace for token in record.outcome.tokens if token]
        state = trace.scheduler()
        said += [token for node in state.pool.nodes() for token in node.tokens]
        assert said and min(said) > 1000, "small numbers would be the model's ids"
        assert sum(said.count(token) for token in set(said)) / len(set(said)) < 20
        for line in file.read_text().splitlines():
            assert '"stop_token_ids":[]' in line or '"sampling"' not in line


def test_equal_beginnings_stay_equal_and_equal_tokens_do_not() -> None:
    redaction = Redaction(frozenset())
    prompts = ([7, 7, 7, 8], [7, 7, 7, 9, 8], [9, 7, 7, 8])
    told = []
    for rid, prompt in enumerate(prompts):
        item = redaction.input(Add(rid, tuple(prompt), SamplingParams()))
        assert isinstance(item, Add) and len(item.prompt) == len(prompt)
        told.append(item.prompt)
    assert told[0][:3] == told[1][:3]
    assert len({*told[0], *told[1], *told[2]}) == 3 + 1 + 2 + 4


def test_a_disk_that_is_full_ends_the_recording_and_nothing_else(tmp_path: Path) -> None:
    engine = hash_engine(depth=2, **SMALL)
    run = Recorded(engine, Recorder(tmp_path / "run.jsonl", engine.header))
    run.recorder.begin(None)
    engine.add([1, 2, 3], SamplingParams(max_tokens=8, ignore_eos=True))
    engine.run(max_steps=3)
    out: Any = run.recorder._out
    full: Any = Full(out)
    run.recorder._out = full
    with pytest.warns(RuntimeWarning, match="ended: No space left on device; the engine goes on"):
        engine.run(max_steps=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # one warning, and no observer was removed
        engine.run()
    assert not run.recorder.is_on and "No space left" in (run.recorder.failed or "")
    assert len(run.records) == 8 and len(Trace.load(tmp_path / "run.jsonl")) == 3


class Full:
    """A file on a disk that is full."""

    def __init__(self, out: Any) -> None:
        self._out = out

    def write(self, text: str) -> int:
        raise OSError(28, "No space left on device")

    def close(self) -> None:
        self._out.close()


def test_a_recording_that_cannot_begin_says_why_once(tmp_path: Path) -> None:
    engine = hash_engine()
    recorder = Recorder(tmp_path / "no" / "such" / "folder.jsonl", engine.header)
    with pytest.warns(RuntimeWarning, match="No such file or directory; the engine goes on"):
        recorder.begin(None)
    assert not recorder.is_on and not recorder.wants_state
    recorder.listen(engine.plan())
    recorder.end()


def test_a_recording_is_nobody_elses_and_spares_earlier_ones(tmp_path: Path) -> None:
    engine = hash_engine()
    path = tmp_path / "run.jsonl"
    path.write_text("an earlier one")
    recorder = Recorder(path, engine.header, Limits(num_files=2))
    recorder.begin(None)
    recorder.begin(engine.state())
    recorder.end()
    assert path.stat().st_mode & 0o777 == 0o600
    assert sorted(file.name for file in tmp_path.iterdir()) == ["run.1.jsonl", "run.jsonl"]
    assert len(Trace.load(path)) == len(Trace.load(tmp_path / "run.1.jsonl")) == 0
