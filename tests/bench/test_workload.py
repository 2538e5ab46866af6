"""Workloads: what prompts share, what may stand in them, how requests come."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import takewhile
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

import minisgl
from minisgl.bench.item import Item, Piece, shared_lens
from minisgl.bench.synthetic import SHAPES, Kind
from minisgl.bench.workload import Workload
from minisgl.engine.engine import Engine
from tests.hash_engine import EOS, VOCAB, hash_engine
from tests.seen import Seen

KINDS: tuple[Kind, ...] = get_args(Kind)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return minisgl.load("tiny", runner="hash")


def common(a: Any, b: Any) -> int:
    """Tokens with which both begin."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))


def prompts_of(workload: Workload, engine: Engine) -> list[Any]:
    prompts: list[Any] = workload.prompts(engine)
    return prompts


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_said_to_be_shared_is_shared_in_tokens(kind: Kind, engine: Engine) -> None:
    workload = Workload.synthetic(kind, 20, seed=3)
    prompts = prompts_of(workload, engine)
    assert [len(prompt) for prompt in prompts] == [item.prompt_len for item in workload]
    for i, (prompt, shared) in enumerate(zip(prompts, shared_lens(workload.items), strict=True)):
        assert shared is not None
        most = max((common(prompt, other) for other in prompts[:i]), default=0)
        assert shared <= most <= shared + 3, "1277 ids: more in common than meant is rare"


@pytest.mark.parametrize("kind", KINDS)
def test_made_up_work_is_a_function_of_kind_seed_and_sizes(kind: Kind) -> None:
    one = Workload.synthetic(kind, 10, seed=1)
    assert len(one) == 10 and one == Workload.synthetic(kind, 10, seed=1)
    assert one.items != Workload.synthetic(kind, 10, seed=2).items
    assert one.digest == Workload.synthetic(kind, 10, seed=1).digest
    assert one.digest != Workload.synthetic(kind, 10, seed=2).digest
    size = next(iter(SHAPES[kind][1]))
    assert one.items != Workload.synthetic(kind, 10, seed=1, **{size: 9}).items


