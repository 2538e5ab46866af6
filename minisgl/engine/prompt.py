"""What a user may give as a prompt, and its token ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from minisgl.core import SamplingParams, as_int
from minisgl.engine.codec import Codec

Prompt = str | Sequence[int] | Sequence[Mapping[str, Any]]


def token_ids(prompt: Prompt, codec: Codec | None, vocab_size: int) -> tuple[int, ...]:
    """The ids of a text, of a chat or of a sequence of ids, each within the vocabulary.

    Raises TypeError for a prompt of another kind, ValueError for an id out of the vocabulary or for
    text without a codec.
    """
    if isinstance(prompt, str):
        return tuple(needed(codec).encode(prompt))
    if hasattr(prompt, "tolist"):  # an array or a tensor of ids is welcome
        prompt = prompt.tolist()
    if isinstance(prompt, (bytes, Mapping)) or not isinstance(prompt, Sequence):
        raise TypeError(
            f"a prompt is a text, a list of token ids or a list of chat messages, "
            f"got {type(prompt).__name__}"
        )
    parts: list[Any] = list(prompt)
    kinds = set(map(type, parts))
    if kinds and all(issubclass(kind, Mapping) for kind in kinds):
        return tuple(needed(codec).chat(parts))
    if kinds != {int} or min(parts) < 0:  # asked at once, for this is done for every prompt
        parts = [as_int("a token id", token, 0) for token in parts]
    ids: tuple[int, ...] = tuple(parts)
    if ids and max(ids) >= vocab_size:
        raise ValueError(
            f"token id {max(ids)} is out of the vocabulary, which has {vocab_size} ids"
        )
    return ids


def check_ids(sampling: SamplingParams, vocab_size: int) -> None:
    """Raise ValueError for a token of logit_bias or stop_token_ids that the vocabulary lacks."""
    biased = [token for token, _ in sampling.biases]
    for name, ids in (("logit_bias", biased), ("stop_token_ids", sampling.stop_token_ids)):
        if ids and max(ids) >= vocab_size:
            raise ValueError(
                f"{name} has token {max(ids)}, which is out of the vocabulary of {vocab_size} ids"
            )


def needed(codec: Codec | None) -> Codec:
    """The codec, where text is to be read. Raises ValueError if there is none."""
    if codec is None:
        raise ValueError(
            "this model has no tokenizer files; give token ids instead of text, and "
            "stop_token_ids instead of stop strings"
        )
    return codec
