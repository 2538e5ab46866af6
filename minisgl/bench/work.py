"""What is measured on: random checkpoints of two shapes, and lists of requests for them."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any, Final, NamedTuple

# (a) to (c): four layers, and a vocabulary of usual size
SMALL: Final[dict[str, Any]] = dict(
    vocab_size=32_000,
    hidden_size=256,
    intermediate_size=768,
    num_hidden_layers=4,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=32,
)
# (d): Qwen3-0.6B
LARGE: Final[dict[str, Any]] = dict(
    vocab_size=151_936,
    hidden_size=1024,
    intermediate_size=3072,
    num_hidden_layers=28,
    num_attention_heads=16,
    num_key_value_heads=8,
    head_dim=128,
)
MICRO: Final[dict[str, Any]] = SMALL | dict(vocab_size=200, num_hidden_layers=1)  # for tests
_FIRST_ID: Final = 5


class Asked(NamedTuple):
    """One request: greedy, and exactly so many tokens."""

    prompt: list[int]
    num_tokens: int


class Work(NamedTuple):
    """Requests that are there from the start."""

    name: str
    requests: tuple[Asked, ...]
    shared: int = 0  # tokens at the head of every prompt that are the same

    @property
    def num_tokens(self) -> int:
        """Tokens that are generated in all."""
        return sum(asked.num_tokens for asked in self.requests)


def write(shape: dict[str, Any], folder: Path, dtype: str = "float32") -> Path:
    """A Qwen3 checkpoint with random weights, always the same; once written it is kept."""
    import torch
    from transformers import AutoModelForCausalLM, Qwen3Config

    if not (folder / "config.json").exists():
        torch.manual_seed(0)
        config = Qwen3Config(
            **shape,
            max_position_embeddings=4096,
            tie_word_embeddings=True,
            initializer_range=0.1,  # wide, so that the likeliest token leads clearly
            eos_token_id=0,
            bos_token_id=1,
            pad_token_id=0,
            dtype=dtype,
        )
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
        model.save_pretrained(folder)
    return folder


def mixed(seed: int, count: int = 64, longest: int = 256, vocab_size: int = 32_000) -> Work:
    """Prompts of 16 to ``longest`` tokens, half as many to generate, evenly spread."""
    random = Random(seed)
    return Work(
        f"{count} mixed requests",
        tuple(
            Asked(
                _ids(random, random.randint(16, longest), vocab_size),
                random.randint(8, longest // 2),
            )
            for _ in range(count)
        ),
    )


def sharing(seed: int, count: int = 16, prefix: int = 512, vocab_size: int = 32_000) -> Work:
    """One long prefix, then 8 to 32 tokens of one's own; 32 to generate."""
    random = Random(seed)
    head = _ids(random, prefix, vocab_size)
    return Work(
        f"{count} requests sharing {prefix} tokens",
        tuple(
            Asked(head + _ids(random, random.randint(8, 32), vocab_size), 32) for _ in range(count)
        ),
        prefix,
    )


def equal(seed: int, count: int, prompt: int, num_tokens: int, vocab_size: int = 32_000) -> Work:
    """``count`` requests of the same lengths."""
    random = Random(seed)
    name = "single stream" if count == 1 else f"batch of {count}"
    asked = (Asked(_ids(random, prompt, vocab_size), num_tokens) for _ in range(count))
    return Work(name, tuple(asked))


def _ids(random: Random, count: int, vocab_size: int) -> list[int]:
    return [random.randrange(_FIRST_ID, vocab_size) for _ in range(count)]
