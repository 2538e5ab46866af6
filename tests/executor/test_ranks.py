"""Worker processes end when they should, never when they should not, and say what went wrong."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import minisgl
from minisgl import SamplingParams
from minisgl.core import Batch
from minisgl.engine.engine import Engine
from minisgl.executor import wire
from minisgl.executor.ranks import Ranks
from minisgl.executor.tp_runner import TPRunner, start_ranks
from minisgl.tiny import path as tiny
from tests.executor.batches import Sequences, config
from tests.executor.processes import children_of, parent_of, wait_until_ended
from tests.models.random_checkpoints import checkpoint

LONG = SamplingParams(max_tokens=150, ignore_eos=True)
SIZES: dict[str, Any] = dict(tp=2, num_pages=64, page_size=16)


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """No process, no thread, and no file to meet in."""
    processes, files = children_of(os.getpid()), meetings()
    yield
    wait_until_ended(children_of(os.getpid()) - processes)
    for thread in threading.enumerate():
        if thread.name == "minisgl-ranks":
            thread.join(5)
            assert not thread.is_alive()
    assert meetings() <= files


def meetings() -> set[Path]:
    return set(Path(tempfile.gettempdir()).glob("minisgl-ranks-*"))


def ranks_of(engine: Engine) -> Ranks:
    assert isinstance(engine._runner, TPRunner)
    return engine._runner._ranks


def test_a_killed_worker_ends_its_requests_with_its_name_and_the_engine_says_so() -> None:
    engine = minisgl.load("tiny", **SIZES)
    running = [engine.add([5, 6, 7 + i], LONG) for i in range(2)]
    engine.run(max_steps=3)
    twin, pids = engine.fork(), [worker.pid for worker in engine.workers]
    waiting = engine.add([8, 9], LONG)
    os.kill(pids[1], signal.SIGKILL)
    says = rf"rank 1 \(process {pids[1]}\) was killed by SIGKILL .*load another"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        with pytest.raises(RuntimeError, match=says):
            engine.run()
    for request in (*running, waiting):
        assert request.finish == "error" and f"process {pids[1]}" in str(request.error)
    wait_until_ended(pids, seconds=1)
    assert engine.workers == ()
    engine.check()
    for _ in range(2):
        with pytest.raises(RuntimeError, match=says):
            engine.step()
    with pytest.raises(RuntimeError, match=says):
        twin.fork()
    with pytest.raises(RuntimeError, match=says):
        engine.rewind(to=2)
    assert engine.closed
    twin.close()
    twin.close()


def test_a_rank_that_alone_fails_is_named_and_the_others_do_not_wait_for_ever() -> None:
    engine = minisgl.load("tiny", **SIZES)
    ranks, pids = ranks_of(engine), [worker.pid for worker in engine.workers]
    to = Sequences(16, 64)
    launch = wire.Launch(0, wire.pack_batch(to.batch(to.row(0, [5, 6, 7]))))
    nothing_there = wire.Launch(99, wire.pack_batch(Batch(0, ())))
    began = time.monotonic()
    failing, after = ranks._send([launch, nothing_there]), ranks.send(launch)
    with pytest.raises(RuntimeError, match="rank 1: KeyError: 99"):
        failing.result()
    assert time.monotonic() - began < 20
    says = r"rank 1: KeyError: 99 .* no longer keep step; .* load another"
    with pytest.raises(RuntimeError, match=says):
        after.result()
    wait_until_ended(pids, seconds=1)
    with pytest.raises(RuntimeError, match=says):
        engine.step()
    engine.close()


def test_what_fails_in_a_worker_while_loading_comes_back_naming_the_rank(tmp_path: Path) -> None:
    for file in checkpoint("qwen3").folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(ValueError, match="rank [01]: .* is not a whole safetensors file") as caught:
        minisgl.load(tmp_path, tp=2)
    assert "in _start" in str(caught.value.__cause__), "the worker's own traceback"


SCRIPT = """
import gc, os, sys, threading, time
import minisgl
from minisgl import SamplingParams

LONG = SamplingParams(max_tokens=150, ignore_eos=True)

def say(*words):
    print(*words, flush=True)

engine = minisgl.load("tiny", tp=2, num_pages=64)
"""

INTERRUPTED = SCRIPT + """
other = minisgl.load("tiny", tp=2, num_pages=64)
pids = [worker.pid for worker in (*engine.workers, *other.workers)]
assert len(set(pids)) == 4
one, two = engine.add([5, 6, 7], LONG), other.add([5, 6, 7], LONG)
engine.step()
if os.fork() == 0:
    sys.exit()  # a forked process that ends takes no worker with it
os.wait()
say("ready")
came = 0
while not two.finish:
    try:
        while not two.finish:
            engine.step()
            other.step()
    except KeyboardInterrupt:
        came += 1
        say("interrupted")
