"""The text generator: the same text for the same seed, nothing shared across the split."""

import hashlib
from random import Random

import pytest

from minisgl.tiny import generate, stories
from minisgl.tiny.draw import Draw, held_out
from minisgl.tiny.skills import SKILLS


def test_the_same_seed_gives_the_same_text_on_every_machine():
    text = "".join(s.text for s in generate.document(Random(7), 200))
    assert text == "".join(s.text for s in generate.document(Random(7), 200))
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "f9f8e1cfb2dcafd4"


@pytest.mark.parametrize("skill", SKILLS)
def test_a_task_keeps_to_its_side_of_the_split(skill):
    for seed in range(40):
        for held in (False, True):
            task = SKILLS[skill](Draw(Random(seed), held))
            assert all(held_out(turn.key) == held for turn in task.turns if turn.key)


def test_training_chats_ask_nothing_that_is_held_out():
    for seed in range(20):
        talk = generate.chat(Random(seed), 400)
        assert not any(held_out(turn.key) for turn in talk.turns)


def test_no_held_out_sum_is_ever_trained_on():
    keys = {turn.key for i in range(300) for turn in SKILLS["arithmetic"](Draw(Random(i))).turns}
    held = {t.key for i in range(300) for t in SKILLS["arithmetic"](Draw(Random(i), True)).turns}
    assert keys and held and not keys & held


def test_a_story_told_is_a_function_of_its_facts():
    facts = stories.draw(Random(1), "Mia")
    assert stories.tell(facts) == stories.tell(facts)
    assert stories.tell(facts, Random(1)).text != stories.tell(facts).text


def test_a_story_names_every_fact():
    for seed in range(100):
        facts = stories.draw(Random(seed), "Mia")
        text = stories.tell(facts).text
        assert {facts.name, facts.animal} <= set(text.replace(".", "").split())
        assert facts.topic in text
        assert facts.colour in text or facts.plot not in stories.COLOURED


def test_only_the_assistants_words_are_learned():
    talk = generate.chat(Random(5), 80)
    learned = [s.text for s in generate.segments(talk) if s.learn]
    assert learned == [turn.answer + generate.IM_END for turn in talk.turns]


@pytest.mark.parametrize("kind", ["notes", "absent", "library", "mixed"])
def test_a_long_chat_is_about_as_long_as_asked(kind):
    for seed in range(5):
        messages, answer = generate.long_chat(800, seed, kind)
        words = sum(len(m["content"].split()) for m in messages)
        assert 600 <= words <= 1300
        assert messages[-1]["role"] == "user"
        assert answer


def test_examples_end_with_a_question_and_know_the_answer():
    messages, answer = generate.examples("memory", 1, seed=2)[0]
    assert [m["role"] for m in messages][-1] == "user"
    assert answer
    with pytest.raises(KeyError):
        generate.examples("poetry", 1, seed=2)
