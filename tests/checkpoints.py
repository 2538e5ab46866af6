"""Random little checkpoints, written by transformers, and what transformers says to a prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from minisgl.tiny.evaluate import cache_of

VOCAB = 101
CONTEXT = 256
_SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "initializer_range": 0.3,  # wide enough that the largest logit leads clearly
    "eos_token_id": 0,
    "bos_token_id": 1,
    "pad_token_id": 0,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {"rope_scaling": _LLAMA3, "tie_word_embeddings": False},
    "qwen3": {"head_dim": 24, "tie_word_embeddings": True},
    "qwen2": {"tie_word_embeddings": True},
    "mistral": {"sliding_window": 24, "head_dim": 16, "tie_word_embeddings": False},
}


def write(name: str, folder: Path) -> Path:
    """A checkpoint of one of ``ARCHITECTURES`` with random weights, always the same."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(7)
    config = AutoConfig.for_model(name, **_SHAPE | ARCHITECTURES[name])
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():  # biases and norms are not left at 0 and 1
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, mean=parameter.mean().item(), std=0.2)
    model.save_pretrained(folder)
    return folder


def greedy(folder: Path, prompts: list[list[int]], n: int) -> list[tuple[int, ...]]:
    """transformers' ``n`` greedy tokens after each prompt, in float32, stop tokens included."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    name, out = cache_of(model), []
    for prompt in prompts:
        ids, cache, said = torch.tensor([prompt]), None, list[int]()
        for _ in range(n):
            with torch.inference_mode():
                result = model(ids, use_cache=True, **{name: cache})
            cache = getattr(result, name)
            said.append(int(result.logits[0, -1].argmax()))
            ids = torch.tensor([[said[-1]]])
        out.append(tuple(said))
    return out
