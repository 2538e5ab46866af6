"""Stop strings: the one place that reads output as text before it is booked.

A match may lie across token borders. What is found is written into the step's outcome, so a replay
needs no text. Which match counts does not depend on how the text was cut into tokens: the one that
ends first, the longest of those.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from minisgl.core import Batch, FinishReason, Outcome, Request, StopHit
from minisgl.engine.codec import Codec

Ends = Callable[[Request, int], FinishReason | None]


class Stops:
    """The requests that have stop strings and are not over, with the ends of their texts."""

    def __init__(self, codec: Codec | None) -> None:
        self._codec = codec
        self._watched: dict[int, _Watch] = {}
        self._ending: list[int] = []  # requests that the last outcome ends, once it is booked

    def watch(self, request: Request) -> None:
        """Begin with a request; one that has no stop strings or is over needs no watching."""
        if not request.sampling.stop or request.finish is not None:
            return
        assert self._codec is not None, "the engine refuses stop strings that nobody could read"
        self._watched[request.rid] = _Watch(self._codec, request)

    def forget(self, rid: int) -> None:
        """Stop watching a request; one that is not watched: nothing happens."""
        self._watched.pop(rid, None)

    def found(
        self, batch: Batch, outcome: Outcome, requests: Mapping[int, Request], ends: Ends
    ) -> Outcome:
        """The outcome with its stop hits. Asked again before it is booked, it answers the same.

        ends: why a request ends once a token is booked, stop strings aside; None if it goes on.
        """
        for rid in self._ending:
            if rid not in requests or requests[rid].finish is not None:
                self.forget(rid)
        self._ending.clear()
        if not self._watched:
            return outcome
        hits = []
        for row, token in zip(batch.rows, outcome.tokens, strict=True):
            if row.rid not in self._watched or requests[row.rid].finish is not None:
                continue
            request, end = requests[row.rid], None
            if token is not None:
                end = ends(request, token)
                if hit := self._watched[row.rid].hit(request, token, end):
                    hits.append(hit)
            if end or outcome.error or (hits and hits[-1].rid == row.rid):
                self._ending.append(row.rid)
        return outcome._replace(stops=tuple(hits))


class _Watch:
    """One request's text, of which the last characters are kept: as many as a match can need."""

    def __init__(self, codec: Codec, request: Request) -> None:
        self._codec = codec
        self._strings = frozenset(request.sampling.stop)
        self._tail_len = max(map(len, self._strings)) - 1
        lengths: dict[str, set[int]] = {}
        for string in self._strings:
            lengths.setdefault(string[-1], set()).add(len(string))
        self._lengths = {end: sorted(found, reverse=True) for end, found in lengths.items()}
        self._restart(request.output)

    def hit(self, request: Request, token: int, end: FinishReason | None) -> StopHit | None:
        """The first stop string in the text with this token, which may be the last."""
        if self._num_tokens != len(request.tokens) - request.prompt_len:
            self._restart(request.output)  # the last answer was never booked
        self._num_tokens += 1
        text = "" if end == "stop" else self._stream.feed([token])  # a stop token is no text
        if end is not None:
            text += self._stream.flush()
        found = self._search(text)
        return StopHit(request.rid, *found) if found else None

    def _restart(self, output: Sequence[int]) -> None:
        self._stream = self._codec.detokenizer()
        text = self._stream.feed(output)
        self._num_tokens, self._text_len, self._tail = len(output), len(text), self._end(text)

    def _search(self, text: str) -> tuple[str, int] | None:
        known, begin = self._tail + text, self._text_len - len(self._tail)
        for end in range(len(self._tail) + 1, len(known) + 1):
            for length in self._lengths.get(known[end - 1], ()):
                if length <= end and known[end - length : end] in self._strings:
                    return known[end - length : end], begin + end - length
        self._text_len += len(text)
        self._tail = self._end(known)
        return None

    def _end(self, text: str) -> str:
        return text[max(0, len(text) - self._tail_len) :]
