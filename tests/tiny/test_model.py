"""The shipped checkpoint: small, readable, right on held-out prompts, and it stops by itself."""

import math
import os
from argparse import Namespace
from pathlib import Path
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from minisgl.tiny import card, evaluate, path
from minisgl.tiny.checkpoint import CONFIG, new_model
from minisgl.tiny.generate import IM_END, chat, messages, segments
from minisgl.tiny.rounding import round_int4
from minisgl.tiny.skills import SKILLS
from minisgl.tiny.train import BUCKETS, Batches, Learner, forward, losses, train


@pytest.fixture(scope="module")
def tiny():
    os.environ["HF_HUB_OFFLINE"] = "1"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield evaluate.load(path())
    torch.set_num_threads(threads)


@pytest.fixture
def learnt() -> Tokenizer:
    """The shipped tokenizer as training uses it."""
    return Tokenizer.from_file(str(path() / "tokenizer.json"))


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


def test_the_loss_falls_in_the_first_steps_and_is_the_same_again(learnt):
    some = list(losses(learnt, 6, tokens=256))
    assert some[0] > math.log(CONFIG["vocab_size"]) - 0.1, "it knows nothing yet"
    assert some[-1] < some[0] - 0.2
    assert some[:2] == list(losses(learnt, 2, tokens=256))


def test_a_step_that_sees_rounded_weights_leaves_the_exact_ones_in_place(learnt):
    batch = Batches(learnt, 0, 256, 1, BUCKETS[:1])[0]
    model = new_model(0)
    before = [p.detach().clone() for p in model.parameters()]
    exact = forward(model, batch).item()
    seen = Learner(model).learn(batch, 0.0, lambda flat: round_int4(flat, 32)).item()
    assert seen != exact, "the loss is that of the rounded weights"
    after = list(model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert seen == forward(evaluate.rounded(model, lambda w: round_int4(w, 32)), batch).item()


def test_what_is_measured_is_what_was_written(tiny):
    tokenizer, model = tiny
    found = evaluate.measure(tokenizer, model, "arithmetic", 3)
    assert found.cases == evaluate.prompts(tokenizer, "arithmetic", 3)
    assert found.texts == [case.answer + case.end for case in found.cases]
    assert found.right == found.stopped(evaluate.ends_of(tokenizer)) == 3
    assert len(found.gaps) == sum(len(w.tokens) for w in found.written)
    spoilt = found._replace(texts=[*found.texts[:2], found.texts[2] + " "])
    assert spoilt.right == 2
    endless = [w._replace(tokens=w.tokens[:-1]) for w in found.written]
    assert found._replace(written=endless).stopped(evaluate.ends_of(tokenizer)) == 0


def test_the_card_can_be_read_by_its_sections():
    whole = card()
    assert whole.startswith("# The embedded model")
    training = card("Training")
    assert training in whole and training.startswith("`python -m minisgl.tiny.train")
    with pytest.raises(ValueError, match="no section 'Price'; it has Data, Training, Measured"):
        card("Price")


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
