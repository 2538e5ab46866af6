"""A request's sampled tokens and logprobs are its own, whatever is toggled and whoever else runs.

Each request is first run alone, as plainly as can be; its logprobs are then compared with those of
transformers. Every pair of values of any two toggles must give the same again, and so must a
rewind and a fork.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

import minisgl
from minisgl import Logprob, Request, SamplingParams
from minisgl.engine.engine import Engine
from minisgl.models.hub import locate
from tests.checkpoints import write
from tests.test_tokens import TOGGLES, Case, every_pair

NUM_TOKENS = 24
EVERYTHING: dict[str, Any] = {"temperature": 3.0, "top_k": 30, "top_p": 0.95, "min_p": 0.01}
KINDS = [
    SamplingParams(temperature=2.0, seed=1),
    SamplingParams(temperature=4.0, logprobs=0),
    SamplingParams(**EVERYTHING, seed=3, repetition_penalty=1.3, logprobs=3),
    SamplingParams(frequency_penalty=1.0, presence_penalty=0.5, logit_bias={9: 4.0, 30: -9.0}),
    SamplingParams(temperature=1.0, seed=5, frequency_penalty=0.8, prompt_logprobs=2, logprobs=1),
    SamplingParams(logprobs=2, prompt_logprobs=0),
    SamplingParams(),
]
CLOSE = 1e-4


class Truth:
    """A model, what is asked of it, and what each request says alone."""

    def __init__(self, model: str) -> None:
        self.model = model
        random = Random(2)

        def text(n: int) -> list[int]:
            return [random.randrange(5, 100) for _ in range(n)]

        shared, twin = text(37), text(23)
        prompts = [shared + text(n) for n in (5, 20, 1)] + [twin, twin, shared + text(3), text(70)]
        self.asked = [
            (prompt, replace(kind, max_tokens=NUM_TOKENS, ignore_eos=True))
            for prompt, kind in zip(prompts, KINDS, strict=True)
        ]
        self.says = []
        for i, (prompt, sampling) in enumerate(self.asked):
            with minisgl.load(model, overlap=False, prefix_cache="naive", page_size=64) as engine:
                if sampling.seed is None and not sampling.greedy:
                    sampling = replace(sampling, seed=70 + i)
                    self.asked[i] = (prompt, sampling)
                self.says.append(engine.add(prompt, sampling))
                engine.run()


@pytest.fixture(scope="module")
def truth_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Truth]:
    def make(name: str) -> Truth:
        return Truth(name if name == "tiny" else str(write(name, tmp_path_factory.mktemp(name))))

    return functools.cache(make)


def same(request: Request, says: Request, so_far: bool = False) -> None:
    """so_far: the request may have been aborted."""
    n = len(request.output) if so_far else None
    assert request.output == says.output[:n], request
    agree(request.logprobs, says.logprobs and says.logprobs[:n])
    if not so_far:
        agree(request.prompt_logprobs, says.prompt_logprobs)


Records = tuple[Logprob | None, ...] | None


def agree(got: Records, want: Records) -> None:
    assert (got is None) == (want is None)
    for one, other in zip(got or (), want or (), strict=True):
        assert (one is None) == (other is None)
        if one is None or other is None:
            continue
        assert one.logprob == pytest.approx(other.logprob, abs=CLOSE)
        assert len(one.top) == len(other.top)
        for (_, value), (_, wanted) in zip(one.top, other.top, strict=True):
            assert value == pytest.approx(wanted, abs=CLOSE)


def engine_of(truth: Truth, case: Case) -> Engine:
    toggles = dict(zip(TOGGLES, case, strict=True))
    chunk, pool, size = toggles.pop("chunk"), toggles.pop("pool"), toggles["page_size"]
    toggles["chunked_prefill"] = chunk is not None
    options: dict[str, Any] = {"max_running": 4, "expected_output": 4, "max_seq_len": 160}
    options["num_pages"] = -(-160 // size) + 1 if pool == "tight" else 2000 // size
    options["max_step_tokens"] = chunk or 160
    return minisgl.load(truth.model, **toggles, **options, check=True)


def run(truth: Truth, case: Case, seed: int) -> Counter[str]:
    """One run with random arrivals and aborts, then back and again; counts its events."""
    random, seen = Random(seed), Counter[str]()
    with engine_of(truth, case) as engine:
        todo = list(zip(truth.asked, truth.says, strict=True))
        random.shuffle(todo)
        pairs = []
        while True:
            while todo and random.random() < 0.4:
                (prompt, sampling), says = todo.pop()
                pairs.append((engine.add(prompt, sampling).rid, says))
            if pairs and random.random() < 0.01:
                engine.abort(random.choice(pairs)[0])
            record = engine.step()
            if record is not None:
                seen.update(type(event).__name__ for event in record.events)
            elif not todo:
                break
        for rid, says in pairs:
            same(engine.requests[rid], says, engine.requests[rid].finish == "abort")
        if seed % 3 == 0:
            middle = random.randrange(len(engine.trace))
            with engine.fork(at=middle, overlap=not engine.config.overlap) as twin:
                engine.rewind(to=middle)
                for each in (engine, twin):
                    each.run()
                    for rid, says in pairs:
                        if request := each.requests.get(rid):
                            same(request, says, request.finish == "abort")
    return seen


@pytest.mark.parametrize("model", ["tiny", "qwen3"])
def test_no_toggle_changes_what_is_sampled(model: str, truth_of: Callable[[str], Truth]) -> None:
    seen: Counter[str] = Counter()
    for seed, case in enumerate(every_pair()):
        seen += run(truth_of(model), case, seed)
    for event in ("Reused", "Evicted", "Preempted"):
        assert seen[event] > 3, f"{event} was hardly tried: {seen}"


@pytest.mark.parametrize("model", ["tiny", "qwen3"])
def test_logprobs_are_those_of_transformers(model: str, truth_of: Callable[[str], Truth]) -> None:
    from transformers import AutoModelForCausalLM

    truth = truth_of(model)
    theirs = AutoModelForCausalLM.from_pretrained(locate(truth.model), dtype=torch.float32)
    for request in truth.says:
        with torch.inference_mode():
            tokens = torch.tensor([request.prompt + request.output])
            want = theirs(tokens).logits[0].log_softmax(-1)
        got = list(request.prompt_logprobs or [None] * request.prompt_len)
        got += request.logprobs or [None] * NUM_TOKENS
        assert len(got) == tokens.shape[1] and got[0] is None
        for i, record in enumerate(got):
            if record is None:
                continue
            token, scores = int(tokens[0, i]), want[i - 1]
            assert record.logprob == pytest.approx(float(scores[token]), abs=CLOSE)
            assert abs(record.rank - 1 - int((scores > scores[token]).sum())) <= 1
            for alternative, value in record.top:
                assert value == pytest.approx(float(scores[alternative]), abs=CLOSE)
            best = scores.topk(len(record.top)).values.tolist()
            assert [value for _, value in record.top] == pytest.approx(best, abs=CLOSE)


def test_several_eos_ids_each_end_a_request(truth_of: Callable[[str], Truth]) -> None:
    """They come from the model's files; here the list is longer."""
    import json

    folder = Path(truth_of("qwen3").model)
    config = json.loads((folder / "config.json").read_text())
    (folder / "generation_config.json").unlink(missing_ok=True)
    (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": [0, 50, 51, 52]}))
    seen = set()
    with minisgl.load(folder) as engine:
        for seed in range(60):
            sampling = SamplingParams(temperature=100.0, seed=seed, max_tokens=100)
            request = engine.add([5], sampling)
            engine.run()
            assert not {0, 50, 51, 52} & {*request.output[:-1]}
            seen.add(request.stopped_by)
    assert {0, 50, 51, 52} <= seen


def test_a_request_without_a_seed_gets_one_that_gives_the_same_again() -> None:
    sampling, outputs = SamplingParams(temperature=4.0, max_tokens=30, ignore_eos=True), []
    for seed in (0, 1, 0, 1):
        with minisgl.load("tiny", seed=seed) as engine:
            pair = [engine.add("Once upon a time", sampling) for _ in range(2)]
            engine.run()
            assert pair[0].output != pair[1].output
            again = engine.add("Once upon a time", pair[1].sampling)
            engine.run()
            assert again.output == pair[1].output
            outputs.append(pair[0].output)
    assert outputs[:2] == outputs[2:] and outputs[0] != outputs[1]


def test_a_prompt_that_is_scored_is_computed_whole_and_shared_all_the_same() -> None:
    prompt = list(range(40, 90))
    score = SamplingParams(max_tokens=0, prompt_logprobs=1)
    with minisgl.load("tiny", check=True) as engine:
        first, second = (engine.add(prompt, score) for _ in range(2))
        engine.run()
        assert first.cached == second.cached == 0 and first.output == ()
        agree(first.prompt_logprobs, second.prompt_logprobs)
        assert first.prompt_logprobs is not None and len(first.prompt_logprobs) == 50
        third = engine.add(prompt)
        engine.run()
        assert third.cached == 48
