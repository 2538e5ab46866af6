"""What a reader of a stream may have of one answer by now, and what must wait."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from minisgl.engine.codec import TextStream


class Answer:
    """One request's text, given out while it grows; the pieces joined are the request's text.

    Text is held back while a further token can still change it, or make it a stop string.
    """

    def __init__(self, stream: TextStream, stops: Sequence[str] = ()) -> None:
        self._stream = stream
        self._held_len = max(map(len, stops), default=1) - 1
        self._held, self._given = "", 0  # text kept, characters given

    def feed(self, ids: Iterable[int]) -> str:
        """What may be given after these further tokens; "" while nothing new may."""
        self._held += self._stream.feed(ids)
        ready = max(0, len(self._held) - self._held_len)
        piece, self._held = self._held[:ready], self._held[ready:]
        self._given += ready
        return piece

    def end(self, ids: Iterable[int] = (), text_len: int | None = None) -> str:
        """The rest, with these last tokens. text_len: where a stop string cut the text off."""
        rest = self._held + self._stream.feed(ids) + self._stream.flush()
        return rest if text_len is None else rest[: text_len - self._given]
