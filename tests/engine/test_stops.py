"""Stop strings end a request at the right character, however the text is cut into tokens."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from time import perf_counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minisgl.core import Finished, Request, SamplingParams
from minisgl.engine.engine import Engine
from minisgl.tokenizer.detokenizer import Detokenizer
from tests.hash_engine import VOCAB, hash_engine

# one token may be several characters, and half of one; token 0 ends a text and is no text
PIECES = [b"", b"a", b"b", b"ab", b"ba", b"aab", b" ", "é".encode()[:1], "é".encode()[1:], b"a b"]
PIECES += [b"b" * 5, b"abab", b"a"]


class Bytes:
    """A codec of the hash model's thirteen tokens."""

    def encode(self, text: str) -> list[int]:
        raise NotImplementedError

    def chat(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        raise NotImplementedError

    def decode(self, ids: Sequence[int]) -> str:
        return b"".join(PIECES[token] for token in ids).decode(errors="replace")

    def detokenizer(self) -> Detokenizer:
        return Detokenizer(self.decode, lambda token: token == 0, frozenset())


def engine(**options: Any) -> Engine:
    return hash_engine(codec=Bytes(), num_pages=80, **options)


def first_match(text: str, stops: Iterable[str]) -> tuple[int, str] | None:
    """(begin, string) of the match that ends first, the longest of those."""
    ends = [(text.find(s) + len(s), -len(s), s) for s in stops if s in text]
    return (min(ends)[0] + min(ends)[1], min(ends)[2]) if ends else None


def check(request: Request, free: Request) -> None:
    """free: the same without stop strings."""
    ids = free.output[: -1 if free.finish == "stop" else None]
    text = Bytes().decode(ids)
    match = first_match(text, request.sampling.stop)
    if match is None:
        assert (request.output, request.finish) == (free.output, free.finish)
        assert request.text == free.text
        return
    begin, string = match
    assert request.text == text[:begin]
    assert (request.finish, request.stopped_by) == ("stop", string)
    assert request.output == free.output[: len(request.output)]
    before = Bytes().decode(request.output[:-1]).removesuffix("\ufffd")
    assert first_match(before, request.sampling.stop) is None, "it ended late"


texts = st.text("ab é", min_size=1, max_size=6)


@settings(max_examples=150)
@given(
    st.lists(st.lists(texts, max_size=4), min_size=1, max_size=6),
    st.fixed_dictionaries(
        {
            "depth": st.integers(1, 4),
            "page_size": st.sampled_from([1, 4]),
            "max_step_tokens": st.integers(2, 30),
            "admission": st.sampled_from(["reserve", "optimistic"]),
            "expected_output": st.just(1),
        }
    ),
    st.data(),
)
def test_the_text_ends_before_the_first_match(
    stops: list[list[str]], options: dict[str, Any], data: st.DataObject
) -> None:
    wholes = engine()
    one = engine(**options)
    pairs = []
    for i, strings in enumerate(stops):
        sampling = SamplingParams(temperature=1.0, seed=i, max_tokens=24, stop=strings)
        free = wholes.add([1, 1 + i], SamplingParams(temperature=1.0, seed=i, max_tokens=24))
        pairs.append((one.add([1, 1 + i], sampling).rid, free))
    wholes.run()
    one.run()
    last = one.trace
    for to in (len(last), data.draw(st.integers(0, len(last)), "to")):
        one.rewind(to=to)
        one.run()
        assert [r.outcome.stops for r in one.trace] == [r.outcome.stops for r in last]
        for rid, free in pairs:
            check(one.requests[rid], free)
    again = one.trace.scheduler()
    assert again.gauges == one.gauges, "a replay needs no codec"


def test_a_match_across_tokens_and_within_one() -> None:
    codec = Bytes()
    one = engine()
    free = one.add([1, 2], SamplingParams(max_tokens=30, ignore_eos=True))
    one.run()
    text = codec.decode(free.output)
    for begin in range(0, 12):
        for length in (1, 2, 5, 9):
            stop = text[begin : begin + length]
            request = one.add(
                [1, 2], SamplingParams(max_tokens=30, ignore_eos=True, stop=["zz", stop])
            )
            one.run()
            assert request.text == text[: text.find(stop)] and request.stopped_by == stop
    assert len(one._stops._watched) < 2, "watches are given up"


def test_text_held_back_to_the_end_is_still_searched() -> None:
    """Half a character is shown only when nothing can follow it, and counts then."""
    one = engine()
    for seed in range(200):
        sampling = SamplingParams(temperature=1.0, seed=seed, max_tokens=3, stop="\ufffd")
        free = one.add([1], SamplingParams(temperature=1.0, seed=seed, max_tokens=3))
        request = one.add([1], sampling)
        one.run()
        check(request, free)
        if free.output[-1] == 7 and not {7, 8} & {*free.output[:-1]}:
            assert request.finish == "stop" and len(request.output) == 3
            return
    raise AssertionError("no text ended in half a character")


def test_a_later_row_in_flight_is_a_zombie_and_an_abort_forgets_the_watch() -> None:
    one = engine(depth=3)
    request = one.add([1, 2], SamplingParams(max_tokens=30, ignore_eos=True, stop=["a", "b"]))
    other = one.add([1, 2], SamplingParams(max_tokens=30, ignore_eos=True, stop="zzz"))
    one.run(until=lambda record: Finished(request.rid, "stop") in record.events)
    assert len(one._in_flight) == 2
    one.abort(other.rid)
    assert other.rid not in one._stops._watched
    one.run()
    assert request.text_len is not None and request.output and other.finish == "abort"


def test_ten_thousand_stop_strings_cost_little_per_step() -> None:
    strings = [f"{i:x}{'q' * (i % 40)}" for i in range(10_000)]
    one, two = engine(check=False), engine(check=False)
    times = []
    for each, stop in ((one, ()), (two, strings)):
        sampling = SamplingParams(max_tokens=60, ignore_eos=True, stop=stop)
        each.add([1], sampling)
        start = perf_counter()
        each.run()
        times.append(perf_counter() - start)
    assert times[1] - times[0] < 0.06, f"{times} for 60 steps"


def test_stop_strings_need_a_tokenizer() -> None:
    bare = hash_engine()
    with pytest.raises(ValueError, match="stop_token_ids instead of stop strings"):
        bare.add([1], SamplingParams(stop="a"))
    assert not bare.requests


def test_stop_tokens_are_told() -> None:
    one = engine()
    request = one.add(
        [1], SamplingParams(max_tokens=60, ignore_eos=True, stop_token_ids=range(VOCAB))
    )
    one.run()
    assert request.stopped_by == request.output[0] and request.text == ""
