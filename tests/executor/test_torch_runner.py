"""The runner computes in launch order on its own thread, and ends cleanly however it is left."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from minisgl.config import EngineConfig
from minisgl.core import Batch, Row, SamplingParams
from minisgl.distributed.group import ALONE
from minisgl.executor.forward import Forward
from minisgl.executor.tables import Staging
from minisgl.executor.torch_runner import TorchRunner, load_model, load_runner
from minisgl.models.config import ModelConfig
from minisgl.models.decoder import BatchMemory, Model
from tests.executor.batches import Sequences, config
from tests.models.random_checkpoints import checkpoint

PROMPT = [5, 17, 3, 88, 41, 2, 9]


def runner(depth: int = 2, **changes: Any) -> TorchRunner:
    folder = checkpoint("qwen3").folder
    return load_runner(folder, ModelConfig.read(folder), config(4, **changes), depth)


class Slow:
    """A model that waits for leave before each batch, fails where told to, and says its threads."""

    def __init__(self, model: Model) -> None:
        self._model, self.dtype, self.device = model, model.dtype, model.device
        self.leave = threading.Semaphore(0)
        self.fails = 0
        self.threads: list[tuple[str, int]] = []

    def __call__(self, ids: Tensor, positions: Tensor, memory: BatchMemory) -> Tensor:
        self.leave.acquire(timeout=10)
        self.threads.append((threading.current_thread().name, torch.get_num_threads()))
        if self.fails:
            self.fails -= 1
            raise MemoryError("planted")
        return self._model(ids, positions, memory)

    def logits(self, hidden: Tensor) -> Tensor:
        return self._model.logits(hidden)


def slow_runner(threads: int = 1, final: EngineConfig | None = None) -> tuple[TorchRunner, Slow]:
    folder, final = checkpoint("qwen3").folder, final or config(4)
    model_config = ModelConfig.read(folder)
    model = Slow(load_model(folder, model_config, final))
    return TorchRunner(Forward(model, model_config, final, ALONE, 2), threads), model


def test_launch_returns_before_the_batch_is_computed_and_tokens_stay_on_the_device() -> None:
    device, model = slow_runner()
    to = Sequences(4, 64)
    launches = [device.launch(to.batch(to.row(0, PROMPT)))]
    launches += [device.launch(to.batch(to.row(0))) for _ in range(5)]
    assert model.threads == []
    model.leave.release(6)
    outcomes = [launch.result() for launch in launches]
    assert [outcome.tokens[0] for outcome in outcomes] == checkpoint("qwen3").greedy(PROMPT, 6)
    assert [outcome.step for outcome in outcomes] == list(range(6))
    spans = [outcome.spans[0] for outcome in outcomes]
    assert all(a.end <= b.start for a, b in zip(spans, spans[1:], strict=False))
    assert {(span.lane, span.start < span.end) for span in spans} == {("device", True)}
    assert launches[0].result() is outcomes[0]
    device.close()


def test_a_batch_that_fails_raises_each_time_and_later_ones_are_computed() -> None:
    device, model = slow_runner()
    to = Sequences(4, 64)
    model.leave.release(9)
    model.fails = 1
    failing = device.launch(to.batch(to.row(0, PROMPT)))
    for _ in range(2):
        with pytest.raises(MemoryError, match="planted"):
            failing.result()
    # its pages were announced by the batch that failed, and are used again
    again = device.launch(to.batch(to.row(0, PROMPT, start=0), to.row(1, [1, 2])))
    assert again.result().tokens[0] == checkpoint("qwen3").greedy(PROMPT, 1)[0]
    device.close()


def test_rows_that_emit_nothing_have_no_token() -> None:
    device, to = runner(), Sequences(4, 64)
    assert device.launch(to.batch(to.row(0, PROMPT, emits=False))).result().tokens == (None,)
    rows = (to.row(0, [1], emits=False), to.row(1, PROMPT))
    tokens = device.launch(to.batch(*rows)).result().tokens
    assert tokens == (None, checkpoint("qwen3").greedy(PROMPT, 1)[0])
    device.close()


def test_a_slot_is_given_to_another_sequence() -> None:
    device, to = runner(), Sequences(4, 64)
    device.launch(to.batch(to.row(0, [1] * 30)))
    del to.pages[0], to.computed[0]
    first = device.launch(to.batch(to.row(0, PROMPT)))
    second = device.launch(to.batch(to.row(0)))
    got = [first.result().tokens[0], second.result().tokens[0]]
    assert got == checkpoint("qwen3").greedy(PROMPT, 2)
    device.close()


def test_more_pages_than_a_slot_has_are_refused_before_anything_is_written() -> None:
    device = runner(max_seq_len=8)
    row = Row(0, 0, 0, 12, (1,) * 12, 0, (1, 2, 3), True, SamplingParams())
    with pytest.raises(ValueError, match="slot 0 was given 3 pages; its table has 2"):
        device.launch(Batch(0, (row,))).result()
    device.close()


def test_close_finishes_what_was_launched_and_may_be_called_again() -> None:
    before = threading.active_count()
    device, to = runner(), Sequences(4, 64)
    forward = weakref.ref(device._forward)
    launches = [device.launch(to.batch(to.row(0, PROMPT))), device.launch(to.batch(to.row(0)))]
    device.close()
    device.close()
    assert [launch.result().tokens[0] for launch in launches] == checkpoint("qwen3").greedy(
        PROMPT, 2
    )
    assert threading.active_count() == before
    gc.collect()
    assert forward() is None, "weights and pages are still held"
    with pytest.raises(RuntimeError, match="the runner is closed"):
        device.launch(Batch(7, ()))


def test_a_runner_that_is_dropped_ends_its_thread() -> None:
    before = threading.active_count()
    device, to = runner(), Sequences(4, 64)
    device.launch(to.batch(to.row(0, PROMPT))).result()
    assert threading.active_count() == before + 1
    del device
    gc.collect()
    for _ in range(100):
        if threading.active_count() == before:
            return
        time.sleep(0.02)
    raise AssertionError("the thread of a dropped runner still runs")


def test_two_runners_keep_their_own_number_of_threads() -> None:
    before = torch.get_num_threads()
    (one, a), (two, b) = slow_runner(1), slow_runner(2)
    pairs = [(one, Sequences(4, 64)), (two, Sequences(4, 64))]
    # both threads have set their number before either computes
    launches = [device.launch(to.batch(to.row(0, PROMPT))) for device, to in pairs]
    launches += [device.launch(to.batch(to.row(0))) for device, to in pairs]
    time.sleep(0.1)
    for model in (a, b):
        model.leave.release(2)
    for launch in launches:
        launch.result()
    assert [count for _, count in a.threads] == [1, 1]
    assert [count for _, count in b.threads] == [2, 2]
    assert torch.get_num_threads() == before
    one.close()
    two.close()


EXIT = """
import sys
from pathlib import Path
from minisgl.executor.tables import Staging
from minisgl.executor.torch_runner import load_runner
from minisgl.models.config import ModelConfig
from tests.executor.batches import Sequences, config

folder = Path(sys.argv[1])
device, to = load_runner(folder, ModelConfig.read(folder), config(4), 2), Sequences(4, 64)
device.launch(to.batch(to.row(0, [1, 2, 3])))
device.launch(to.batch(to.row(0)))
print("left")
"""


def test_python_exits_though_a_runner_was_never_closed() -> None:
    done = subprocess.run(
        [sys.executable, "-c", EXIT, str(checkpoint("qwen3").folder)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.stdout, done.returncode) == ("left\n", 0), done.stderr


def test_staging_keeps_the_buffers_in_flight_apart() -> None:
    staging = Staging(2, torch.device("cpu"))
    big = np.arange(9000)  # more than a buffer starts with
    first = staging.send(big, np.array([7]))
    second = staging.send(np.array([1, 2]), np.array([], dtype=np.int64))
    assert torch.equal(first[0], torch.arange(9000)) and first[1].tolist() == [7]
    assert [part.tolist() for part in second] == [[1, 2], []]
