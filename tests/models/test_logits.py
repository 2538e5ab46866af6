"""Every logit equals transformers', however the positions are batched and paged."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from minisgl.core import Batch
from minisgl.distributed.group import ALONE
from minisgl.executor.forward import Forward
from minisgl.executor.torch_runner import load_model
from minisgl.models.config import ModelConfig
from minisgl.models.decoder import BatchMemory, Model
from tests.executor.batches import Sequences, config
from tests.models.random_checkpoints import KINDS, VOCAB, Checkpoint, checkpoint


class Spy:
    """A model that keeps the logits of every token it computes."""

    def __init__(self, model: Model) -> None:
        self._model, self.dtype, self.device = model, model.dtype, model.device
        self.logits_of_all: list[Tensor] = []

    def __call__(self, ids: Tensor, positions: Tensor, memory: BatchMemory) -> Tensor:
        hidden = self._model(ids, positions, memory)
        self.logits_of_all.append(self._model.logits(hidden))
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        return self._model.logits(hidden)


class Run:
    """Batches through one model, checked against transformers at the end."""

    def __init__(self, source: Checkpoint, page_size: int, attention: str) -> None:
        self.source, final = source, config(page_size, attention)
        model_config = ModelConfig.read(source.folder)
        self.spy = Spy(load_model(source.folder, model_config, final))
        self.forward = Forward(self.spy, model_config, final, ALONE, 2)
        self.known: dict[int, list[int]] = {}
        self.seen: list[tuple[int, int, Tensor]] = []  # slot, position, logits

    def step(self, batch: Batch) -> None:
        tokens = self.forward.run(batch).tokens
        logits, first = self.spy.logits_of_all.pop(), 0
        for row, token in zip(batch.rows, tokens, strict=True):
            if row.token_ids is not None:
                self.known.setdefault(row.slot, [])[row.start :] = row.token_ids
            for i in range(row.length):
                self.seen.append((row.slot, row.start + i, logits[first + i]))
            first += row.length
            assert (token is not None) == row.emits
            if token is not None:
                assert token == int(logits[first - 1].argmax())
                self.known[row.slot].append(token)

    def check(self) -> None:
        expected = {slot: self.source.logits(ids) for slot, ids in self.known.items()}
        for slot, position, logits in self.seen:
            difference = (logits - expected[slot][position]).abs().max()
            assert difference < 1e-4, f"slot {slot}, position {position}: off by {difference}"


def ids(count: int, seed: int) -> list[int]:
    return random.Random(seed).choices(range(VOCAB), k=count)


@pytest.mark.parametrize("attention", ["torch", "grouped", "native"])
@pytest.mark.parametrize("page_size", [1, 4, 16, 64])
@pytest.mark.parametrize("name", KINDS)
def test_logits_equal_transformers_in_mixed_batches(
    name: str, page_size: int, attention: str
) -> None:
    torch.set_num_threads(1)
    run = Run(checkpoint(name), page_size, attention)
    to = Sequences(page_size, 512 // page_size)
    long, row, step = ids(81, 1), to.row, lambda *rows: run.step(to.batch(*rows))
    step(row(0, ids(5, 2)), row(1, long[:30], emits=False), row(2, ids(1, 3)))  # three lengths
    step(row(0), row(1, long[30:70], emits=False), row(2))  # a chunk between decodes
    step(row(1, long[70:]), row(2), row(0))
    shared = 64 // page_size
    run.known[3] = long[: shared * page_size]
    step(row(1), to.after_cached(3, 1, shared, ids(9, 4)), row(0), row(4, ids(18, 5)))
    for _ in range(3):
        step(row(3), row(0), row(4), row(1), row(2))
    step(row(5, ids(2, 6)))
    step(row(5, [7]), row(0))  # one position that the host knows
    run.check()
    assert len({tokens[-1] for tokens in run.known.values()}) > 2, "the checkpoint is degenerate"


@pytest.mark.parametrize("attention", ["torch", "grouped", "native"])
@pytest.mark.parametrize("name", KINDS)
def test_64_greedy_tokens_equal_transformers(name: str, attention: str) -> None:
    torch.set_num_threads(1)
    source, final = checkpoint(name), config(4, attention)
    model_config = ModelConfig.read(source.folder)
    forward = Forward(load_model(source.folder, model_config, final), model_config, final, ALONE, 2)
    to, prompts = Sequences(4, 128), [ids(3, 8), ids(26, 9)]
    rows = [to.row(slot, prompt) for slot, prompt in enumerate(prompts)]
    tokens = [list(forward.run(to.batch(*rows)).tokens)]
    for _ in range(63):
        tokens.append(list(forward.run(to.batch(to.row(0), to.row(1))).tokens))
    for slot, prompt in enumerate(prompts):
        assert [step[slot] for step in tokens] == source.greedy(prompt, 64)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_checkpoint_stored_in_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    torch.set_num_threads(1)
    source = Checkpoint(KINDS["qwen3"], dtype)
    source.model.float()
    run = Run(source, 4, "grouped")
    to = Sequences(4, 64)
    run.step(to.batch(to.row(0, ids(20, 1))))
    run.step(to.batch(to.row(0)))
    run.check()


def test_bfloat16_computes_about_the_same() -> None:
    torch.set_num_threads(1)
    source = checkpoint("llama3")
    model_config, final = ModelConfig.read(source.folder), config(4, dtype="bfloat16")
    spy = Spy(load_model(source.folder, model_config, final))
    forward, to = Forward(spy, model_config, final, ALONE, 2), Sequences(4, 64)
    prompt = ids(20, 1)
    forward.run(to.batch(to.row(0, prompt[:12], emits=False)))
    forward.run(to.batch(to.row(0, prompt[12:19])))
    forward.run(to.batch(to.row(0, prompt[19:])))
    got, expected = torch.cat(spy.logits_of_all).float(), source.logits(prompt)
    assert (got - expected).norm() < 0.05 * expected.norm()
