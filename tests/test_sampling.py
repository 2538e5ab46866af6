"""Sampling parameters: what is normal passes unchanged, what is hostile is refused by name."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from minisgl.sampling import SamplingParams, request_seed


@pytest.mark.parametrize(
    ("wrong", "error", "says"),
    [
        ({"temperature": float("nan")}, ValueError, "temperature must be from 0 to 100, got nan"),
        ({"temperature": float("inf")}, ValueError, "temperature .* got inf"),
        ({"temperature": -0.1}, ValueError, "temperature"),
        ({"temperature": 10**400}, ValueError, "temperature .* got inf"),
        ({"temperature": "1"}, TypeError, "temperature must be a number, got '1'"),
        ({"temperature": None}, TypeError, "temperature"),
        ({"temperature": True}, TypeError, "temperature"),
        ({"temperature": 1j}, TypeError, "temperature"),
        ({"top_k": 0}, ValueError, "top_k must be -1"),
        ({"top_k": -2}, ValueError, "top_k"),
        ({"top_k": 1.0}, TypeError, "top_k"),
        ({"top_k": 10**400}, ValueError, "top_k must be at most"),
        ({"top_p": 0}, ValueError, "top_p must be above 0"),
        ({"top_p": 1.0001}, ValueError, "top_p"),
        ({"top_p": float("nan")}, ValueError, "top_p"),
        ({"min_p": -1e-9}, ValueError, "min_p"),
        ({"min_p": 2}, ValueError, "min_p"),
        ({"max_tokens": -1}, ValueError, "max_tokens must be at least 0, got -1"),
        ({"max_tokens": 1.5}, TypeError, "max_tokens"),
        ({"ignore_eos": "yes"}, TypeError, "ignore_eos"),
        ({"seed": 1.5}, TypeError, "seed"),
        ({"seed": 2**63}, ValueError, "seed must be at most"),
        ({"seed": -(2**63) - 1}, ValueError, "seed"),
        ({"stop": ""}, ValueError, "a stop string has 1 to 1024 characters, got 0"),
        ({"stop": ["a", ""]}, ValueError, "a stop string has 1 to"),
        ({"stop": ["a" * 1025]}, ValueError, "got 1025"),
        ({"stop": [1]}, TypeError, "stop must hold strings, got 1"),
        ({"stop": b"a"}, TypeError, "stop must be a list of strings"),
        ({"stop": {"a"}}, TypeError, "stop must be a list of strings"),
        ({"stop": ["a"] * 20000}, ValueError, "stop must hold at most 16384 strings, got 20000"),
        ({"stop_token_ids": "12"}, TypeError, "stop_token_ids"),
        ({"stop_token_ids": 3}, TypeError, "stop_token_ids"),
        ({"stop_token_ids": (-1,)}, ValueError, "stop_token_ids"),
        ({"repetition_penalty": 0}, ValueError, "repetition_penalty must be from 0.01 to 100"),
        ({"repetition_penalty": float("-inf")}, ValueError, "repetition_penalty"),
        ({"presence_penalty": 2.5}, ValueError, "presence_penalty must be from -2 to 2"),
        ({"frequency_penalty": float("nan")}, ValueError, "frequency_penalty"),
        ({"logprobs": 10**6}, ValueError, "logprobs must be at most 20, got 1000000"),
        ({"logprobs": -1}, ValueError, "logprobs"),
        ({"logprobs": True}, TypeError, "logprobs"),
        ({"prompt_logprobs": 21}, ValueError, "prompt_logprobs"),
        ({"prompt_logprobs": "all"}, TypeError, "prompt_logprobs"),
        ({"logit_bias": {1: 101}}, ValueError, "a number of logit_bias must be from -100 to 100"),
        ({"logit_bias": {1: float("nan")}}, ValueError, "logit_bias"),
        ({"logit_bias": {-1: 1}}, ValueError, "a token id of logit_bias must be at least 0"),
        ({"logit_bias": {"1": 1}}, TypeError, "a token id of logit_bias must be an integer"),
        ({"logit_bias": [1]}, TypeError, "logit_bias must hold pairs"),
        ({"logit_bias": "12"}, TypeError, "logit_bias must be a list of pairs"),
        ({"logit_bias": 3}, TypeError, "logit_bias"),
        ({"logit_bias": dict.fromkeys(range(1025), 0)}, ValueError, "at most 1024, got 1025"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_wrong_value_is_refused_by_name(
    wrong: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        SamplingParams(**wrong)


def test_the_fields_stand_in_the_promised_order() -> None:
    names = "temperature top_k top_p min_p max_tokens ignore_eos seed stop stop_token_ids "
    names += (
        "repetition_penalty presence_penalty frequency_penalty logprobs prompt_logprobs logit_bias"
    )
    assert " ".join(SamplingParams.__dataclass_fields__) == names


def test_numbers_of_any_make_become_pythons_own() -> None:
    given: Any = (np.float32(0.5), np.int64(2**40), Fraction(1, 2), 0, np.int32(3), False)
    given += (np.int64(-7),)
    sampling = SamplingParams(*given)
    got = (sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p, sampling.seed)
    assert got == (0.5, 2**40, 0.5, 0.0, -7)
    assert [type(x) for x in got] == [float, int, float, float, int]
    biased = SamplingParams(logit_bias={np.int64(7): 1, 2: np.float32(-0.5)})
    assert biased.biases == ((2, -0.5), (7, 1.0)) and type(biased.biases[1][0]) is int
    read: Any = [[7, 1], [2, -0.5]]  # as JSON has it
    assert SamplingParams(logit_bias=read) == biased
    assert SamplingParams(stop="ab").stop == ("ab",)
    assert SamplingParams(stop=["ab", "c"], stop_token_ids=[1, 2]).stop_token_ids == (1, 2)


def test_only_what_needs_more_than_the_largest_logit_is_not_plain() -> None:
    cases: list[tuple[bool, dict[str, Any]]] = [
        (True, {}),
        (True, {"top_k": 3, "stop": "x", "seed": 4}),
        (True, {"temperature": 1e-6}),
        (False, {"temperature": 0.1}),
        (False, {"logprobs": 0}),
        (False, {"prompt_logprobs": 0}),
        (False, {"presence_penalty": 0.1}),
        (False, {"logit_bias": {3: 1}}),
    ]
    for plain, fields in cases:
        assert SamplingParams(**fields).plain is plain


def test_requests_get_seeds_of_their_own() -> None:
    seeds = {request_seed(engine, rid) for engine in range(50) for rid in range(200)}
    assert len(seeds) == 50 * 200 and all(0 <= seed < 2**63 for seed in seeds)
    assert request_seed(0, 0) == 6017775124710473527, "recorded, for traces of other days"
