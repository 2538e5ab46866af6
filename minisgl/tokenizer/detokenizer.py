"""From token ids to text piece by piece, as a reader of a stream wants it.

The pieces joined are exactly what decoding all ids at once gives. Text is held back only while a
later token can still change it: the first bytes of a character, and runs of sentencepiece's byte
tokens, which are text or not as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence, Set
from typing import Final

_UNFINISHED: Final = "\N{REPLACEMENT CHARACTER}"  # what an unfinished character decodes to
_LONGEST: Final = 64  # tokens in the window before it is cut in the middle of doubtful text
_OVERLAP: Final = 8  # tokens then kept: a character has at most 4 bytes, so decoding finds its feet


class Detokenizer:
    """One request's stream of text. Keeps a window of its last tokens, never all of them.

    decode: all the window's ids to text. is_silent: whether an id adds no text (special tokens).
    byte_ids: the byte tokens of a tokenizer that falls back to bytes, else empty.
    """

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        is_silent: Callable[[int], bool],
        byte_ids: Set[int],
    ) -> None:
        self._decode, self._is_silent, self._byte_ids = decode, is_silent, byte_ids
        self._window: list[int] = []
        self._sent = 0  # characters of the window's text that were given out

    def feed(self, ids: Iterable[int]) -> str:
        """The text that is certain after these further ids; "" while nothing new is."""
        new = [token for token in ids if not self._is_silent(token)]
        self._window += new
        if not new or new[-1] in self._byte_ids:
            return ""
        text = self._decode(self._window)
        certain = len(text) - text.endswith(_UNFINISHED)
        delta = text[self._sent : certain]
        self._sent = max(self._sent, certain)
        if certain == len(text):
            self._keep(1, 0)  # one token of context: the first of a text may lose its leading space
        elif len(self._window) > _LONGEST:
            self._keep(_OVERLAP, 1)
        return delta

    def flush(self) -> str:
        """The text still held back, as it is: no further ids follow."""
        delta = self._decode(self._window)[self._sent :]
        self._window, self._sent = [], 0
        return delta

    def _keep(self, num_tokens: int, unsent: int) -> None:
        del self._window[:-num_tokens]
        self._sent = len(self._decode(self._window)) - unsent
