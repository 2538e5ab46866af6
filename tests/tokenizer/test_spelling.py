"""Tokens spelled out and joined are the text, whatever the tokenizer."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minisgl import tiny
from minisgl.tokenizer import TextCodec, load_codec
from tests.tokenizer.trained import SPECIAL, TRAINED, save


@pytest.fixture(scope="module", params=[*sorted(TRAINED), "tiny"])
def codec(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TextCodec:
    folder = tiny.path()
    if request.param != "tiny":
        folder = save(tmp_path_factory.mktemp(request.param), TRAINED[request.param]())
    made = load_codec(Path(folder))
    assert made is not None
    return made


def test_the_tokens_of_a_text_spell_it(codec: TextCodec) -> None:
    known = st.sampled_from(["hello ", "the cat", "naïve ", "🙂", "日本語 ", "x=1;", " "])

    @given(st.lists(known, max_size=8).map("".join))
    def check(text: str) -> None:
        ids = [token for token in codec.encode(text) if codec.decode([token, token])]
        spelled = b"".join(map(codec.spell, ids)).decode()
        assert spelled.lstrip(" ") == codec.decode(ids).lstrip(" ")

    check()


def test_a_special_token_is_its_name_and_an_unknown_id_is_nothing(codec: TextCodec) -> None:
    for token in range(codec.vocab_size):
        if codec._tokenizer.id_to_token(token) in SPECIAL[:2]:
            assert codec.spell(token).decode() in SPECIAL
    assert codec.spell(codec.vocab_size + 5) == b""


def test_halves_of_a_character_are_bytes(codec: TextCodec) -> None:
    ids = codec.encode("🙃")
    if codec.decode(ids).strip() == "🙃":  # this tokenizer can write it
        pieces = [codec.spell(token) for token in ids if codec.decode([token])]
        assert b"".join(pieces).decode().strip() == "🙃" and len(pieces) > 1
