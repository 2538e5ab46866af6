"""A layer on the bench computes what transformers computes, with its factors in it too."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor

from minisgl.kernel.int4 import Int4, dequantise
from minisgl.models.config import ModelConfig
from minisgl.models.weights import Weights
from minisgl.quantize.layer import LayerBench, LayerResult, divide
from tests.models.random_checkpoints import KINDS, VOCAB, Checkpoint

SIZES: dict[str, Any] = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=2)
NAMES = ("llama2", "llama_biased", "qwen3", "qwen2_window", "mistral_window")
NORMS = ("input_layernorm", "post_attention_layernorm")


@functools.cache
def made(name: str) -> Checkpoint:
    return fresh(name)


def fresh(name: str) -> Checkpoint:
    heads: dict[str, Any] = {"head_dim": 16} if "head_dim" in KINDS[name].changes else {}
    return Checkpoint(KINDS[name], **SIZES, **heads)


def ids() -> Tensor:
    return torch.randint(VOCAB, (5, 24), generator=torch.Generator().manual_seed(3))


def opened(source: Checkpoint) -> Weights:
    return Weights(source.folder, torch.float32, torch.device("cpu"))


@pytest.mark.parametrize("name", NAMES)
def test_layers_one_after_the_other_compute_what_transformers_does(name: str) -> None:
    source = made(name)
    with torch.inference_mode():
        expected = source.model.model(ids(), output_hidden_states=True).hidden_states
    hidden = expected[0].clone()
    config = ModelConfig.read(source.folder)
    LayerBench(opened(source), config, 0, hidden.numel()).run(hidden)
    torch.testing.assert_close(hidden, expected[1], atol=1e-4, rtol=0)


def quantised(name: str, group: int) -> tuple[LayerResult, float]:
    """A layer's result, and how far transformers with it is off, relative to what a layer adds."""
    source = made(name)
    config, state = ModelConfig.read(source.folder), source.model.state_dict()
    hidden = state["model.embed_tokens.weight"][ids()]
    bench = LayerBench(opened(source), config, 0, ids().numel())
    bench.run(hidden.clone())
    result = bench.quantise(group)
    written = {name: x.float() for name, x in result.tensors.items() if x.is_floating_point()}
    for matrix in (error.name for error in result.errors):
        codes, zeros, scales = (
            result.tensors[f"{matrix}.{part}"] for part in ("qweight", "qzeros", "scales")
        )
        written[f"{matrix}.weight"] = dequantise(Int4(codes, zeros, scales, torch.float32))
        del written[f"{matrix}.scales"]
    twin = fresh(name)
    twin.model.load_state_dict(state | written)
    with torch.inference_mode():
        before, after = (
            model(ids(), output_hidden_states=True).hidden_states[1]
            for model in (source.model.model, twin.model.model)
        )
    return result, float((after - before).norm() / (before - hidden).norm())


@pytest.mark.parametrize("name", NAMES)
def test_a_layer_in_four_bits_computes_nearly_the_same(name: str) -> None:
    result, lost = quantised(name, 32)
    matrices = [error.name.removeprefix("model.layers.0.") for error in result.errors]
    assert matrices == [
        *(f"self_attn.{part}_proj" for part in "qkvo"),
        *(f"mlp.{part}_proj" for part in ("gate", "up", "down")),
    ]
    assert all(error.fitted <= error.rounded * 1.1 for error in result.errors), result.errors
    assert 0.01 < lost < 0.4  # random weights: nothing is redundant


@pytest.mark.parametrize("name", NAMES)
def test_factors_change_nothing(name: str) -> None:
    """With a scale for each single weight hardly anything is rounded, and the factors remain: what
    multiplies a column is taken out of norm, values, up projection and their biases."""
    result, lost = quantised(name, 1)
    assert lost < 0.004
    state = made(name).model.state_dict()
    for norm in NORMS:
        key = f"model.layers.0.{norm}.weight"
        factors = state[key] / result.tensors[key].float()
        assert factors.max() > 1.05 * factors.min(), "there are some"


def test_what_a_norm_loses_to_float16_its_matrix_makes_good() -> None:
    torch.manual_seed(0)
    before, wanted = torch.randn(500), torch.rand(500) * 30 + 0.1
    before[:3] = torch.tensor([0.0, 1e-9, 3e-7])  # nothing, less than float16 has, its last digits
    after = before.clone()
    factors = divide(after, wanted)
    assert torch.equal(after, after.half().float())
    assert factors.isfinite().all() and (factors != 0).all()
    torch.testing.assert_close((after * factors)[2:], before[2:], rtol=1e-6, atol=0)
    torch.testing.assert_close(factors[3:], wanted[3:], rtol=2e-3, atol=0)
