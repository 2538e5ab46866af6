"""Random tiny checkpoints written by transformers, and transformers' own answers for them."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor

VOCAB = 101
SIZES: dict[str, Any] = dict(
    vocab_size=VOCAB,
    hidden_size=48,
    intermediate_size=80,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
    initializer_range=0.2,  # large enough that the best token differs from place to place
    tie_word_embeddings=False,
)
LLAMA3 = dict(
    rope_type="llama3",
    rope_theta=500.0,
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=64,
)
LINEAR = dict(rope_type="linear", rope_theta=10_000.0, factor=4.0)


class Kind(NamedTuple):
    """How a checkpoint is made."""

    architecture: str
    changes: dict[str, Any] = {}
    shard: str | None = None  # files of at most this size


KINDS = {
    "llama2": Kind("Llama", dict(num_key_value_heads=4)),
    "llama3": Kind("Llama", dict(rope_parameters=LLAMA3, tie_word_embeddings=True)),
    "llama_biased": Kind(
        "Llama", dict(attention_bias=True, mlp_bias=True, rope_parameters=LINEAR, head_dim=10)
    ),
    "qwen3": Kind("Qwen3", dict(head_dim=16, tie_word_embeddings=True)),
    "qwen3_sharded": Kind("Qwen3", dict(head_dim=20, num_key_value_heads=1), shard="60KB"),
    "qwen2": Kind("Qwen2", dict(rope_parameters=dict(rope_type="default", rope_theta=1e6))),
    "qwen2_window": Kind(
        "Qwen2", dict(use_sliding_window=True, sliding_window=6, max_window_layers=1)
    ),
    "mistral": Kind("Mistral", dict(sliding_window=None, head_dim=12)),
    "mistral_window": Kind("Mistral", dict(sliding_window=9, head_dim=12)),
}


class Checkpoint:
    """A folder as transformers wrote it, and the model that transformers sees in it."""

    def __init__(self, kind: Kind, dtype: torch.dtype = torch.float32, **changes: Any) -> None:
        self._temporary = tempfile.TemporaryDirectory()
        self.folder = Path(self._temporary.name)
        torch.manual_seed(7)
        config = getattr(transformers, f"{kind.architecture}Config")(
            **SIZES | kind.changes | changes
        )
        self.model = getattr(transformers, f"{kind.architecture}ForCausalLM")(config).eval()
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                if parameter.dim() == 1:  # transformers starts biases at 0 and norms at 1
                    parameter.normal_(1.0 if "norm" in name else 0.0, 0.3)
        for parameter in self.model.parameters():  # and not the rotary frequencies, as .to() would
            parameter.data = parameter.data.to(dtype)
        more = {} if kind.shard is None else {"max_shard_size": kind.shard}
        self.model.save_pretrained(self.folder, **more)

    def logits(self, ids: list[int]) -> Tensor:
        """transformers' logits of every position: (positions, vocabulary)."""
        with torch.inference_mode():
            logits: Tensor = self.model(torch.tensor([ids])).logits[0]
        return logits

    def greedy(self, prompt: list[int], count: int) -> list[int]:
        """The next ``count`` tokens, by one whole forward pass after the other."""
        ids = list(prompt)
        for _ in range(count):
            ids.append(int(self.logits(ids)[-1].argmax()))
        return ids[len(prompt) :]


@functools.cache
def checkpoint(name: str) -> Checkpoint:
    """The checkpoint of that name, made once per test run. Do not write to its folder."""
    return Checkpoint(KINDS[name])
