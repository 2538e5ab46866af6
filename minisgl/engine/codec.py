"""The little that the engine knows of text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol


class TextStream(Protocol):
    """One request's output as text, piece by piece."""

    def feed(self, ids: Iterable[int]) -> str:
        """The text that is certain after these further ids; "" while nothing new is."""
        ...

    def flush(self) -> str:
        """The text still held back: no further ids follow."""
        ...


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

    def detokenizer(self) -> TextStream:
        """A new stream, whose pieces joined equal ``decode`` of all ids."""
        ...
