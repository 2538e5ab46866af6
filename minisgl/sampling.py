"""How one request generates: numbers and lists, checked once. Knows no request and no device."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from numbers import Real
from typing import Final, SupportsIndex

GREEDY_BELOW: Final = 1e-5  # a lower temperature than this is none: the likeliest token
MAX_LOGPROBS: Final = 20  # alternatives reported per token, as OpenAI's API allows
MAX_STOPS: Final = 16384  # stop strings of one request
MAX_STOP_LEN: Final = 1024  # characters of one of them
MAX_BIASES: Final = 1024  # tokens of one request that have a bias

_MASK: Final = 0xFFFFFFFFFFFFFFFF
_GAMMA: Final = 0x9E3779B97F4A7C15


def as_int(name: str, value: object, least: int) -> int:
    """``value`` as an int of at least ``least``; numpy integers pass, bools and floats do not.

    Raises TypeError for anything that is not a whole number, ValueError for one that is too small.
    """
    if type(value) is int and value >= least:  # the common case, for every id of a prompt
        return value
    if isinstance(value, bool) or not isinstance(value, SupportsIndex):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    number = operator.index(value)
    if number < least:
        raise ValueError(f"{name} must be at least {least}, got {number}")
    return number


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one request generates. By default greedily: the token with the largest logit.

    The logits go through these, in this order (that of transformers; vLLM has min_p before top_k):

    logit_bias: token id -> -100 to 100, which is added to its logit; for 1024 tokens at most. Kept
        as pairs in order of the ids.
    repetition_penalty: 0.01 to 100; logits of tokens in prompt or output are divided by it where
        positive, multiplied where negative. Source: Keskar et al. 2019, sec. 4.1.
    presence_penalty, frequency_penalty: -2 to 2; subtracted from the logits of tokens in the output
        (not the prompt, as OpenAI and vLLM have it), once and once per occurrence.
    temperature: 0 to 100; divides the logits. Below 1e-5 the largest is taken, the first of equals.
    top_k: keep so many of the largest; -1, or more than the vocabulary holds: all.
    top_p: above 0, to 1; keep the likeliest tokens until their probabilities reach it.
    min_p: 0 to 1; keep tokens at least this times as likely as the likeliest.

    Equal logits are kept or left out together. The token is then drawn with noise that is a
    function of seed and output index alone: neighbours, preemption or a rewind do not change it.

    max_tokens: tokens to generate at most; 0 computes the prompt and generates nothing.
    ignore_eos: go on past the model's end-of-sequence tokens (benchmarks need fixed lengths).
    seed: a 64-bit signed integer; None: made from the engine's seed and the request's number.
    stop: strings, 16384 of 1024 characters at most, that end the request with finish reason "stop".
        The match that ends first counts, the longest of those; the text ends before it.
    stop_token_ids: further tokens that end the request, with finish reason "stop".
    logprobs: report each output token's log probability and so many of the likeliest, 20 at most.
        They are of the raw distribution, before any of the above. None: report nothing.
    prompt_logprobs: the same for the prompt's tokens; its whole prompt is then computed.

    Raises TypeError for a wrong type and ValueError for a wrong value, naming the field.
    """

    temperature: float = 0.0
    top_k: int = -1
    top_p: float = 1.0
    min_p: float = 0.0
    max_tokens: int = 128
    ignore_eos: bool = False
    seed: int | None = None
    stop: str | Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    logit_bias: Mapping[int, float] | Sequence[tuple[int, float]] = ()

    def __post_init__(self) -> None:
        def settle(name: str, value: object) -> None:
            object.__setattr__(self, name, value)  # frozen: only here is a field normalised

        for name, low, high in _RANGES:
            settle(name, _as_float(name, getattr(self, name), low, high))
        if self.top_p == 0:
            raise ValueError(
                "top_p must be above 0, got 0.0; for greedy decoding use temperature=0"
            )
        if not isinstance(self.ignore_eos, bool):
            raise TypeError(f"ignore_eos must be True or False, got {self.ignore_eos!r}")
        settle("max_tokens", as_int("max_tokens", self.max_tokens, 0))
        settle("top_k", as_int("top_k", self.top_k, -1))
        _at_most("top_k", self.top_k, 2**63 - 1)
        if self.top_k == 0:
            raise ValueError("top_k must be -1 (all tokens) or at least 1, got 0")
        if self.seed is not None:
            settle("seed", as_int("seed", self.seed, -(2**63)))
            _at_most("seed", self.seed, 2**63 - 1)
        for name in ("logprobs", "prompt_logprobs"):
            if (value := getattr(self, name)) is not None:
                settle(name, as_int(name, value, 0))
                _at_most(name, getattr(self, name), MAX_LOGPROBS)
        ids = _as_tuple("stop_token_ids", self.stop_token_ids, "ids")
        settle("stop_token_ids", tuple(as_int("one of stop_token_ids", x, 0) for x in ids))
        one = isinstance(self.stop, str)
        settle("logit_bias", _biases(self.logit_bias))
        settle("stop", _stops((self.stop,) if one else _as_tuple("stop", self.stop, "strings")))

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken, without chance."""
        return self.temperature < GREEDY_BELOW

    @property
    def biases(self) -> tuple[tuple[int, float], ...]:
        """``logit_bias`` as it is kept: pairs of a token id and what its logit gains."""
        assert isinstance(self.logit_bias, tuple)
        return self.logit_bias

    @property
    def penalises(self) -> bool:
        """Whether the tokens so far change the logits."""
        penalties = (self.repetition_penalty, self.presence_penalty, self.frequency_penalty)
        return penalties != (1.0, 0.0, 0.0)

    @property
    def plain(self) -> bool:
        """Whether the largest raw logit is all there is to know of a step."""
        reports = self.logprobs is not None or self.prompt_logprobs is not None
        return self.greedy and not self.penalises and not reports and not self.logit_bias


_RANGES: Final = (
    ("temperature", 0.0, 100.0),
    ("top_p", 0.0, 1.0),
    ("min_p", 0.0, 1.0),
    ("repetition_penalty", 0.01, 100.0),
    ("presence_penalty", -2.0, 2.0),
    ("frequency_penalty", -2.0, 2.0),
)


def request_seed(engine_seed: int, rid: int) -> int:
    """The seed of a request that names none: SplitMix64 of both, without the sign bit.

    Source: Steele, Lea, Flood 2014, fig. 14.
    """
    state = engine_seed & _MASK
    for number in (rid, 0):
        state = (state + (number + 1) * _GAMMA) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state >> 1


def _as_float(name: str, value: object, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {value!r}")
    try:
        number = float(value)
    except OverflowError:
        number = inf
    if not low <= number <= high:  # NaN is in no range
        raise ValueError(f"{name} must be from {low:g} to {high:g}, got {number}")
    return number


def _at_most(name: str, value: int | None, most: int) -> None:
    if value is not None and value > most:
        raise ValueError(f"{name} must be at most {most}, got {value}")


def _as_tuple(name: str, value: object, of: str) -> tuple[object, ...]:
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
        raise TypeError(f"{name} must be a list of {of}, got {value!r}")
    return tuple(value)


def _biases(given: object) -> tuple[tuple[int, float], ...]:
    pairs = given.items() if isinstance(given, Mapping) else _as_tuple("logit_bias", given, "pairs")
    biases: dict[int, float] = {}
    for pair in pairs:
        if isinstance(pair, str) or not isinstance(pair, Sequence) or len(pair) != 2:
            raise TypeError(f"logit_bias must hold pairs of a token id and a number, got {pair!r}")
        token = as_int("a token id of logit_bias", pair[0], 0)
        biases[token] = _as_float("a number of logit_bias", pair[1], -100.0, 100.0)
    _at_most("the number of tokens in logit_bias", len(biases), MAX_BIASES)
    return tuple(sorted(biases.items()))


def _stops(strings: tuple[object, ...]) -> tuple[str, ...]:
    if len(strings) > MAX_STOPS:
        raise ValueError(f"stop must hold at most {MAX_STOPS} strings, got {len(strings)}")
    out = []
    for text in strings:
        if not isinstance(text, str):
            raise TypeError(f"stop must hold strings, got {text!r}")
        if not 1 <= len(text) <= MAX_STOP_LEN:
            raise ValueError(f"a stop string has 1 to {MAX_STOP_LEN} characters, got {len(text)}")
        out.append(text)
    return tuple(out)
