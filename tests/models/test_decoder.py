"""A decoder gives a single token to a kernel for all layers, where there is one that computes the
same; everything else goes layer after layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from minisgl.attention.base import DeviceMeta, Meta, Paged
from minisgl.attention.torch import TorchAttention
from minisgl.distributed.group import ALONE, Group
from minisgl.executor.kv_pool import KVPool
from minisgl.kernel.base import AllLayers, LayerWeights, Shape, TokenMemory
from minisgl.kernel.plain import PlainKernels
from minisgl.models.config import ModelConfig
from minisgl.models.decoder import Decoder
from minisgl.models.weights import Weights
from minisgl.registry import find
from tests.models.random_checkpoints import Checkpoint, Kind, checkpoint
from tests.models.test_tensor_parallel import ranks

PAGE, CPU = 4, torch.device("cpu")


class Fake(PlainKernels):
    """Kernels of which one claims to compute all layers: it doubles the token."""

    def __init__(self, has: bool = True) -> None:
        super().__init__()
        self._has = has
        self.made = list[tuple[Sequence[LayerWeights], Shape]]()
        self.calls = list[tuple[Tensor, Tensor, Tensor, TokenMemory]]()

    def megakernel(self, layers: Sequence[LayerWeights], shape: Shape) -> AllLayers | None:
        self.made.append((layers, shape))
        return self._double if self._has else None

    def _double(self, x: Tensor, cos: Tensor, sin: Tensor, memory: TokenMemory) -> Tensor:
        self.calls.append((x, cos, sin, memory))
        return 2 * x


def loaded(source: Checkpoint, kernels: PlainKernels, group: Group = ALONE) -> Decoder:
    config = ModelConfig.read(source.folder)
    with Weights(source.folder, torch.float32, CPU, kernels) as weights:
        if config.tied:
            weights.ignore("lm_head.weight")
        model: Decoder = find("model", config.architecture)(weights, config, group)
    return model


def batch(
    source: Checkpoint, rows: list[tuple[int, int]], wanted: bool = True, on_device: bool = True
) -> tuple[Tensor, Tensor, Paged]:
    """Ids, positions and memory of rows with so many positions before, and so many new ones."""
    config = ModelConfig.read(source.folder)
    starts, lengths = (np.array(column, np.int64) for column in zip(*rows, strict=True))
    tables = torch.arange(8 * len(rows), dtype=torch.int32).view(len(rows), 8)
    positions = torch.cat([torch.arange(start, start + new) for start, new in rows])
    row = torch.arange(len(rows)).repeat_interleave(torch.from_numpy(lengths))
    at = tables[row, positions // PAGE].long() * PAGE + positions % PAGE
    ends = torch.from_numpy(starts + lengths).int()
    first = torch.tensor([0, *lengths.cumsum()], dtype=torch.int32)
    meta = Meta(starts, lengths, tables, at, DeviceMeta(ends, first) if on_device else None)
    heads, dim = config.num_kv_heads, config.head_dim
    pool = KVPool(config.num_layers, 8 * len(rows), PAGE, heads, dim, torch.float32, CPU)
    attention = TorchAttention(pool, config.traits.windows)
    attention.prepare(meta)
    addresses = pool.addresses() if wanted else None
    memory = Paged(pool, attention, meta.locations, meta.token(addresses, PAGE))
    return torch.arange(len(positions)) + 5, positions, memory


@pytest.mark.parametrize("name", ["qwen3", "qwen2_window", "mistral"])
def test_a_single_token_goes_through_the_kernel_for_all_layers(name: str) -> None:
    source, kernels = checkpoint(name), Fake()
    model = loaded(source, kernels)
    ids, positions, memory = batch(source, [(9, 1)])
    with torch.inference_mode():
        hidden = model(ids, positions, memory)
        x = model.embedding.embed(ids)
        assert torch.equal(hidden, model.norm(2 * x, None))
        model(ids, positions, memory)
    assert len(kernels.made) == 1, "it is made once"
    assert len(kernels.calls) == 2
    got, cos, sin, token = kernels.calls[0]
    assert torch.equal(got, x) and token is memory.token
    rotation = model.rotary.at(positions, model.dtype)
    assert all(torch.equal(a, b) for a, b in zip((cos, sin), rotation, strict=True))


@pytest.mark.parametrize("name", ["qwen3", "qwen2", "qwen2_window", "mistral_window"])
def test_the_kernel_is_told_what_each_layer_multiplies_with(name: str) -> None:
    source, kernels = checkpoint(name), Fake()
    model, config = loaded(source, kernels), ModelConfig.read(source.folder)
    model(*batch(source, [(0, 1)]))
    ((weights, shape),) = kernels.made
    heads, kv_heads, dim = config.num_heads, config.num_kv_heads, config.head_dim
    assert shape[:5] == (config.hidden_size, config.intermediate_size, heads, kv_heads, dim)
    assert shape.eps == shape.head_eps == config.norm_eps
    windows = config.traits.windows or (None,) * config.num_layers
    assert [layer.window for layer in weights] == list(windows)
    for index, layer in enumerate(weights):
        assert layer.qkv.shape == ((heads + 2 * kv_heads) * dim, config.hidden_size)
        assert layer.o.shape == (config.hidden_size, heads * dim)
        assert layer.gate_up.shape == (2 * config.intermediate_size, config.hidden_size)
        assert layer.down.shape == (config.hidden_size, config.intermediate_size)
        stored: Any = source.model.model.layers[index]
        assert torch.equal(layer.attention_norm, stored.input_layernorm.weight)
        assert torch.equal(layer.mlp_norm, stored.post_attention_layernorm.weight)
        assert (layer.head_norm is not None) == config.traits.head_norm


@pytest.mark.parametrize("rows", [[(9, 2)], [(0, 7)], [(9, 1), (3, 1)], [(0, 1), (0, 3)]], ids=str)
def test_other_batches_go_layer_after_layer(rows: list[tuple[int, int]]) -> None:
    source, kernels = checkpoint("qwen3"), Fake()
    work = batch(source, rows)
    assert work[2].token is None
    hidden = loaded(source, kernels)(*work)
    assert not kernels.calls
    assert torch.equal(hidden, loaded(source, PlainKernels())(*work))


@pytest.mark.parametrize("changes", [{"wanted": False}, {"on_device": False}], ids=str)
def test_a_token_goes_layer_after_layer_where_no_such_kernel_is_wanted(
    changes: dict[str, bool],
) -> None:
    source, kernels = checkpoint("qwen3"), Fake()
    work = batch(source, [(9, 1)], **changes)
    assert work[2].token is None
    loaded(source, kernels)(*work)
    assert not kernels.calls and not kernels.made


def test_a_token_goes_layer_after_layer_where_no_kernel_is_for_its_sizes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    source, kernels = checkpoint("qwen3"), Fake(has=False)
    model, work = loaded(source, kernels), batch(source, [(9, 1)])
    with caplog.at_level("INFO", "minisgl"):
        assert torch.equal(model(*work), loaded(source, Fake(has=False))(*work))
        caplog.clear()
        model(*work)
    assert len(kernels.made) == 1 and not caplog.records, "nobody asks or says it twice"


def test_who_wants_a_kernel_for_all_layers_is_told_where_there_is_none(
    caplog: pytest.LogCaptureFixture,
) -> None:
    source = checkpoint("qwen3")
    with caplog.at_level("INFO", "minisgl"):
        loaded(source, Fake(has=False))(*batch(source, [(9, 1)]))
    (record,) = caplog.records
    assert "no megakernel" in record.message and "layer after layer" in record.message


@pytest.mark.parametrize("bias", ["attention_bias", "mlp_bias"])
def test_biases_that_the_kernel_does_not_add_keep_it_away(bias: str) -> None:
    source, kernels = Checkpoint(Kind("Llama", {bias: True})), Fake()
    work = batch(source, [(9, 1)])
    assert work[2].token is not None
    hidden = loaded(source, kernels)(*work)
    assert not kernels.made
    assert torch.equal(hidden, loaded(source, PlainKernels())(*work))


def test_a_rank_of_several_computes_layer_after_layer() -> None:
    source, kernels = checkpoint("qwen3"), Fake()
    model = loaded(source, kernels, ranks(2)[0])
    assert model._at_once is None and not kernels.made


def test_the_memory_of_a_token_names_its_pages_and_its_end() -> None:
    _, _, memory = batch(checkpoint("qwen3"), [(9, 1)])
    token = memory.token
    assert token is not None
    assert token.pages.shape == (1, 8) and token.end.tolist() == [10] and token.page_size == PAGE
    pool = memory.pool
    assert token.pools.dtype == torch.int64
    assert token.pools.tolist() == [
        [keys.data_ptr(), values.data_ptr()]
        for keys, values in zip(pool.keys, pool.values, strict=True)
    ]
