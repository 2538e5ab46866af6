"""Ranks that each hold a part compute together what one rank computes alone."""

from __future__ import annotations

import math
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from minisgl.distributed.group import ALONE, Group, share, share_kv_heads
from minisgl.executor.forward import Forward
from minisgl.executor.torch_runner import load_model
from minisgl.models.config import ModelConfig
from minisgl.models.decoder import Decoder
from tests.executor.batches import Sequences, config
from tests.models.random_checkpoints import KINDS, VOCAB, Checkpoint, checkpoint
from tests.models.test_logits import Spy, ids


class Rank:
    """One of several threads that meet at a table."""

    def __init__(self, rank: int, table: list[Tensor | None], barrier: threading.Barrier) -> None:
        self.rank, self.size = rank, len(table)
        self._table, self._barrier = table, barrier

    def _exchange(self, x: Tensor) -> list[Tensor]:
        self._table[self.rank] = x.clone()
        self._barrier.wait(10)
        everyone = [part for part in self._table if part is not None]
        self._barrier.wait(10)
        assert len(everyone) == self.size
        return everyone

    def all_reduce(self, x: Tensor) -> Tensor:
        return torch.stack(self._exchange(x)).sum(0)

    def all_gather(self, x: Tensor) -> Tensor:
        return torch.cat(self._exchange(x), -1)

    def broadcast(self, x: Tensor) -> Tensor:
        return self._exchange(x)[0]


def ranks(size: int) -> list[Rank]:
    table: list[Tensor | None] = [None] * size
    barrier = threading.Barrier(size)
    return [Rank(rank, table, barrier) for rank in range(size)]


def logits(source: Checkpoint, group: Group) -> tuple[Tensor, int]:
    """Logits of a prompt, a chunk and two decodes; and how many numbers this rank's layers hold."""
    torch.set_num_threads(1)
    model_config, final = ModelConfig.read(source.folder), config(4)
    model = load_model(source.folder, model_config, final, group)
    spy = Spy(model)
    forward, to, prompt = Forward(spy, model_config, final, group, 2), Sequences(4, 64), ids(20, 1)
    forward.run(to.batch(to.row(0, prompt[:12], emits=False)))
    forward.run(to.batch(to.row(0, prompt[12:]), to.row(1, [5])))
    for _ in range(2):
        forward.run(to.batch(to.row(0), to.row(1)))
    assert isinstance(model, Decoder)
    attention = model.layers[0].attention
    return torch.cat(spy.logits_of_all), math.prod(attention.qkv.matrix.shape)


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("name", KINDS)
def test_ranks_together_equal_one_alone(name: str, size: int) -> None:
    source = checkpoint(name)
    alone, whole = logits(source, ALONE)
    with ThreadPoolExecutor(size) as pool:
        results = list(pool.map(lambda rank: logits(source, rank), ranks(size)))
    assert alone.shape[1] == VOCAB  # 101: no tp divides it
    for together, part in results:
        torch.testing.assert_close(together, alone, atol=1e-4, rtol=0)
        assert part < whole, "a rank holds its part only"


def test_neighbours_hold_the_same_key_head_where_ranks_outnumber_them() -> None:
    held = [share_kv_heads(2, rank) for rank in ranks(8)]
    assert held == [range(0, 1)] * 4 + [range(1, 2)] * 4
    assert [share_kv_heads(4, rank) for rank in ranks(2)] == [range(0, 2), range(2, 4)]


@pytest.mark.parametrize("heads", [3, 5])
def test_heads_that_cannot_be_shared_are_refused_with_the_numbers(heads: int) -> None:
    rank = ranks(2)[0]
    with pytest.raises(ValueError, match=f"{heads} attention heads .* evenly by tp=2"):
        share(heads, rank, "attention heads")
    with pytest.raises(ValueError, match=f"{heads} key/value heads .* evenly by tp=2"):
        share_kv_heads(heads, rank)
    with pytest.raises(ValueError, match="2 key/value heads cannot be repeated evenly for tp=3"):
        share_kv_heads(2, ranks(3)[0])
