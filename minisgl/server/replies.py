"""Answers as OpenAI's clients read them: whole bodies, and the chunks of a stream."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import msgspec

from minisgl.message.records import Echo, Spelled
from minisgl.server.desk import Choice, Reply
from minisgl.server.errors import ApiError

_LEAST: Final = -9999.0  # JSON has no infinity
_UNFINISHED: Final = 0xC0  # of a byte, these two bits tell whether it continues a character
_CONTINUES: Final = 0x80


def text_of(token: bytes) -> str:
    """A token as a string: what is no whole character is spelled, as OpenAI's API does."""
    try:
        return token.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token)


def usage(reply: Reply) -> dict[str, Any]:
    """Tokens of all the answers; a prompt that is answered several times counts once."""
    choices = list(reply.choices.values())
    once = {choice.prompt_index: choice for choice in reversed(choices)}.values()
    prompt = sum(choice.opened.prompt_len for choice in once if choice.opened)
    cached = sum(choice.over.cached for choice in once if choice.over)
    made = sum(choice.total_tokens for choice in choices)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": made,
        "total_tokens": prompt + made,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def finish_reason(choice: Choice) -> str | None:
    """ "stop" or "length"; None while it is not over. Raises ``ApiError`` for a failed request."""
    if choice.over is None:
        return None
    match choice.over.reason:
        case "abort":
            raise ApiError(503, "the request was aborted by an administrator", code="aborted")
        case "error":
            raise ApiError(500, f"the request failed: {choice.over.error}", code="failed")
        case reason:
            return reason


@dataclass
class Writer:
    """Makes the bodies for one HTTP request.

    echoed: the prompts' texts as they were given, where an echo was asked; None for each of those
    that were token ids.
    """

    id: str
    kind: Literal["chat", "text"]
    model: str
    created: int
    logprobs: bool
    include_usage: bool = False
    echoed: Sequence[str | None] = ()

    def __post_init__(self) -> None:
        self._begun: set[int] = set()
        self._offsets: dict[int, int] = {}  # characters whose logprobs were reported, by choice

    # ---- whole -----------------------------------------------------------------------------------

    def body(self, reply: Reply) -> bytes:
        """The answer to a request that does not stream."""
        chat = self.kind == "chat"
        choices = [self._choice(choice) for choice in reply.choices.values()]
        kind = "chat.completion" if chat else "text_completion"
        return msgspec.json.encode(
            {**self._head(kind), "choices": choices, "usage": usage(reply)},
        )

    def _choice(self, choice: Choice) -> dict[str, Any]:
        finish = finish_reason(choice)
        text, scores = choice.take()
        if self.kind == "chat":
            out: dict[str, Any] = {"message": {"role": "assistant", "content": text}}
            out["logprobs"] = _chat_logprobs(scores) if self.logprobs else None
        else:
            out = {"text": self._prompt_text(choice) + text}
            out["logprobs"] = self._logprobs(choice, scores, choice.echo)
        return {"index": choice.index, **out, "finish_reason": finish}

    # ---- streamed --------------------------------------------------------------------------------

    def chunks(self, choices: Iterable[Choice]) -> Iterator[bytes]:
        """What has arrived of these answers, as events of the stream."""
        for choice in choices:
            finish = finish_reason(choice)
            text, scores = choice.take()
            if self.kind == "chat":
                yield from self._chat(choice, text, scores, finish)
            else:
                yield from self._text(choice, text, scores, finish)

    def last(self, reply: Reply) -> Iterator[bytes]:
        """The end of the stream."""
        if self.include_usage:
            yield self._event([], usage(reply))
        yield b"data: [DONE]\n\n"

    def _chat(
        self, choice: Choice, text: str, scores: Sequence[Spelled], finish: str | None
    ) -> Iterator[bytes]:
        if choice.index not in self._begun:
            self._begun.add(choice.index)
            yield self._chunk(choice, {"delta": {"role": "assistant", "content": ""}}, None, None)
        if text or scores:
            logprobs = _chat_logprobs(scores) if self.logprobs else None
            yield self._chunk(choice, {"delta": {"content": text}}, logprobs, None)
        if finish:
            yield self._chunk(choice, {"delta": {}}, None, finish)

    def _text(
        self, choice: Choice, text: str, scores: Sequence[Spelled], finish: str | None
    ) -> Iterator[bytes]:
        echo = None
        if choice.index not in self._begun:
            waits = self.echoed and self.logprobs and choice.echo is None
            if waits and finish is None:
                return  # the prompt's logprobs come before the first token
            self._begun.add(choice.index)
            text, echo = self._prompt_text(choice) + text, choice.echo
        if text or scores or finish or echo:
            logprobs = self._logprobs(choice, scores, echo)
            yield self._chunk(choice, {"text": text}, logprobs, finish)

    def _chunk(
        self, choice: Choice, delta: dict[str, Any], logprobs: Any, finish: str | None
    ) -> bytes:
        entry = {"index": choice.index, **delta, "logprobs": logprobs, "finish_reason": finish}
        return self._event([entry], None)

    def _event(self, choices: list[dict[str, Any]], used: dict[str, Any] | None) -> bytes:
        kind = "chat.completion.chunk" if self.kind == "chat" else "text_completion"
        body = {**self._head(kind), "choices": choices}
        if self.include_usage:
            body["usage"] = used
        return b"data: " + msgspec.json.encode(body) + b"\n\n"

    # ---- parts -----------------------------------------------------------------------------------

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _prompt_text(self, choice: Choice) -> str:
        if not self.echoed:
            return ""
        given = self.echoed[choice.prompt_index]
        if given is not None:
            return given
        assert choice.opened is not None
        return choice.opened.text or ""

    def _logprobs(
        self, choice: Choice, scores: Sequence[Spelled], echo: Echo | None
    ) -> dict[str, Any] | None:
        if not self.logprobs:
            return None
        tokens = [*(echo.tokens if echo else ()), *(score.token for score in scores)]
        every = [*(echo.scores if echo else ()), *scores]
        offset, offsets = self._offsets.get(choice.index, 0), []
        if choice.index not in self._offsets and self.echoed and echo is None:
            offset = len(self._prompt_text(choice))
        for token in tokens:
            offsets.append(offset)
            offset += sum(byte & _UNFINISHED != _CONTINUES for byte in token)
        self._offsets[choice.index] = offset
        return {
            "tokens": list(map(text_of, tokens)),
            "token_logprobs": [
                None if score is None else _finite(score.logprob) for score in every
            ],
            "top_logprobs": [None if score is None else _tops(score) for score in every],
            "text_offset": offsets,
        }


def _tops(score: Spelled) -> dict[str, float]:
    """The likeliest tokens, and the one that was taken. Of equal names the likelier counts."""
    tops: dict[str, float] = {}
    for token, logprob in (*score.top, (score.token, score.logprob)):
        tops.setdefault(text_of(token), _finite(logprob))
    return tops


def _chat_logprobs(scores: Sequence[Spelled]) -> dict[str, Any]:
    content = [
        {
            **_entry(score.token, score.logprob),
            "top_logprobs": [_entry(token, logprob) for token, logprob in score.top],
        }
        for score in scores
    ]
    return {"content": content, "refusal": None}


def _entry(token: bytes, logprob: float) -> dict[str, Any]:
    text = token.decode(errors="replace")
    return {"token": text, "logprob": _finite(logprob), "bytes": list(token)}


def _finite(logprob: float) -> float:
    return max(logprob, _LEAST)
