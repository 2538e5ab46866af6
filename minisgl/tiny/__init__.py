"""The embedded model: a Qwen3 of under four million parameters, its text generator, training and
measurement.

`path()` is the folder with the weights, as `transformers` and our own loader read it; `awq_path()`
the same in four bits; `card()` is its description.
`generate.examples` gives prompts with known answers, `generate.long_chat` long prompts. See
MODEL_CARD.md for what it can do and how often.
"""

from pathlib import Path


def path() -> Path:
    """The folder that holds the shipped checkpoint: config, tokenizer, weights."""
    return Path(__file__).parent / "model"


def awq_path() -> Path:
    """The folder that holds the same model with its layers' weights in four bits (AWQ)."""
    return Path(__file__).parent / "model-awq"


def card(section: str | None = None) -> str:
    """MODEL_CARD.md, or one section of it, as Markdown. Raises ValueError for one there is not."""
    text = (Path(__file__).parent / "MODEL_CARD.md").read_text(encoding="utf-8")
    if section is None:
        return text
    _, *parts = text.split("\n## ")
    titled = {part.partition("\n")[0]: part.partition("\n")[2].strip() for part in parts}
    if section not in titled:
        raise ValueError(f"the card has no section {section!r}; it has {', '.join(titled)}")
    return titled[section]
