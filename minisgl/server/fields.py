"""What a client may send: the fields of every request, their bounds, and what they ask for.

Nothing is ignored: a field that is not served is refused by its name, unless it says what would
happen anyway. ``null`` is the same as leaving a field out.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Final, TypeVar

import msgspec
from msgspec import Meta, Struct

from minisgl.message.records import Chat, Ids, Prompt, Text
from minisgl.sampling import MAX_LOGPROBS, MAX_STOP_LEN, SamplingParams
from minisgl.server.errors import ApiError

MOST_ANSWERS: Final = 128  # n
MOST_PROMPTS: Final = 1024  # in one request
MOST_STOPS: Final = 64
MOST_BIASES: Final = 1024
MOST_MESSAGES: Final = 4096
MOST_PARTS: Final = 1024  # of one message
DEFAULT_TOKENS: Final = 16  # of /v1/completions, as OpenAI has it
_ALL: Final = 2**31 - 1  # max_tokens that the engine clips to what the context leaves

Name = Annotated[str, Meta(max_length=1024)]
StopText = Annotated[str, Meta(min_length=1, max_length=MAX_STOP_LEN)]
Seed = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Token = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Count = Annotated[int, Meta(ge=1, le=MOST_ANSWERS)]
NumTokens = Annotated[int, Meta(ge=0, le=2**31 - 1)]


class Strict(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """An object that has no other fields than these."""


class StreamOptions(Strict, frozen=True):
    """include_usage: end the stream with a chunk that has the usage and no choice."""

    include_usage: bool = False


class Part(Strict, frozen=True, tag_field="type", tag="text"):
    """A part of a message's content: text is all that is read."""

    text: str


class TurnOf(Strict, frozen=True):
    """One turn of a conversation. ``name`` goes to the model's chat template."""

    role: Annotated[str, Meta(min_length=1, max_length=64)]
    content: str | Annotated[list[Part], Meta(max_length=MOST_PARTS)]
    name: Name | None = None


class Common(Strict, kw_only=True, frozen=True):
    """What both kinds of completion share. Defaults are OpenAI's."""

    model: Name | None = None
    max_tokens: NumTokens | None = None
    temperature: Annotated[float, Meta(ge=0, le=100)] = 1.0
    top_p: Annotated[float, Meta(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Meta(ge=-1, le=2**63 - 1)] = -1
    min_p: Annotated[float, Meta(ge=0, le=1)] = 0.0
    seed: Seed | None = None
    stop: str | Annotated[list[StopText], Meta(max_length=MOST_STOPS)] = []
    stop_token_ids: Annotated[list[Token], Meta(max_length=MOST_STOPS)] = []
    n: Count = 1
    presence_penalty: Annotated[float, Meta(ge=-2, le=2)] = 0.0
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2)] = 0.0
    repetition_penalty: Annotated[float, Meta(ge=0.01, le=100)] = 1.0
    logit_bias: Annotated[
        dict[str, Annotated[float, Meta(ge=-100, le=100)]], Meta(max_length=MOST_BIASES)
    ] = {}
    ignore_eos: bool = False
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: Name | None = None

    def sampling(
        self, max_tokens: int, logprobs: int | None, scores_prompt: bool
    ) -> SamplingParams:
        """How the engine is to sample. Raises ``ApiError`` that names the field."""
        given = {name: getattr(self, name) for name in _PASSED_ON}
        biases = {_token_id(name): bias for name, bias in self.logit_bias.items()}
        try:
            return SamplingParams(
                **given,
                logit_bias=biases,
                max_tokens=max_tokens,
                logprobs=logprobs,
                prompt_logprobs=logprobs if scores_prompt else None,
            )
        except (TypeError, ValueError) as error:
            name = str(error).partition(" ")[0]
            raise ApiError(400, str(error), param=name if name in given else None) from error


_PASSED_ON: Final = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "stop",
    "stop_token_ids",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "ignore_eos",
)


class ChatRequest(Common, kw_only=True, frozen=True):
    """The body of ``POST /v1/chat/completions``."""

    messages: Annotated[list[TurnOf], Meta(min_length=1, max_length=MOST_MESSAGES)]
    max_completion_tokens: NumTokens | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] | None = None

    def prompts(self) -> list[Prompt]:
        """The one conversation."""
        turns = []
        for turn in self.messages:
            parts = turn.content if isinstance(turn.content, list) else [Part(turn.content)]
            named = {} if turn.name is None else {"name": turn.name}
            text = "".join(part.text for part in parts)
            turns.append({"role": turn.role, "content": text, **named})
        return [Chat(tuple(turns))]

    def asked(self) -> SamplingParams:
        """How the engine is to sample. Raises ``ApiError``."""
        if self.top_logprobs is not None and not self.logprobs:
            raise ApiError(400, "top_logprobs needs logprobs to be true", param="top_logprobs")
        if None not in (self.max_tokens, self.max_completion_tokens):
            raise ApiError(
                400, "give max_completion_tokens or max_tokens, not both", param="max_tokens"
            )
        most = self.max_tokens if self.max_tokens is not None else self.max_completion_tokens
        logprobs = (self.top_logprobs or 0) if self.logprobs else None
        return self.sampling(_ALL if most is None else most, logprobs, scores_prompt=False)


