"""Every message there is. They go round in a ring: API → tokenizer → engine → detokenizer → API.

Each is checked against its type when it is read, so a stage may rely on what it gets. A request
keeps one number from the API to the trace: ``rid``.
"""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from minisgl.request import FinishReason
from minisgl.sampling import SamplingParams


class Message(Struct, frozen=True, tag=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """A record that names its kind. Arrays are shorter than maps, and need no other order."""


# ---- prompts, as a client gives them ----------------------------------------------------------


class Text(Message, frozen=True):
    """A plain prompt."""

    text: str


class Ids(Message, frozen=True):
    """A prompt that is tokenized already."""

    ids: tuple[int, ...]


class Chat(Message, frozen=True):
    """A conversation, for the model's chat template."""

    messages: tuple[dict[str, Any], ...]


Prompt = Text | Ids | Chat


# ---- questions --------------------------------------------------------------------------------


class Ask(Message, frozen=True):
    """Complete one prompt, once for each rid; rids only ever grow.

    With a seed, the n-th answer is drawn with seed + n.
    """

    rids: tuple[int, ...]
    prompt: Prompt
    sampling: SamplingParams
    echo: bool = False  # the prompt's text is wanted, too
    whole: bool = False  # nobody reads the answer before its end


class Generate(Message, frozen=True):
    """An ``Ask`` for one rid, tokenized."""

    rid: int
    prompt: tuple[int, ...]
    sampling: SamplingParams
    echo: bool = False
    whole: bool = False


class Cancel(Message, frozen=True):
    """End a request early. One that is unknown or over: nothing happens."""

    rid: int


class Encode(Message, frozen=True):
    """Which token ids a prompt has; ``key`` finds the answer's asker."""

    key: int
    prompt: Prompt


class Decode(Message, frozen=True):
    """Which text token ids have."""

    key: int
    ids: tuple[int, ...]


class Order(Message, frozen=True):
    """What an administrator asks of the engine: a verb and what it needs."""

    key: int
    verb: str
    given: dict[str, Any]


class Hello(Message, frozen=True):
    """Goes round the ring once: where it arrives, everybody is ready."""


class Stop(Message, frozen=True):
    """Finish what was asked before, pass this on, and end."""


# ---- answers ----------------------------------------------------------------------------------


class Ready(Message, frozen=True):
    """``Hello`` on its way back, with what the engine knows."""

    model: str
    config: dict[str, Any]  # the resolved configuration
    max_seq_len: int
    max_running: int
    vocab_size: int


class Refused(Message, frozen=True):
    """These requests were not taken; ``reason`` says why."""

    rids: tuple[int, ...]
    reason: str


class Reported(Message, frozen=True):
    """The answer to ``Encode``, ``Decode`` or ``Order``: what was found, or why nothing was."""

    key: int
    found: dict[str, Any] | None
    error: str | None = None


class Began(Message, frozen=True):
    """A request was taken. prompt: its token ids, where an echo was asked."""

    rid: int
    prompt_len: int
    prompt: tuple[int, ...] | None
    stops: tuple[str, ...]
    whole: bool


class Score(Message, frozen=True):
    """How likely a token was, and the likeliest ones."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


class Scored(Message, frozen=True):
    """The prompt's logprobs, complete; None for its first token."""

    rid: int
    scores: tuple[Score | None, ...]


class Token(Message, frozen=True):
    """A request's next token."""

    rid: int
    token: int
    score: Score | None = None


class Over(Message, frozen=True):
    """A request's end. stopped: the last token is no text."""

    rid: int
    reason: FinishReason
    stopped: bool
    text_len: int | None  # characters before the stop string that ended it
    cached: int  # prompt tokens that the prefix cache held
    first: float | None  # when its first token was there, by the monotonic clock
    error: str | None = None


class Load(Message, frozen=True):
    """The engine in numbers, after a step."""

    step: int
    free_pages: int
    cached_pages: int
    evictable_pages: int
    waiting: int
    running: int
    preempted: int  # requests, since the start
    paused: bool


class Watched(Message, frozen=True):
    """Lines of the run, for the one who watches it under this key."""

    key: int
    lines: str


class Spelled(Message, frozen=True):
    """A ``Score`` whose tokens are spelled out, as bytes."""

    token: bytes
    logprob: float
    top: tuple[tuple[bytes, float], ...]


class Opened(Message, frozen=True):
    """A request was taken; ``text`` is its prompt's, where an echo was asked."""

    rid: int
    prompt_len: int
    text: str | None


class Echo(Message, frozen=True):
    """The prompt's tokens spelled out with their logprobs; the first has none."""

    rid: int
    tokens: tuple[bytes, ...]
    scores: tuple[Spelled | None, ...]


class Piece(Message, frozen=True):
    """Text that is certain, the number of tokens seen for it, and their logprobs."""

    rid: int
    text: str
    num_tokens: int
    scores: tuple[Spelled, ...] = ()
    over: Over | None = None  # on the last piece


ToTokenizer = Ask | Cancel | Encode | Decode | Order | Hello | Stop
ToEngine = Generate | Cancel | Order | Hello | Stop
ToDetokenizer = Began | Scored | Token | Over | Load | Refused | Ready | Stop
ToApi = Opened | Echo | Piece | Load | Refused | Reported | Watched | Ready
