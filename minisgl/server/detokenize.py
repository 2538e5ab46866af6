"""The detokenizer process: tokens in, text that is certain out to the API."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minisgl.message.records import (
    Began,
    Echo,
    Load,
    Opened,
    Over,
    Piece,
    Ready,
    Refused,
    Score,
    Scored,
    Spelled,
    Stop,
    ToApi,
    ToDetokenizer,
    Token,
)
from minisgl.message.wire import Inbox, Outbox
from minisgl.server.links import Links
from minisgl.server.stage import Report
from minisgl.tokenizer import TextCodec, load_codec
from minisgl.tokenizer.answer import Answer


@dataclass(frozen=True)
class Detokenize:
    """The work of the detokenizer process, for the model in ``folder``."""

    folder: Path

    def __call__(self, links: Links, report: Report) -> None:
        """Run until a ``Stop`` arrives."""
        answers = Answers(load_codec(self.folder))
        inbox: Inbox[Any] = Inbox(links.detokenizer, ToDetokenizer)
        api: Outbox[Any] = Outbox(links.api)
        with inbox, api:
            while True:
                messages = inbox.receive()
                api.send(*answers.take(messages))
                if any(isinstance(message, Stop) for message in messages):
                    return


@dataclass
class _Open:
    """A request that is not over. ``tokens`` came since its last piece."""

    began: Began
    answer: Answer | None  # None: a model without text
    tokens: list[int] = field(default_factory=list)
    scores: list[Spelled] = field(default_factory=list)


class Answers:
    """The open requests' texts. Messages of one call that belong together become one piece."""

    def __init__(self, codec: TextCodec | None) -> None:
        self._codec = codec
        self._open: dict[int, _Open] = {}
        self._spell: Callable[[int], bytes] = codec.spell if codec else _numbered

    def take(self, messages: Iterable[ToDetokenizer]) -> list[ToApi]:
        """What these messages tell the API. Those of requests that are not open say nothing."""
        out: list[ToApi] = []
        grown: dict[int, _Open] = {}
        for message in messages:
            match message:
                case Token(rid=rid, token=token, score=score):
                    if request := self._open.get(rid):
                        request.tokens.append(token)
                        if score is not None:
                            request.scores.append(self._spelled(score))
                        if not request.began.whole:
                            grown[rid] = request
                case Over(rid=rid):
                    grown.pop(rid, None)
                    if ended := self._open.pop(rid, None):
                        out.append(self._last(ended, message))
                case Began(rid=rid):
                    out.append(self._begin(message))
                case Scored(rid=rid, scores=scores):
                    if request := self._open.get(rid):
                        out.append(self._echo(request, scores))
                case Refused() | Ready() | Load():
                    out.append(message)
                case Stop():
                    pass
        for rid, request in grown.items():
            out.append(self._piece(rid, request))
        return out

    def _begin(self, began: Began) -> Opened:
        codec, rid = self._codec, began.rid
        answer = Answer(codec.detokenizer(), began.stops) if codec else None
        self._open[rid] = _Open(began, answer)
        text = None
        if began.prompt is not None:
            text = b"".join(map(self._spell, began.prompt)).decode(errors="replace")
        return Opened(rid, began.prompt_len, text)

    def _piece(self, rid: int, request: _Open) -> Piece:
        tokens, scores = request.tokens, tuple(request.scores)
        text = request.answer.feed(tokens) if request.answer else ""
        request.tokens, request.scores = [], []
        return Piece(rid, text, len(tokens), scores)

    def _last(self, request: _Open, over: Over) -> Piece:
        tokens, text = request.tokens, ""
        if request.answer:
            text = request.answer.end(tokens[:-1] if over.stopped else tokens, over.text_len)
        return Piece(over.rid, text, len(tokens), tuple(request.scores), over)

    def _echo(self, request: _Open, scores: tuple[Score | None, ...]) -> Echo:
        ids = request.began.prompt or ()
        spelled = tuple(None if score is None else self._spelled(score) for score in scores)
        return Echo(request.began.rid, tuple(map(self._spell, ids)), spelled)

    def _spelled(self, score: Score) -> Spelled:
        top = tuple((self._spell(token), logprob) for token, logprob in score.top)
        return Spelled(self._spell(score.token), score.logprob, top)


def _numbered(token: int) -> bytes:
    """How a token of a model without tokenizer files is shown."""
    return f"token_id:{token}".encode()