class CompletionRequest(Common, kw_only=True, frozen=True):
    """The body of ``POST /v1/completions``."""

    prompt: str | list[str | Token | list[Token]]
    logprobs: Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] | None = None
    echo: bool = False

    def prompts(self) -> list[Prompt]:
        """A text, a list of texts, token ids or a list of lists of them. Raises ``ApiError``."""
        if isinstance(self.prompt, str):
            return [Text(self.prompt)]
        if not self.prompt:
            raise ApiError(400, "the prompt is empty", param="prompt")
        kinds = {type(item) for item in self.prompt}
        if kinds == {int}:
            return [Ids(tuple(item for item in self.prompt if isinstance(item, int)))]
        if len(kinds) > 1:
            raise ApiError(
                400,
                "a prompt is a text, a list of texts, a list of token ids or a list of lists of "
                "token ids; this one is mixed",
                param="prompt",
            )
        if len(self.prompt) > MOST_PROMPTS:
            raise ApiError(
                400,
                f"{len(self.prompt)} prompts were given; at most {MOST_PROMPTS} may be",
                param="prompt",
            )
        texts: list[Prompt] = [Text(item) for item in self.prompt if isinstance(item, str)]
        return texts + [Ids(tuple(item)) for item in self.prompt if isinstance(item, list)]

    def asked(self) -> SamplingParams:
        """How the engine is to sample. Raises ``ApiError``."""
        most = DEFAULT_TOKENS if self.max_tokens is None else self.max_tokens
        return self.sampling(most, self.logprobs, scores_prompt=self.echo)


class TokenizeRequest(Strict, frozen=True):
    """The body of ``POST /tokenize``: a prompt or a conversation."""

    model: Name | None = None
    prompt: str | None = None
    messages: Annotated[list[TurnOf], Meta(min_length=1, max_length=MOST_MESSAGES)] | None = None

    def question(self) -> Prompt:
        """What is to be tokenized. Raises ``ApiError``."""
        if (self.prompt is None) == (self.messages is None):
            raise ApiError(400, "give either prompt or messages", param="prompt")
        if self.prompt is not None:
            return Text(self.prompt)
        assert self.messages is not None
        return ChatRequest(messages=self.messages).prompts()[0]


class DetokenizeRequest(Strict, frozen=True):
    """The body of ``POST /detokenize``."""

    tokens: list[Token]
    model: Name | None = None


class StepRequest(Strict, frozen=True):
    """The body of ``POST /admin/step``: how many steps a paused engine makes."""

    steps: Annotated[int, Meta(ge=1, le=1_000_000)] = 1


class AbortRequest(Strict, frozen=True):
    """The body of ``POST /admin/abort``: the requests to end; None: every one."""

    rids: Annotated[list[Token], Meta(max_length=MOST_PROMPTS)] | None = None


class RecordRequest(Strict, frozen=True):
    """The body of ``POST /admin/record``: whether to record, which goes where --record says."""

    on: bool


# Fields of OpenAI's that are not served, each with the values that ask for what happens anyway.
_NOT_SERVED: Final[dict[str, tuple[Any, ...]]] = {
    "audio": (),
    "best_of": (1,),
    "function_call": ("none",),
    "functions": ([],),
    "logit_mask": (),
    "metadata": ({},),
    "modalities": (["text"],),
    "parallel_tool_calls": (True, False),  # they say how tools would be called
    "prediction": (),
    "reasoning_effort": (),
    "response_format": ({"type": "text"},),
    "safety_identifier": (),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "suffix": ("",),
    "tool_choice": ("none",),
    "tools": ([],),
    "verbosity": (),
    "web_search_options": (),
}

_PARTS_AT: Final = 5  # objects and lists down to a part of a message, that included
_MISSING: Final = re.compile(r"Object missing required field `(\w+)`")

R = TypeVar("R", bound=Strict)


def read(body: bytes, kind: type[R]) -> R:
    """The request in a body. Raises ``ApiError`` that names what is wrong."""
    try:
        given = msgspec.json.decode(body or b"{}")
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is not JSON that can be read: {error}") from error
    if not isinstance(given, dict):
        raise ApiError(400, f"the body must be a JSON object, it is a {_kind(given)}")
    given = _without_nulls(given, _PARTS_AT)
    for name in sorted(given.keys() - set(kind.__struct_fields__)):
        if name not in _NOT_SERVED:
            raise ApiError(
                400, f"unknown field {name[:100]!r}", param=name[:100], code="unknown_parameter"
            )
        value = given.pop(name)
        if not any(type(value) is type(same) and value == same for same in _NOT_SERVED[name]):
            raise ApiError(
                400,
                f"this server does not have {name}; leave it out",
                param=name,
                code="unsupported_parameter",
            )
    try:
        return msgspec.convert(given, kind)
    except (msgspec.ValidationError, RecursionError) as error:
        message, _, path = str(error).partition(" - at `$.")
        if path.endswith("].type`"):
            message += "; of a message's parts, text alone is read"
        path = path.rstrip("`") or _MISSING.sub(r"\1", message) * bool(_MISSING.match(message))
        raise ApiError(
            400, f"{path}: {message}" if path else message, param=path or None
        ) from error


def _token_id(name: str) -> int:
    """A token id that stands as the name of a JSON field."""
    if not re.fullmatch("0|[1-9][0-9]{0,8}", name):  # two names would be one token
        raise ApiError(
            400, f"logit_bias names {name[:40]!r}, which is no token id", param="logit_bias"
        )
    return int(name)


def _without_nulls(value: Any, depth: int) -> Any:
    """The same without the fields that are null. What is no field stays: an item, a bias."""
    if depth and isinstance(value, dict):
        return {
            name: item if name == "logit_bias" else _without_nulls(item, depth - 1)
            for name, item in value.items()
            if item is not None
        }
    if depth and isinstance(value, list) and any(isinstance(item, dict) for item in value):
        return [_without_nulls(item, depth - 1) for item in value]
    return value


def _kind(value: object) -> str:
    names = {list: "list", str: "string", int: "number", float: "number", bool: "boolean"}
    return names.get(type(value), "null")
