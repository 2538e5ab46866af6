"""A recording that does not tell what was said.

What a scheduler does depends on which prompts begin alike, not on what they say. So every token
becomes a number that a secret makes of it and of all that stands before it: equal beginnings stay
equal, and nothing else can be read. The secret is forgotten with the recording.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from hashlib import blake2b
from typing import Any, Final

from minisgl.core import (
    Add,
    Finished,
    Input,
    Logprob,
    Outcome,
    Plan,
    SamplingParams,
    StepRecord,
    StopHit,
)
from minisgl.scheduler.state import sampling_out
from minisgl.trace.file import Header

_IDS: Final = 2**31 - 1  # as many as the reader of a file takes; two are hardly ever equal
_NOTHING: Final = Logprob(0.0, 1)


class Redaction:
    """Inputs in, in order; the same without what they say out. One for each recording.

    eos: ids that end a request. No id is left that could tell one, so every end is written down
    as that of a stop string.
    """

    def __init__(self, eos: frozenset[int]) -> None:
        self._eos = eos
        self._secret = secrets.token_bytes(32)
        self._lines: dict[int, _Line] = {}  # of each request that is not over
        self._plans: deque[Plan] = deque()  # in flight

    def header(self, header: Header) -> Header:
        """The header of a file whose token ids are these."""
        return header._replace(vocab_size=_IDS, eos=frozenset())

    def input(self, item: Input) -> Input:
        """One input."""
        match item:
            case Add(rid, prompt, sampling):
                line = self._lines[rid] = self._line(sampling)
                return Add(rid, line.said(prompt), _redacted(sampling))
            case Plan():
                self._plans.append(item)
            case Outcome():
                return self._outcome(item, self._plans.popleft())
        return item

    def forget(self, record: StepRecord) -> None:
        """Note which requests are over."""
        for event in record.events:
            if isinstance(event, Finished):
                self._lines.pop(event.rid, None)

    def state(self, state: dict[str, Any]) -> dict[str, Any]:
        """A host's state. Nothing is in flight."""
        self._lines.clear()
        self._plans.clear()
        requests = {
            name: [self._request(request) for request in state[name]]
            for name in ("waiting", "running")
        }
        cache = state["pages"]["cache"]
        if "nodes" in cache:
            cache = {**cache, "nodes": self._nodes(cache["nodes"])}
        return {**state, **requests, "pages": {**state["pages"], "cache": cache}}

    # ---- inside ----------------------------------------------------------------------------------

    def _line(self, sampling: SamplingParams) -> _Line:
        ends = frozenset() if sampling.ignore_eos else self._eos
        return _Line(self._secret, ends.union(sampling.stop_token_ids))

    def _outcome(self, outcome: Outcome, plan: Plan) -> Outcome:
        tokens, stops = list[int | None](), list[StopHit]()
        hits = {hit.rid for hit in outcome.stops}
        for (rid, _), token in zip(plan.rows, outcome.tokens, strict=True):
            line = self._lines.get(rid)  # None: it is over, and its token is dropped
            if token is not None and line is not None:
                if token in line.ends or rid in hits:
                    stops.append(StopHit(rid, "", 0))
                tokens.append(*line.said((token,)))
            else:
                tokens.append(None if token is None else 0)
        return outcome._replace(
            tokens=tuple(tokens),
            logprobs=tuple(score and _NOTHING for score in outcome.logprobs),
            prompt_logprobs=tuple((_NOTHING,) * len(row) for row in outcome.prompt_logprobs),
            stops=tuple(stops),
        )

    def _request(self, request: dict[str, Any]) -> dict[str, Any]:
        sampling = SamplingParams(**request["sampling"])
        line = self._lines[request["rid"]] = self._line(sampling)
        scores = {name: [_NOTHING] * len(request[name]) for name in ("scores", "prompt_scores")}
        tokens = line.said(request["tokens"])
        told = sampling_out(_redacted(sampling))
        return {**request, **scores, "tokens": tokens, "sampling": told}

    def _nodes(self, nodes: Sequence[Sequence[Any]]) -> list[list[Any]]:
        known: dict[int | None, bytes] = {None: b""}
        out = []
        for number, above, tokens, pages, used in nodes:
            line = _Line(self._secret, frozenset(), known[above])
            out.append([number, above, line.said(tokens), pages, used])
            known[number] = line.before
        return out


class _Line:
    """One sequence of tokens. ``before`` stands for all of them so far; ``ends`` end it."""

    def __init__(self, secret: bytes, ends: frozenset[int], before: bytes = b"") -> None:
        self._secret, self.ends, self.before = secret, ends, before

    def said(self, tokens: Sequence[int]) -> tuple[int, ...]:
        """The numbers of the tokens that follow."""
        out = []
        for token in tokens:
            said = blake2b(self.before + token.to_bytes(8, "little"), key=self._secret)
            self.before = said.digest()[:16]
            out.append(int.from_bytes(self.before[:8], "little") % _IDS)
        return tuple(out)


def _redacted(sampling: SamplingParams) -> SamplingParams:
    """What matters to a scheduler."""
    return replace(sampling, stop=(), stop_token_ids=(), logit_bias=())
