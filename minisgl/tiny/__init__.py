"""The embedded model: a Qwen3 of under four million parameters, its text generator, training and
measurement.

`path()` is the folder with the weights, as `transformers` and our own loader read it.
`generate.examples` gives prompts with known answers, `generate.long_chat` long prompts. See
MODEL_CARD.md for what it can do and how often.
"""

from pathlib import Path


def path() -> Path:
    """The folder that holds the shipped checkpoint: config, tokenizer, weights."""
    return Path(__file__).parent / "model"
