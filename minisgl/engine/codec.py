"""The little that the engine knows of text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol


class Codec(Protocol):
    """Text to token ids and back. ``minisgl.tokenizer`` has the real one."""

    def encode(self, text: str) -> list[int]:
        """A plain prompt's token ids."""
        ...

    def chat(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """The token ids of a conversation, ready for the assistant's next turn."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, special tokens left out."""
        ...
