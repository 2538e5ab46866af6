"""On a GPU: what another engine needs is told under the name of the shape that it computed."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, Qwen3Config

from minisgl.bench.gpu import transformers_steps

pytestmark = pytest.mark.gpu


def test_steps_of_transformers_carry_the_shapes_name(tmp_path: Path) -> None:
    config = Qwen3Config(
        vocab_size=10_000,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    lines = list(transformers_steps("0.6B", tmp_path, (1, 2), steps=8))
    assert [(line["model"], line["side"], line["batch"]) for line in lines] == [
        ("0.6B", "transformers", 1),
        ("0.6B", "transformers", 2),
    ]
    assert all(line["ms per step"] > 0 for line in lines)
