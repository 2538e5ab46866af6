"""Pieces of an answer joined are the request's text, and nothing is given out too early."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minisgl.core import SamplingParams
from minisgl.llm import stream
from minisgl.tokenizer.answer import Answer
from tests.engine.test_stops import PIECES, Bytes, engine

stops = st.lists(st.sampled_from(["ab", "b b", "bbb", "a", "ba ab", "é"]), max_size=3)


@given(st.lists(st.integers(1, len(PIECES) - 1), max_size=30), stops, st.data())
def test_pieces_joined_are_the_text_and_each_could_not_change_any_more(
    ids: list[int], strings: list[str], data: st.DataObject
) -> None:
    codec, at, given_out = Bytes(), 0, ""
    answer = Answer(codec.detokenizer(), strings)
    held = max(map(len, strings), default=1) - 1
    while at < len(ids):
        n = data.draw(st.integers(1, 4))
        given_out += answer.feed(ids[at : at + n])
        at += n
        certain = codec.decode(ids[:at])
        assert certain.startswith(given_out) and len(given_out) <= max(0, len(certain) - held)
    assert given_out + answer.end() == codec.decode(ids)


@given(st.lists(st.integers(1, 12), min_size=1, max_size=9), stops, st.integers(0, 5))
def test_a_stream_ends_where_the_stop_string_begins(
    prompt: list[int], strings: list[str], seed: int
) -> None:
    sampling = SamplingParams(max_tokens=20, stop=strings, temperature=1.0, seed=seed)
    run = engine()
    request = run.add(prompt, sampling)
    pieces = [piece.text for piece in stream(run, request)]
    assert "".join(map(str, pieces)) == request.text
    assert "" not in pieces[:-1]


@pytest.mark.parametrize("cut", [3, 5, 7])
def test_the_last_tokens_text_is_cut_too(cut: int) -> None:
    answer = Answer(Bytes().detokenizer(), ["abab"])
    given_out = answer.feed([1, 2])
    assert given_out + answer.end([10, 11], cut) == "abbbbbbabab"[:cut]
