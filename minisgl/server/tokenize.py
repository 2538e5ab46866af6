"""The tokenizer process: prompts in, token ids out to the engine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from minisgl.engine.prompt import needed
from minisgl.message.records import (
    Ask,
    Cancel,
    Chat,
    Decode,
    Encode,
    Generate,
    Hello,
    Ids,
    Order,
    Prompt,
    Refused,
    Reported,
    Stop,
    Text,
    ToApi,
    ToEngine,
    ToTokenizer,
)
from minisgl.message.wire import Inbox, Outbox
from minisgl.sampling import SamplingParams
from minisgl.server.links import Links
from minisgl.server.stage import Report
from minisgl.tokenizer import TextCodec, load_codec

_SEEDS: Final = 1 << 64


@dataclass(frozen=True)
class Tokenize:
    """The work of the tokenizer process, for the model in ``folder``."""

    folder: Path

    def __call__(self, links: Links, report: Report) -> None:
        """Run until a ``Stop`` has passed."""
        codec = load_codec(self.folder)
        inbox: Inbox[Any] = Inbox(links.tokenizer, ToTokenizer)
        engine: Outbox[Any] = Outbox(links.engine)
        api: Outbox[Any] = Outbox(links.api)
        with inbox, engine, api:
            while True:
                messages = inbox.receive()
                cancelled = {m.rid for m in messages if isinstance(m, Cancel)}
                for message in messages:
                    if isinstance(message, Ask) and cancelled.issuperset(message.rids):
                        continue  # nobody waits for it any more
                    to_engine, to_api = handle(message, codec)
                    engine.send(*to_engine)
                    api.send(*to_api)
                    if isinstance(message, Stop):
                        return


def handle(message: ToTokenizer, codec: TextCodec | None) -> tuple[list[ToEngine], list[ToApi]]:
    """What a message makes: messages for the engine, and for the API."""
    match message:
        case Ask(rids=rids, prompt=prompt):
            try:
                ids = tuple(token_ids(prompt, codec))
            except (TypeError, ValueError) as error:
                return [], [Refused(rids, str(error))]
            return list(_generations(message, ids)), []
        case Encode(key=key, prompt=prompt):
            try:
                return [], [Reported(key, {"ids": list(token_ids(prompt, codec))})]
            except (TypeError, ValueError) as error:
                return [], [Reported(key, None, str(error))]
        case Decode(key=key, ids=ids):
            try:
                return [], [Reported(key, {"text": _decoded(ids, codec)})]
            except ValueError as error:
                return [], [Reported(key, None, str(error))]
        case Cancel() | Order() | Hello() | Stop():
            return [message], []


def token_ids(prompt: Prompt, codec: TextCodec | None) -> list[int]:
    """The ids of a prompt. Raises TypeError or ValueError that says what is wrong with it."""
    match prompt:
        case Ids(ids=ids):
            return list(ids)
        case Text(text=text):
            return needed_text(codec).encode(text)
        case Chat(messages=messages):
            return needed_text(codec).chat(messages)


def needed_text(codec: TextCodec | None) -> TextCodec:
    """The codec, where text is to be read. Raises ValueError if there is none."""
    needed(codec)
    assert codec is not None
    return codec


def _decoded(ids: tuple[int, ...], codec: TextCodec | None) -> str:
    for token in ids:
        if not 0 <= token < 1 << 32:
            raise ValueError(f"{token} is no token id")
    return needed_text(codec).decode(ids)


def _generations(ask: Ask, ids: tuple[int, ...]) -> Iterator[Generate]:
    for n, rid in enumerate(ask.rids):
        yield Generate(rid, ids, _seeded(ask.sampling, n), ask.echo, ask.whole)


def _seeded(sampling: SamplingParams, n: int) -> SamplingParams:
    """The n-th answer's own seed; without one, the engine gives each rid another."""
    if sampling.seed is None or n == 0:
        return sampling
    return replace(sampling, seed=(sampling.seed + n + _SEEDS // 2) % _SEEDS - _SEEDS // 2)
