"""Cosine and sine equal transformers', and so do the rotated heads."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from minisgl.kernel.plain import PlainKernels
from minisgl.kernel.rotation import rotate
from minisgl.layers.rotary import Rope, Rotary

CASES = {
    "default": (Rope(10_000.0), {"rope_type": "default", "rope_theta": 10_000.0}),
    "linear": (
        Rope(500.0, "linear", 4.0),
        {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0},
    ),
    "llama3": (
        Rope(500_000.0, "llama3", 8.0, 1.0, 4.0, 8192),
        {
            "rope_type": "llama3",
            "rope_theta": 500_000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_rotation_equals_transformers(name: str) -> None:
    rope, parameters = CASES[name]
    config = LlamaConfig(
        hidden_size=256, num_attention_heads=4, head_dim=64, rope_parameters=parameters
    )
    theirs = LlamaRotaryEmbedding(config)
    positions = torch.tensor([0, 1, 2, 31, 4095, 100_000])
    x = torch.randn(1, 4, len(positions), 64)  # (batch, heads, tokens, head_dim)
    cos, sin = theirs(x, positions[None])
    rotation = Rotary(rope, 64, torch.device("cpu"), PlainKernels()).at(positions, torch.float32)
    torch.testing.assert_close(rotation.cos[:, 0], cos[0, :, :32], atol=2e-3, rtol=0)
    early = slice(0, 5)  # float32 angles of 100000 radians are good to 1e-2 only
    torch.testing.assert_close(rotation.cos[early, 0], cos[0, early, :32], atol=2e-4, rtol=0)
    torch.testing.assert_close(rotation.sin[early, 0], sin[0, early, :32], atol=2e-4, rtol=0)
    expected = apply_rotary_pos_emb(x, x, cos, sin)[0][0].transpose(0, 1)
    torch.testing.assert_close(
        rotate(x[0].transpose(0, 1), *rotation)[early], expected[early], atol=1e-3, rtol=0
    )


@pytest.mark.parametrize("name", CASES)
def test_the_frequencies_equal_transformers(name: str) -> None:
    rope, parameters = CASES[name]
    config = LlamaConfig(
        hidden_size=256, num_attention_heads=4, head_dim=64, rope_parameters=parameters
    )
    theirs = LlamaRotaryEmbedding(config).inv_freq
    torch.testing.assert_close(rope.frequencies(64), theirs, atol=0, rtol=1e-6)