engine.run()
assert one.output == two.output and len(one.output) == 150, (one, two)
assert [worker.pid for worker in (*engine.workers, *other.workers)] == pids
engine.check()
say("came", came, one.output[-9:])
dropped = [worker.pid for worker in other.workers]
del other, two
gc.collect()
for pid in dropped:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        continue
    raise AssertionError(f"worker {pid} of a dropped engine lives")
engine.add([1, 2], LONG)
engine.step()
say("left", *(worker.pid for worker in engine.workers))
"""


def test_interrupts_lose_nothing_and_who_drops_an_engine_leaves_no_process() -> None:
    with script(INTERRUPTED) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "ready\n"
        for _ in range(4):  # as Jupyter does: the workers get it, too
            time.sleep(0.05)
            os.killpg(running.pid, signal.SIGINT)
            assert running.stdout.readline() == "interrupted\n"
        last = running.stdout.readlines()
        assert running.wait(30) == 0
    with minisgl.load("tiny", num_pages=64) as engine:
        alone = engine.add([5, 6, 7], LONG)
        engine.run()
    assert last[0] == f"came 4 {alone.output[-9:]}\n"
    left = [int(pid) for pid in last[1].removeprefix("left").split()]
    assert len(left) == 2
    wait_until_ended(left, seconds=1)


def script(text: str) -> subprocess.Popen[str]:
    """A process group of its own that runs this."""
    return subprocess.Popen(
        [sys.executable, "-c", text], stdout=subprocess.PIPE, text=True, start_new_session=True
    )


ORPHANED = SCRIPT + """
child = os.fork()  # holds the workers' pipes open
if child == 0:
    time.sleep(60)
    os._exit(0)
engine.add([5, 6, 7], LONG)
say(child, *(worker.pid for worker in engine.workers))
engine.run()
while True:
    engine.add([5, 6, 7], LONG)
    engine.run()
"""


def test_workers_end_with_an_engine_that_was_killed_though_a_forked_process_holds_their_pipes() -> (
    None
):
    with script(ORPHANED) as running:
        assert running.stdout is not None
        child, *workers = map(int, running.stdout.readline().split())
        time.sleep(0.1)
        assert all(parent_of(pid) == running.pid for pid in workers)
        running.kill()
        wait_until_ended(workers, seconds=10)
        os.kill(child, signal.SIGKILL)


@pytest.mark.slow
def test_workers_end_at_once_with_an_engine_that_was_killed() -> None:
    text = SCRIPT + "say(*(worker.pid for worker in engine.workers)); time.sleep(60)"
    with script(text) as running:
        assert running.stdout is not None
        workers = [int(pid) for pid in running.stdout.readline().split()]
        running.kill()
        wait_until_ended(workers, seconds=0.9)  # before they look who their parent is


@pytest.mark.slow
def test_a_worker_that_stands_still_is_not_waited_for_for_ever() -> None:
    runner, to = start_ranks(tiny(), config(16, tp=2), 2, patience=2), Sequences(16, 32)
    try:
        os.kill(runner.workers[0].pid, signal.SIGSTOP)
        launch = runner.launch(to.batch(to.row(0, [5, 6, 7])))
        with pytest.raises(RuntimeError, match="rank 1: Lost: a collective failed: .*"):
            launch.result()
        assert "no longer keep step" in str(runner.broken)
    finally:
        runner.close()


@pytest.mark.slow
def test_an_interrupt_while_loading_leaves_no_process() -> None:
    text = "import minisgl\nprint('begins', flush=True)\nminisgl.load('tiny', tp=2)"
    for seconds in (2.5, 4, 5.5):
        with script(text) as running:
            time.sleep(seconds)
            workers = children_of(running.pid)
            os.killpg(running.pid, signal.SIGINT)
            wait_until_ended(workers | {running.pid})


@pytest.mark.slow
def test_what_a_worker_warns_of_while_loading_is_said_here_and_once(tmp_path: Path) -> None:
    for file in checkpoint("qwen3").folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    save_file({**tensors, "spare": torch.zeros(1)}, tmp_path / "model.safetensors")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        minisgl.load(tmp_path, tp=2, num_pages=64).close()
    assert [str(one.message) for one in said if "does not use 1 of" in str(one.message)] == [
        f"{tmp_path}: the model does not use 1 of its {len(tensors) + 1} weights: spare"
    ]


def test_a_worker_that_cannot_begin_says_why_and_is_named(tmp_path: Path) -> None:
    path = list(sys.path)
    (tmp_path / "torch.py").write_text("raise SystemExit(3)")
    sys.path.insert(0, str(tmp_path))  # found by workers alone: this process has its torch
    try:
        with pytest.raises(RuntimeError, match="rank [01] .* exit code 3 before it had loaded"):
            minisgl.load("tiny", **SIZES)
    finally:
        sys.path[:] = path
