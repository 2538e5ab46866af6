"""The codec against transformers, on tokenizers trained here: the same ids and the same text."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minisgl.tokenizer import TextCodec
from minisgl.tokenizer.files import load_codec
from tests.tokenizer.trained import TEMPLATES, TRAINED, save

TALK = [
    {"role": "user", "content": "hello world\n  naïve  🙂"},
    {"role": "assistant", "content": "the cat </s> <|im_end|>"},
    {"role": "user", "content": " x=1; "},
]


@pytest.fixture(scope="module", params=sorted(TRAINED))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(request.param)
    return save(path, TRAINED[request.param](), TEMPLATES["chatml"])


def open_codec(path: Path) -> TextCodec:
    codec = load_codec(path)
    assert codec is not None
    return codec


def open_theirs(path: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path)


def test_text_and_back_are_as_with_transformers(folder: Path) -> None:
    ours, theirs = open_codec(folder), open_theirs(folder)
    assert ours.vocab_size == len(theirs)
    assert ours.eos_ids == (theirs.eos_token_id,)

    @given(
        st.text() | st.lists(st.sampled_from(["hello ", " the", "🙂", "</s>", "日"])).map("".join)
    )
    def check(text: str) -> None:
        ids = ours.encode(text)
        assert ids == theirs.encode(text)
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)

    check()


@pytest.mark.parametrize("name", sorted(TEMPLATES))
@pytest.mark.parametrize("trained", sorted(TRAINED))
def test_conversations_are_as_with_transformers(trained: str, name: str, tmp_path: Path) -> None:
    path = save(tmp_path, TRAINED[trained](), TEMPLATES[name])
    ours, theirs = open_codec(path), open_theirs(path)
    for messages in ([TALK[0]], TALK, [{**TALK[0], "name": "Eve", "extra": {"a": [1, None]}}]):
        text = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert ours.template is not None
        assert ours.template.render(messages) == text
        assert ours.chat(messages) == theirs.encode(text, add_special_tokens=False)


@pytest.mark.parametrize("flags", [{}, {"add_bos_token": True}, {"add_bos_token": False}])
@pytest.mark.parametrize("eos", [{}, {"add_eos_token": True}])
def test_the_frame_of_a_plain_prompt_follows_the_configuration(
    flags: dict[str, Any], eos: dict[str, Any], tmp_path: Path
) -> None:
    codec = open_codec(save(tmp_path, TRAINED["byte_fallback"](), **flags, **eos))
    ids = codec.encode("<s>hello")
    bos = ids[0]
    assert ids.count(bos) == (1 if flags.get("add_bos_token") is False else 2)
    assert (ids[-1] == codec.eos_ids[0]) == bool(eos)


def test_a_conversation_gets_no_second_bos(tmp_path: Path) -> None:
    codec = open_codec(save(tmp_path, TRAINED["byte_fallback"](), TEMPLATES["bos"]))
    ids = codec.chat(TALK)
    assert ids.count(ids[0]) == 1


def test_a_template_in_its_own_file_wins(tmp_path: Path) -> None:
    save(tmp_path, TRAINED["byte_level"](), TEMPLATES["chatml"])
    (tmp_path / "chat_template.jinja").write_text("just this")
    codec = open_codec(tmp_path)
    assert codec.decode(codec.chat(TALK)) == "just this"


def test_the_default_of_several_templates_is_taken(tmp_path: Path) -> None:
    several = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "this"}]
    codec = open_codec(save(tmp_path, TRAINED["byte_level"](), chat_template=several))
    assert codec.decode(codec.chat(TALK)) == "this"


def test_without_a_template_a_conversation_is_refused_with_the_way_out(tmp_path: Path) -> None:
    codec = open_codec(save(tmp_path, TRAINED["byte_level"]()))
    with pytest.raises(ValueError, match=r"no chat template.*chat_template.jinja"):
        codec.chat(TALK)


def test_tokens_that_only_the_configuration_knows_are_added(tmp_path: Path) -> None:
    tokenizer = TRAINED["byte_level"]()
    size = tokenizer.get_vocab_size()
    entry = {"content": "<tool>", "special": True, "normalized": False}
    save(tmp_path, tokenizer, added_tokens_decoder={str(size): entry})
    codec = open_codec(tmp_path)
    assert codec.encode("<tool>") == [size]
    assert codec.decode([size]) == ""
    save(tmp_path, TRAINED["byte_level"](), added_tokens_decoder={str(size + 9): entry})
    with pytest.raises(ValueError, match=f"the id {size + 9}"):
        load_codec(tmp_path)


def test_a_folder_without_tokenizer_files_has_no_codec(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert load_codec(tmp_path) is None


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match=r"tokenizer\.json cannot be read"):
        load_codec(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"tokenizer_config\.json must hold a JSON object"):
        load_codec(tmp_path)


def test_an_older_format_is_converted_by_transformers(tmp_path: Path) -> None:
    """A sentencepiece model, trained here, in the one file that Llama 2 came with."""
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["hello world the cat"] * 50 + ["naive cats say hello"] * 50),
        model_prefix=str(tmp_path / "tokenizer"),
        model_type="bpe",
        vocab_size=300,
        byte_fallback=True,
        minloglevel=2,
    )
    (tmp_path / "tokenizer.vocab").unlink()
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    codec = open_codec(tmp_path)
    assert codec.decode(codec.encode("hello the 🙂 cat")) == "hello the 🙂 cat"


def test_an_older_format_that_cannot_be_converted_is_refused_with_the_way_out(
    tmp_path: Path,
) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"no model")
    with pytest.raises(ValueError, match="no tokenizer.json.*save_pretrained"):
        load_codec(tmp_path)


def test_what_is_no_text_is_refused(folder: Path) -> None:
    codec, data = open_codec(folder), cast(Any, b"x")
    with pytest.raises(TypeError, match="a prompt must be a string, got b'x'"):
        codec.encode(data)
    with pytest.raises(ValueError, match="character 2 of the prompt is half of a surrogate"):
        codec.encode("ab\ud83d")


def test_ids_outside_the_vocabulary_are_no_text(folder: Path) -> None:
    """Models pad their vocabularies, so such an id can be sampled."""
    codec = open_codec(folder)
    ids = codec.encode("hello world")
    assert codec.decode([*ids, codec.vocab_size + 7]) == codec.decode(ids)


@pytest.mark.parametrize("text", ["a", "hello world ", "\n", " 🙂"])
def test_a_million_characters_are_encoded_in_seconds(folder: Path, text: str) -> None:
    codec = open_codec(folder)
    start = time.process_time()
    codec.encode((text * 1_000_000)[:1_000_000])
    assert time.process_time() - start < 10  # 0.2 to 1.2 on the machine this was written on
