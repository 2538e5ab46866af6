"""One generation and how far it is. Integers only, until somebody asks for its text.

A token's position is *computed* once its key and value are in the KV pages. The step that computes
the last known position of a request samples the token of the next one, so the last sampled token of
a request is never fed back and needs no position.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Literal, NamedTuple

from minisgl.display import Html, Part, bar, card, table
from minisgl.sampling import SamplingParams

FinishReason = Literal["stop", "length", "abort", "error"]


class Logprob(NamedTuple):
    """How likely the model found a token, by its raw distribution: no penalty, no temperature."""

    logprob: float  # natural logarithm of the probability
    rank: int  # 1 for the likeliest; equals share the better rank
    top: tuple[tuple[int, float], ...] = ()  # the likeliest tokens and their logprobs, best first


@dataclass(eq=False, slots=True)
class Request:
    """One generation. Owned and changed by the scheduler alone; everyone else reads it.

    Public: ``rid``, ``prompt``, ``output``, ``text``, ``finish``, ``stopped_by``, ``error``,
    ``logprobs``, ``prompt_logprobs``, ``cached``, ``sampling``, ``clipped_from``. The rest is the
    scheduler's account of pages, slot, steps in flight and what else a row needs.
    """

    rid: int
    tokens: list[int]  # the prompt, then every sampled token that the host has seen
    prompt_len: int
    sampling: SamplingParams
    arrival: int = 0  # the step that was next when it was added
    clipped_from: int | None = None  # the max_tokens asked for, where the context holds fewer
    decode: Callable[[Sequence[int]], str] | None = field(default=None, repr=False)
    finish: FinishReason | None = None
    error: str | None = None  # what failed, where finish is "error"
    stopped_by: int | str | None = None  # the token or the stop string, where finish is "stop"
    cached: int = 0  # positions found in the prefix cache at its first admission
    # the scheduler's account
    max_len: int = field(init=False)  # positions it can ever need
    plain: bool = True  # its rows bring nothing for sampling
    stop_ids: frozenset[int] = frozenset()  # tokens that end it
    text_len: int | None = None  # characters of its output before the stop string that ended it
    scores: list[Logprob] = field(default_factory=list)  # of the output, where asked
    prompt_scores: list[Logprob] = field(default_factory=list)  # of prompt[1:], as far as computed
    slot: int | None = None  # row of the device tables while it runs
    pages: list[int] = field(default_factory=list)  # page i holds positions [i*P, (i+1)*P)
    promised: int = 0  # further pages the pool keeps for it
    prefill_end: int = 0  # tokens known at admission; later inputs are already on the device
    scheduled: int = 0  # positions [0, scheduled) are computed or in flight
    shared: int = 0  # its first pages that are the prefix cache's own
    in_flight: int = 0  # launched and not yet collected steps that name it
    preempting: bool = False  # pages and slot go back once nothing is in flight
    preemptions: int = 0
    tainted: bool = False  # a failed step may have written its pages

    def __post_init__(self) -> None:
        self.max_len = self.prompt_len + max(self.sampling.max_tokens, 1) - 1

    @property
    def prompt(self) -> tuple[int, ...]:
        """The prompt's token ids."""
        return tuple(self.tokens[: self.prompt_len])

    @property
    def output(self) -> tuple[int, ...]:
        """The generated token ids, a stop token included."""
        return tuple(self.tokens[self.prompt_len :])

    @property
    def text(self) -> str:
        """The generated text so far, without the token that stopped it.

        A stop string and all after it are left out. Raises ValueError if the model was loaded
        without a tokenizer.
        """
        if self.decode is None:
            raise ValueError(f"request {self.rid}: this model has no tokenizer; read .output")
        return self.decode(self.text_ids)[: self.text_len]

    @property
    def text_ids(self) -> tuple[int, ...]:
        """The generated token ids that are read as text: without the token that stopped it."""
        by_token = self.finish == "stop" and self.text_len is None
        return self.output[:-1] if by_token else self.output

    @property
    def logprobs(self) -> tuple[Logprob, ...] | None:
        """One for each output token; None if they were not asked for."""
        return None if self.sampling.logprobs is None else tuple(self.scores)

    @property
    def prompt_logprobs(self) -> tuple[Logprob | None, ...] | None:
        """One for each prompt token computed so far, None for the first, which nothing precedes.

        None if they were not asked for.
        """
        if self.sampling.prompt_logprobs is None:
            return None
        return (None, *self.prompt_scores)

    @property
    def scores_prompt(self) -> bool:
        """Whether logprobs of its prompt are still to come: then it reuses no cached page."""
        asked = self.sampling.prompt_logprobs is not None
        return asked and len(self.prompt_scores) < self.prompt_len - 1

    @property
    def state(self) -> str:
        """``waiting``, ``running``, or how it ended."""
        return self.finish or ("waiting" if self.slot is None else "running")

    def shown(self, tokens: Sequence[int]) -> str:
        """Tokens for people: as text, or the ids of a model that has no tokenizer."""
        return self.decode(tokens) if self.decode else " ".join(map(str, tokens))

    def __repr__(self) -> str:
        made = len(self.tokens) - self.prompt_len
        return f"Request({self.rid}: {self.state}, prompt {self.prompt_len}, output {made})"

    def _repr_html_(self) -> Html:
        made, done = len(self.tokens) - self.prompt_len, min(self.scheduled, self.prompt_len)
        reused = min(self.cached, done)
        to_come = self.sampling.max_tokens - made if self.finish is None else 0
        life = (
            Part("reused", reused, "reused"),
            Part("prefill", done - reused, "prefill"),
            Part("prompt to come", self.prompt_len - done, "waiting"),
            Part("output", made, "decode"),
            Part("at most to come", to_come, "free"),
        )
        asked = [
            f"{option.name}={getattr(self.sampling, option.name)!r}"
            for option in fields(self.sampling)
            if getattr(self.sampling, option.name) != option.default
        ]
        facts = [
            ("prompt", self.shown(self.prompt)),
            ("output", self.text if self.decode else self.shown(self.output)),
            ("sampling", ", ".join(asked) or "as by default"),
        ]
        if self.clipped_from is not None:
            fits = f"max_tokens {self.clipped_from} asked, {self.sampling.max_tokens} fit"
            facts.append(("clipped", fits))
        if self.error is not None:
            facts.append(("error", self.error))
        says = f"{self.state}: prompt {self.prompt_len}, output {made}"
        return card(f"Request {self.rid}", says, bar("tokens", life), table((), facts))
