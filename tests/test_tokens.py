"""One truth of tokens: whatever is toggled, a request's greedy tokens are those of transformers.

Every pair of values of any two toggles is run for each model; with -m slow, every combination.
"""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

import minisgl
from minisgl.registry import names
from tests.checkpoints import ARCHITECTURES, greedy, write

NUM_TOKENS = 64
MODELS = ("tiny", *ARCHITECTURES)
TOGGLES: dict[str, tuple[Any, ...]] = {
    "overlap": (True, False),
    "prefix_cache": ("radix", "naive"),
    "chunk": (None, 7, 33),  # None: chunked prefill is off
    "page_size": (1, 4, 16, 64),
    "policy": names("policy"),
    "admission": ("reserve", "optimistic"),
    "pool": ("ample", "tight"),  # tight: the longest request and little more
    "attention": ("torch", "grouped", "native"),  # the others: tests/gpu
    "kernels": ("torch", "native"),
}
Case = tuple[Any, ...]


def every_pair() -> list[Case]:
    """Few combinations in which each value of a toggle meets each value of every other."""

    def pairs(case: Case) -> set[tuple[int, Any, int, Any]]:
        places = itertools.combinations(range(len(case)), 2)
        return {(i, case[i], j, case[j]) for i, j in places}

    combinations = list(itertools.product(*TOGGLES.values()))
    Random(0).shuffle(combinations)
    missing = set().union(*map(pairs, combinations))
    chosen = []
    while missing:
        best = max(combinations[:400], key=lambda case: len(pairs(case) & missing))
        if not pairs(best) & missing:
            combinations = combinations[400:] + combinations[:400]
            continue
        chosen.append(best)
        missing -= pairs(best)
    return chosen


class Truth:
    """A model, prompts for it, and what transformers says to them."""

    def __init__(self, name: str, folder: Path) -> None:
        self.model = name if name == "tiny" else str(write(name, folder))
        random = Random(1)

        def text(n: int) -> list[int]:
            return [random.randrange(5, 100) for _ in range(n)]

        shared, twin = text(37), text(23)
        lengths = (5, 20, 1)
        self.prompts = [shared + text(n) for n in lengths] + [twin, twin, text(1), text(70)]
        from minisgl.models.hub import locate

        self.says = greedy(locate(self.model), self.prompts, NUM_TOKENS)


@pytest.fixture(scope="module")
def truth_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Truth]:
    return functools.cache(lambda name: Truth(name, tmp_path_factory.mktemp(name)))


def run(truth: Truth, case: Case, seed: int) -> Counter[str]:
    """One run with random arrivals and aborts, checked after every step; counts its events."""
    toggles = dict(zip(TOGGLES, case, strict=True))
    chunk, pool, size = toggles.pop("chunk"), toggles.pop("pool"), toggles["page_size"]
    toggles["chunked_prefill"] = chunk is not None
    tight = -(-160 // size) + 1
    random, seen = Random(seed), Counter[str]()
    options: dict[str, Any] = {
        "max_running": 4,
        "expected_output": 4,
        "max_seq_len": 160,
        "check": True,
    }
    options["num_pages"] = tight if pool == "tight" else 2000 // size
    options["max_step_tokens"] = chunk or 160
    with minisgl.load(truth.model, **toggles, **options) as engine:
        sampling = minisgl.SamplingParams(max_tokens=NUM_TOKENS, ignore_eos=True)
        todo = list(enumerate(truth.prompts))
        random.shuffle(todo)
        asked = []
        while True:
            while todo and random.random() < 0.4:
                index, prompt = todo.pop()
                asked.append((engine.add(prompt, sampling), truth.says[index]))
            if asked and random.random() < 0.01:
                engine.abort(random.choice(asked)[0].rid)
            record = engine.step()
            if record is not None:
                seen.update(type(event).__name__ for event in record.events)
            elif not todo:
                break
    for request, says in asked:
        if request.finish == "abort":
            seen["aborted"] += 1
            says = says[: len(request.output)]
        assert request.output == says, (toggles, options, request)
    return seen


def cases() -> Iterator[tuple[int, Case]]:
    return iter(enumerate(every_pair()))


@pytest.mark.parametrize("model", MODELS)
def test_tokens_equal_transformers_for_every_pair_of_toggles(
    model: str, truth_of: Callable[[str], Truth]
) -> None:
    seen: Counter[str] = Counter()
    for seed, case in cases():
        seen += run(truth_of(model), case, seed)
    for event in ("Reused", "Evicted", "Preempted", "aborted"):
        assert seen[event] > 3, f"{event} was hardly tried: {seen}"


@pytest.mark.slow
@pytest.mark.parametrize("policy", TOGGLES["policy"])
@pytest.mark.parametrize("model", MODELS)
def test_tokens_equal_transformers_for_every_combination(
    model: str, policy: str, truth_of: Callable[[str], Truth]
) -> None:
    for seed, case in enumerate(itertools.product(*TOGGLES.values())):
        if policy in case:
            run(truth_of(model), case, seed)


def test_two_engines_in_one_process_do_not_touch_each_other(
    truth_of: Callable[[str], Truth],
) -> None:
    one, two = truth_of("qwen3"), truth_of("llama")
    sampling = minisgl.SamplingParams(max_tokens=NUM_TOKENS, ignore_eos=True)
    with minisgl.load(one.model) as first, minisgl.load(two.model, page_size=4) as second:
        asked = [
            (engine.add(prompt, sampling), says)
            for engine, truth in ((first, one), (second, two))
            for prompt, says in zip(truth.prompts, truth.says, strict=True)
        ]
        busy = [first, second]
        while busy:
            busy = [engine for engine in busy if engine.step()]
    for request, says in asked:
        assert request.output == says


@pytest.mark.parametrize("pool", ["ample", "tight"])
@pytest.mark.parametrize("model", ["tiny", "mistral"])
def test_going_back_and_forking_change_no_token(
    model: str, pool: str, truth_of: Callable[[str], Truth]
) -> None:
    """Every step that is computed again is compared with its record on the way."""
    truth, random = truth_of(model), Random(3)
    options: dict[str, Any] = {"max_seq_len": 160, "max_running": 4, "check": True}
    options |= {"num_pages": 11 if pool == "tight" else 200, "admission": "optimistic"}
    sampling = minisgl.SamplingParams(max_tokens=NUM_TOKENS, ignore_eos=True)
    with minisgl.load(truth.model, **options, max_step_tokens=33, expected_output=4) as engine:
        for prompt in truth.prompts:
            engine.add(prompt, sampling)
        engine._past.checkpoints.every = 20
        engine.run()
        whole = len(engine.trace)
        for _ in range(3):
            at = random.randrange(whole)
            engine.rewind(to=at)
            with engine.fork(policy="mixed") as twin:
                twin.run()
                engine.run()
                for one in (twin, engine):
                    for rid, says in enumerate(truth.says):
                        assert one.requests[rid].output == says, (at, one.requests[rid])
            assert len(engine.trace) == whole
