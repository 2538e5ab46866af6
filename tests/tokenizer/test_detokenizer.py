"""Text in pieces: joined they are the whole, and what is certain is not held back."""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from minisgl.tokenizer.codec import TextCodec
from tests.tokenizer.trained import TRAINED

KINDS = sorted(TRAINED)


@functools.cache
def codec(kind: str) -> TextCodec:
    return TextCodec(TRAINED[kind]())


def pieces(kind: str, ids: Sequence[int], sizes: Sequence[int] = ()) -> list[str]:
    """What a stream gives for ids fed one by one, or in groups of these sizes first."""
    stream, out, at = codec(kind).detokenizer(), [], 0
    for size in [*sizes, *[1] * len(ids)]:
        out.append(stream.feed(ids[at : at + size]))
        at += size
    return [*out, stream.flush()]


@pytest.mark.parametrize("kind", KINDS)
@given(text=st.text(), sizes=st.lists(st.integers(0, 5), max_size=5))
@example(text="🙂 日本語 e\u0301\n", sizes=[])
@example(text="\ufffd" * 9 + "a", sizes=[2])
def test_the_pieces_of_a_text_joined_are_the_text(kind: str, text: str, sizes: list[int]) -> None:
    ids = codec(kind).encode(text)
    assert "".join(pieces(kind, ids, sizes)) == codec(kind).decode(ids)


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data(), sizes=st.lists(st.integers(0, 5), max_size=5))
def test_the_pieces_of_any_ids_joined_are_what_decode_gives(
    kind: str, data: st.DataObject, sizes: list[int]
) -> None:
    any_id = st.integers(0, codec(kind).vocab_size + 3)
    ids = data.draw(st.lists(any_id, max_size=200))
    assert "".join(pieces(kind, ids, sizes)) == codec(kind).decode(ids)


def id_of(codec: TextCodec, token: str) -> int:
    found = codec._tokenizer.token_to_id(token)
    assert found is not None
    return found


@given(st.lists(st.sampled_from([0xFF, 0xE2, 0x82, 0xAC, 0xF0, 0x9F, 0x41, 0x80]), max_size=300))
@example([0xFF] * 300 + [0x41])
@example([0xE2] * 150 + [0x82, 0xAC])
@example([0x80] * 63 + [0xF0, 0x9F, 0x99, 0x82])
def test_bytes_that_are_no_text_come_out_as_decode_gives_them(raw: list[int]) -> None:
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters, fallback = bytes_to_unicode(), codec("byte_fallback")
    ids = [id_of(codec("byte_level"), letters[byte]) for byte in raw]
    assert "".join(pieces("byte_level", ids)) == codec("byte_level").decode(ids)
    ids = [id_of(fallback, f"<0x{byte:02X}>") for byte in raw]
    assert "".join(pieces("byte_fallback", ids)) == fallback.decode(ids)


def test_a_character_of_several_tokens_comes_whole() -> None:
    ids = codec("byte_level").encode("a\U0001f9ffb")
    assert len(ids) > 4
    given_out = [piece for piece in pieces("byte_level", ids) if piece]
    assert given_out == ["a", "\U0001f9ff", "b"]


@pytest.mark.parametrize("kind", KINDS)
def test_plain_words_are_not_held_back(kind: str) -> None:
    stream, ids = codec(kind).detokenizer(), codec(kind).encode("the cat hello world")
    seen = ""
    for count, token in enumerate(ids, 1):
        seen += stream.feed([token])
        assert seen == codec(kind).decode(ids[:count])
    assert stream.flush() == ""


def test_special_tokens_are_no_text() -> None:
    stream = codec("byte_level").detokenizer()
    assert stream.feed([0, 1, 2, 3]) == ""
    assert stream.flush() == ""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", ["hello ", "\ufffd", "🙂"])
def test_the_cost_of_a_token_does_not_grow_with_the_text(kind: str, text: str) -> None:
    ids = (codec(kind).encode(text * 20) * 3000)[:20_000]
    stream, start = codec(kind).detokenizer(), time.process_time()
    for token in ids:
        stream.feed([token])
    stream.flush()
    assert time.process_time() - start < 6  # about 0.3; 20,000 times a growing text takes minutes
