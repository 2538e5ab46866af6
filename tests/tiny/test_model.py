"""The shipped checkpoint: small, readable, right on held-out prompts, and it stops by itself."""

import os
from pathlib import Path
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minisgl.tiny import evaluate, path
from minisgl.tiny.generate import IM_END, chat, messages, segments
from minisgl.tiny.rounding import round_int4
from minisgl.tiny.skills import SKILLS


@pytest.fixture(scope="module")
def tiny():
    os.environ["HF_HUB_OFFLINE"] = "1"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield evaluate.load(path())
    torch.set_num_threads(threads)


def test_the_checkpoint_takes_at_most_eight_megabytes():
    assert sum(file.stat().st_size for file in path().iterdir()) <= 8_000_000


def test_it_is_a_qwen3_of_float16_weights_with_a_tied_output(tiny):
    from safetensors import safe_open

    _, model = tiny
    assert model.config.tie_word_embeddings
    assert model.config.max_position_embeddings >= 4096
    with safe_open(path() / "model.safetensors", "pt") as file:
        names = list(file.keys())
        assert "lm_head.weight" not in names
        assert all(file.get_tensor(name).dtype == torch.float16 for name in names)


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_any_text_comes_back_from_the_tokenizer(text):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path() / "tokenizer.json"))
    for token in tokenizer.get_added_tokens_decoder().values():
        text = text.replace(token.content, "")
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_the_chat_template_writes_what_training_saw(tiny):
    tokenizer, _ = tiny
    for seed in range(10):
        talk = chat(Random(seed), 60)
        wanted = "".join(s.text for s in segments(talk)[:-2])
        shown = tokenizer.apply_chat_template(
            messages(talk), tokenize=False, add_generation_prompt=True
        )
        assert shown == wanted
        whole = tokenizer("".join(s.text for s in segments(talk)))["input_ids"]
        parts = [tokenizer(s.text)["input_ids"] for s in segments(talk)]
        assert whole == [token for part in parts for token in part]


@pytest.mark.parametrize("skill", ["plain", *SKILLS, "notes-250", "mixed-250"])
def test_held_out_prompts_are_answered_right(tiny, skill):
    tokenizer, model = tiny
    cases = evaluate.prompts(tokenizer, skill, 3, seed=1)
    ids = [tokenizer(case.text)["input_ids"] for case in cases]
    for case, wrote in zip(cases, evaluate.greedy(model, ids, {0, 2}, 320), strict=True):
        assert tokenizer.decode(wrote.tokens) == case.answer + case.end
        assert min(wrote.gaps) > 0.5


def test_int4_weights_hold_sixteen_values_in_a_group():
    weight = torch.randn(8, 128)
    rounded = round_int4(weight, 64)
    assert all(len(set(group.tolist())) <= 16 for group in rounded.reshape(-1, 64))
    assert (rounded - weight).abs().max() < 0.5
    assert torch.allclose(round_int4(rounded, 64), rounded, atol=1e-5)


def test_training_runs_on_a_cpu(tmp_path: Path):
    from argparse import Namespace

    from minisgl.tiny.train import train

    train(
        Namespace(
            out=tmp_path,
            steps=2,
            minutes=1.0,
            device="cpu",
            seed=0,
            rate=1e-3,
            tokens=256,
            tokenizer_documents=300,
            workers=0,
        )
    )
    tokenizer, model = evaluate.load(tmp_path)
    assert tokenizer.convert_tokens_to_ids(IM_END) == 2
    assert evaluate.greedy(model, [[5, 6, 7]], {0, 2}, 4)[0].tokens


@pytest.mark.slow
def test_the_cards_numbers_hold_on_a_smaller_sample(tiny):
    tokenizer, model = tiny
    names = ["plain", *SKILLS, "notes-500", "library-500", "mixed-500"]
    lines, encoded = evaluate.accuracy(tokenizer, model, names, 10)
    for line in lines[2:-1]:
        cells = line.split(" | ")
        assert float(cells[2].rstrip(" %")) >= 90, line
        assert float(cells[3].rstrip(" %")) >= 99, line
    for line in evaluate.agreement(model, {0, 2}, encoded)[2:]:
        assert float(line.split(" | ")[2].rstrip(" %|")) >= 98, line
