"""Run to completion: prompts in, finished texts out. Every step is the engine's own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from tqdm.auto import tqdm

from minisgl.build import load
from minisgl.config import EngineConfig
from minisgl.core import Finished, FinishReason, Logprob, Request, SamplingParams
from minisgl.engine.engine import Engine
from minisgl.engine.prompt import Prompt
from minisgl.tokenizer.answer import Answer

Chat = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Output:
    """What became of one prompt. ``text`` is None where the model has no tokenizer."""

    rid: int
    prompt_token_ids: tuple[int, ...]
    text: str | None
    token_ids: tuple[int, ...]  # a stop token included
    finish_reason: FinishReason
    stopped_by: int | str | None  # the token or the stop string, where finish_reason is "stop"
    logprobs: tuple[Logprob, ...] | None
    prompt_logprobs: tuple[Logprob | None, ...] | None
    num_cached: int  # prompt tokens that the prefix cache held
    error: str | None  # what failed, where finish_reason is "error"


class Piece(NamedTuple):
    """A part of a stream: new text, and the tokens seen since the last part."""

    text: str | None  # None where the model has no tokenizer
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None  # on the last part


class LLM:
    """A model that answers whole lists of prompts. ``engine`` does the work and may be looked into.

    model, config, toggles: as for ``minisgl.load``. Usable with ``with``.
    """

    def __init__(
        self, model: str | Path = "tiny", config: EngineConfig | None = None, **toggles: Any
    ) -> None:
        self.engine = load(model, config, **toggles)

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling: SamplingParams | Sequence[SamplingParams] | None = None,
        progress: bool = True,
    ) -> list[Output]:
        """Complete prompts, and whatever else the engine has to do. Outputs in their order.

        prompts: texts, lists of token ids or chats, or a single one of these. sampling: one for all
        or one for each. progress: a bar, on a terminal, once it takes more than a second.
        A prompt that fails on the device has the finish reason "error"; the others go on.
        Raises TypeError or ValueError, naming the prompt, before anything runs; interrupted, it
        aborts what is left, and the engine can be used again.
        """
        requests = self._add(_as_list(prompts), sampling)
        mine, left = {request.rid for request in requests}, len(requests)
        try:
            with tqdm(
                total=left, unit="prompt", delay=1, disable=None if progress else True
            ) as bar:
                for record in self.engine.steps():
                    over = [event for event in record.events if isinstance(event, Finished)]
                    bar.update(sum(event.rid in mine for event in over))
        finally:
            _abort(self.engine, requests)
        return [_output(request) for request in requests]

    def chat(
        self,
        messages: Chat | Sequence[Chat],
        sampling: SamplingParams | Sequence[SamplingParams] | None = None,
        progress: bool = True,
    ) -> list[Output]:
        """The assistant's next turn in a conversation, or in each of several; as ``generate``.

        Raises TypeError for anything but messages or lists of messages.
        """
        chats = _as_list(messages)
        for i, chat in enumerate(chats):
            if not _is_chat(chat):
                raise TypeError(f"conversation {i} must be a list of messages, got {chat!r:.80}")
        return self.generate(chats, sampling, progress)

    def stream(self, prompt: Prompt, sampling: SamplingParams | None = None) -> Iterator[Piece]:
        """The answer to one prompt while it is made. The texts joined are the request's text.

        Text is held back while a further token can still change it or make it a stop string.
        A stream that is closed early aborts its request; several may run by turns.
        """
        return stream(self.engine, self.engine.add(prompt, sampling))

    def close(self) -> None:
        """Give back the engine's memory and threads."""
        self.engine.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"LLM({self.engine!r})"

    def _add(
        self, prompts: Sequence[Prompt], sampling: SamplingParams | Sequence[SamplingParams] | None
    ) -> list[Request]:
        """Queue all of them, or none."""
        if sampling is None or isinstance(sampling, SamplingParams):
            sampling = [sampling or SamplingParams()] * len(prompts)
        elif len(sampling) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts came with {len(sampling)} SamplingParams")
        requests: list[Request] = []
        for i, (prompt, params) in enumerate(zip(prompts, sampling, strict=True)):
            try:
                requests.append(self.engine.add(prompt, params))
            except (TypeError, ValueError) as error:
                _abort(self.engine, requests)
                raise type(error)(f"prompt {i}: {error}") from error
        return requests


def stream(engine: Engine, request: Request) -> Iterator[Piece]:
    """A request's answer while it is made; see ``LLM.stream``. The engine steps for it."""
    codec = engine.codec
    answer = Answer(codec.detokenizer(), request.sampling.stop) if codec else None
    read = given = 0  # tokens
    try:
        while request.finish is None:
            engine.step()
            output = request.output
            if request.finish is not None or len(output) == read:
                continue
            piece = answer.feed(output[read:]) if answer else None
            read = len(output)
            if piece != "":
                yield Piece(piece, output[given:], None)
                given = read
        rest = None
        if answer:
            rest = answer.end(request.text_ids[read:], request.text_len)
        yield Piece(rest, request.output[given:], request.finish)
    finally:
        _abort(engine, [request])


def _abort(engine: Engine, requests: Sequence[Request]) -> None:
    with suppress(RuntimeError):  # the engine was closed: nothing runs any more
        for request in requests:
            if request.finish is None:
                engine.abort(request.rid)


def _is_chat(prompt: object) -> bool:
    if isinstance(prompt, str) or not isinstance(prompt, Sequence):
        return False
    return bool(prompt) and all(isinstance(message, Mapping) for message in prompt)


def _as_list(prompts: Any) -> list[Any]:
    """A list of prompts; one prompt, a text, a chat or token ids, becomes a list of itself."""
    if isinstance(prompts, str) or _is_chat(prompts) or not isinstance(prompts, Sequence):
        return [prompts]
    is_ids = bool(prompts) and not any(hasattr(part, "__len__") for part in prompts)
    return [prompts] if is_ids else list(prompts)


def _output(request: Request) -> Output:
    assert request.finish is not None, "run to completion"
    return Output(
        request.rid,
        request.prompt,
        request.text if request.decode else None,
        request.output,
        request.finish,
        request.stopped_by,
        request.logprobs,
        request.prompt_logprobs,
        request.cached,
        request.error,
    )