def test_a_workload_is_the_same_in_another_process() -> None:
    say = (
        "from minisgl.bench.workload import Workload as W\n"
        "print([W.synthetic(k).arriving('poisson', rate=2).digest for k in "
        f"{KINDS}], W.synthetic('chat')[3].prompt[1].ids(range(9)))"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", say],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    digests = [Workload.synthetic(k).arriving("poisson", rate=2).digest for k in KINDS]
    piece: Any = Workload.synthetic("chat")[3].prompt[1]
    assert said == {f"{digests} {piece.ids(range(9))}\n"}


def test_no_special_token_is_in_a_prompt(engine: Engine) -> None:
    codec = engine.codec
    assert codec is not None
    prompts = prompts_of(Workload.synthetic("shared_prefix", 60), engine)
    used = {token for prompt in prompts for token in prompt}
    assert not used & engine.eos_ids and max(used) < engine.vocab_size
    assert all(codec.decode([token]) for token in used)
    with hash_engine() as bare:  # no tokenizer
        ids = {token for prompt in Workload.synthetic("chat").prompts(bare) for token in prompt}
        assert ids == set(range(VOCAB)) - {EOS}


def test_a_turn_goes_on_from_the_turn_before_it(engine: Engine) -> None:
    for kind in ("chat", "tree"):
        workload = Workload.synthetic(kind, 20)
        prompts = prompts_of(workload, engine)
        assert any(item.after is not None for item in workload)
        for item, prompt in zip(workload, prompts, strict=True):
            if item.after is None:
                continue
            before, text = workload[item.after], prompts[item.after]
            assert prompt[: len(text)] == text
            assert len(prompt) > len(text) + before.output_len, "its answer, and something asked"
            assert item.group == before.group


def test_long_documents_are_asked_in_turn_and_tasks_begin_with_fewer_or_more_examples() -> None:
    groups = [item.group for item in Workload.synthetic("long_documents", 7, groups=3)]
    assert groups == [f"document {d}" for d in (0, 1, 2, 0, 1, 2, 0)]
    shots = Workload.synthetic("few_shot", 40, groups=1, shots=5)
    assert {len(item.prompt) - 1 for item in shots} == {1, 2, 3, 4, 5}


def test_thoughts_branch_as_asked() -> None:
    tree = Workload.synthetic("tree", 13, branching=3, depth=3)
    assert [item.after for item in tree] == [None, 0, 0, 0, *[1] * 3, *[2] * 3, *[3] * 3]
    cut = Workload.synthetic("tree", 15, branching=3, depth=3)
    assert [item.after for item in cut][13:] == [None, 13]


def test_sizes_are_kept_to() -> None:
    workload = Workload.synthetic("shared_prefix", 50, prefix_len=40, prompt_len=(3, 5), groups=1)
    assert {item.prompt_len for item in workload} == {43, 44, 45}
    with pytest.raises(TypeError, match="chat has no shots; it has turns, system_len"):
        Workload.synthetic("chat", shots=3)
    with pytest.raises(ValueError, match=r"prompt_len is a \(least, most\) pair, got \(5, 3\)"):
        Workload.synthetic("chat", prompt_len=(5, 3))
    with pytest.raises(ValueError, match="unknown kind 'tea'; there are shared_prefix, chat"):
        Workload.synthetic("tea")  # type: ignore[arg-type]


@given(
    pieces=st.lists(
        st.lists(st.builds(Piece, st.sampled_from("abc"), st.integers(1, 3)), min_size=1),
        min_size=1,
        max_size=8,
    )
)
def test_shared_lengths_are_those_of_the_best_earlier_prompt(pieces: list[list[Piece]]) -> None:
    """Here a name's tokens occur nowhere else, so that lengths can be read off."""
    items = [Item(tuple(some), 1) for some in pieces]

    def spell(item: Item) -> list[Any]:
        parts: Any = item.prompt
        return [(name, k) for name, n in parts for k in range(n)]

    for i, shared in enumerate(shared_lens(items)):
        by_token = max((common(spell(items[i]), spell(other)) for other in items[:i]), default=0)
        assert shared == by_token


def test_own_prompts_are_taken_as_the_engine_takes_them(engine: Engine) -> None:
    chat = [{"role": "user", "content": "What is your name?"}]
    workload = Workload.from_prompts(["Once upon a time", [5, 6, 7], chat], [4, 5, 6])
    assert workload.prompts(engine) == ["Once upon a time", [5, 6, 7], chat]
    assert [item.prompt_len for item in workload] == [None, 3, None]
    assert "2 prompts as text" in repr(workload)
    assert [item.output_len for item in workload] == [4, 5, 6]
    with pytest.raises(ValueError, match="3 prompts have 2 output lengths"):
        Workload.from_prompts(["a", "b", "c"], [1, 2])


@pytest.mark.parametrize(
    ("prompt", "error", "message"),
    [
        ("", ValueError, "must not be empty"),
        ([], ValueError, "must not be empty"),
        (7, TypeError, "a prompt is a text, pieces, token ids or chat messages, got int"),
        ([1.5], TypeError, "a token id must be an integer, got 1.5"),
        ([-1], ValueError, "a token id must be at least 0"),
        ([Piece("a", 0)], ValueError, "num_tokens must be at least 1"),
        ([Piece("a", 1), 7], TypeError, "a token id must be an integer"),
    ],
)
def test_what_is_no_prompt_is_refused(prompt: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Item(prompt, 1)


def test_what_is_no_item_is_refused() -> None:
    with pytest.raises(ValueError, match="output_len must be at least 1"):
        Item("a", 0)
    for arrival in (float("nan"), float("inf"), -1.0):
        with pytest.raises(ValueError, match="arrival must be finite and not negative"):
            Item("a", 1, arrival=arrival)
    with pytest.raises(ValueError, match="item 1 comes after item 1; it may wait only for an ear"):
        Workload((Item("a", 1), Item("b", 1, after=1)))
    with pytest.raises(ValueError, match="at least one request"):
        Workload(())
    with pytest.raises(ValueError, match="clock must be one of"):
        Workload((Item("a", 1),), clock="minutes")  # type: ignore[arg-type]


def test_poisson_arrivals_have_the_rate_asked_for_and_the_spread_of_chance() -> None:
    workload = Workload.synthetic("shared_prefix", 4000).arriving("poisson", rate=5.0)
    times = [item.arrival for item in workload]
    gaps = [b - a for a, b in zip(times, times[1:], strict=False)]
    mean = sum(gaps) / len(gaps)
    deviation = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    assert times[0] == 0 and min(gaps) >= 0
    assert mean == pytest.approx(0.2, rel=0.05) and deviation == pytest.approx(mean, rel=0.08)
    again = workload.arriving("poisson", rate=5.0, seed=1)
    assert [item.arrival for item in again] != times
    turns = Workload.synthetic("chat", 12).arriving("poisson", rate=1.0)
    assert all((item.after is None) or item.arrival == 0 for item in turns)


def test_recorded_times_are_stretched_to_a_rate_or_a_speed() -> None:
    items = tuple(Item("a", 1, arrival=float(t)) for t in (0, 2, 8))
    workload = Workload(items)
    fast = workload.arriving("recorded", speed=4)
    assert [item.arrival for item in fast] == [0, 0.5, 2]
    paced = workload.arriving("recorded", rate=0.5, clock="steps")
    assert [item.arrival for item in paced] == [0, 1, 4] and paced.clock == "steps"
    assert [i.arrival for i in workload.arriving("at_once")] == [0, 0, 0]
    assert workload.arriving("closed", concurrency=2).concurrency == 2
    assert workload.arriving("closed", concurrency=2).arriving("at_once").concurrency is None


def test_only_a_clock_on_the_wall_makes_work_unrepeatable() -> None:
    workload = Workload.synthetic("chat", 12)
    assert workload.repeatable
    assert workload.arriving("closed", concurrency=1).repeatable
    assert not workload.arriving("poisson", rate=1).repeatable
    assert workload.arriving("poisson", rate=1, clock="steps").repeatable


@pytest.mark.parametrize(
    ("arrivals", "numbers", "error", "message"),
    [
        ("closed", {}, TypeError, "arrivals='closed' needs concurrency"),
        ("poisson", {}, TypeError, "arrivals='poisson' needs rate"),
        ("at_once", {"rate": 1}, TypeError, "rate does not go with arrivals='at_once'"),
        ("poisson", {"rate": 0}, ValueError, "rate must be above 0 and finite, got 0"),
        ("poisson", {"rate": float("nan")}, ValueError, "rate must be above 0"),
        ("poisson", {"rate": "1"}, TypeError, "rate must be a number"),
        ("closed", {"concurrency": 0}, ValueError, "concurrency must be at least 1"),
        ("recorded", {"rate": 1, "speed": 1}, TypeError, "not both"),
        ("recorded", {"rate": 1}, ValueError, "no times of their own"),
        ("sometimes", {}, ValueError, "unknown arrivals 'sometimes'; there are at_once, closed"),
    ],
)
def test_arrivals_that_make_no_sense_are_refused(
    arrivals: Any, numbers: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Workload.synthetic("chat", 4).arriving(arrivals, **numbers)


def test_a_workload_says_what_it_is() -> None:
    workload = Workload.synthetic("shared_prefix", 24)
    assert repr(workload) == (
        "Workload(shared_prefix: 24 requests; prompts of 141 to 176 tokens, 67% of them shared; "
        "answers of 8 to 30 tokens; all at once)"
    )
    late = Workload.synthetic("chat", 3).arriving("poisson", rate=0.5, clock="steps")
    assert "2 follow an answer; all at once" in repr(late)
    frame = workload.to_frame()
    assert list(frame["request"]) == list(range(24))
    assert frame["shared"].sum() == sum(n or 0 for n in shared_lens(workload.items)) > 0
    assert list(frame["prompt_len"]) == [item.prompt_len for item in workload]


def test_a_notebook_shows_a_workload_as_a_bar_of_its_tokens_and_its_facts() -> None:
    workload = Workload.synthetic("chat", 8).arriving("poisson", rate=0.5, clock="steps")
    seen = Seen(workload._repr_html_())
    frame = workload.to_frame()
    shared, asked = int(frame["shared"].sum()), int(frame["prompt_len"].sum())
    answers = int(frame["output_len"].sum())
    assert seen.labels == [
        f"tokens: of prompts, begun by an earlier one {shared}, "
        f"of prompts, new {asked - shared}, of answers {answers}"
    ]
    assert list(seen.facts) == ["requests", "prompts", "answers", "follow an answer", "arrivals"]
    assert seen.facts["prompts"].endswith(f"{shared / asked:.0%} of them shared")
    lens = frame["output_len"]
    assert seen.facts["answers"] == f"{lens.min()} to {lens.max()} tokens"
    assert seen.facts["follow an answer"] == "6" and "steps" in seen.facts["arrivals"]
    texts = Workload.from_prompts(["<script>", "b"], 3).arriving("closed", concurrency=2)
    facts = Seen(texts._repr_html_()).facts
    assert facts == {
        "requests": "2",
        "prompts as text": "2",
        "answers": "3 tokens",
        "arrivals": "2 at a time",
    }
