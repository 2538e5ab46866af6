"""On a GPU, in bfloat16, a request's greedy tokens are those of the CPU, whatever is toggled.

Where one differs, the two tokens' logits are closer than bfloat16's error in them.
"""

from __future__ import annotations

import functools
from random import Random
from typing import Any

import pytest
import torch

import minisgl
from minisgl.core import Request, SamplingParams
from minisgl.models.hub import locate
from minisgl.resolve import BULK_COPIES
from minisgl.tiny.generate import chat, messages

pytestmark = pytest.mark.gpu
NUM_TOKENS = 48
SETTINGS: dict[str, Any] = {"page_size": 16, "dtype": "bfloat16"}
ASK = SamplingParams(max_tokens=NUM_TOKENS, ignore_eos=True)
CASES: list[dict[str, Any]] = [
    {"attention": attention, "cuda_graph": graph, "overlap": overlap, "page_size": page_size}
    for attention, graph, overlap, page_size in (
        ("fa3", True, True, 16),
        ("fa3", False, True, 1),
        ("fa3", True, False, 64),
        ("flashinfer", True, True, 16),
        ("flashinfer", False, False, 1),
        ("flashinfer", True, False, 4),
        ("fa3,flashinfer", True, True, 16),
        ("fa3,flashinfer", False, True, 4),
        ("triton", True, True, 16),
        ("triton", False, False, 1),
        ("triton", True, True, 4),
        ("fa3,triton", True, True, 64),
        ("fa3,cuda", True, True, 64),
        ("fa3,cuda", True, False, 16),
        ("flashinfer,triton", True, False, 16),
        ("grouped", False, True, 16),
        ("torch", False, False, 16),
    )
]
CASES += [
    {"kernels": "torch", "attention": "fa3", "cuda_graph": True},
    {"dtype": "float16"},
    {"dtype": "float32"},
    {"graph_rows": 3, "attention": "triton"},
    {"prefix_cache": "naive", "max_step_tokens": 33},
    {"admission": "optimistic", "num_pages": 64, "page_size": 16, "expected_output": 4},
    {"megakernel": False},
]
ALONE: list[dict[str, Any]] = [
    {"cuda_graph": graph, "overlap": overlap, "megakernel": megakernel}
    for graph in (True, False)
    for overlap in (True, False)
    for megakernel in (True, False)
]
ALONE += [{"dtype": "float16"}, {"page_size": 1}, {"page_size": 64, "max_step_tokens": 33}]


@functools.cache
def prompts() -> tuple[tuple[int, ...], ...]:
    """Tasks of the embedded model, some with a long common prefix, one twice."""
    with minisgl.load("tiny", device="cpu") as engine:
        talks = [messages(chat(Random(seed), 60 + 20 * seed)) for seed in range(9)]
        ids = [engine.add(talk, SamplingParams(max_tokens=1)).prompt for talk in talks]
    return (*ids, ids[0], (*ids[1], *ids[2]), (*ids[1], *ids[3]))


def outputs(alone: bool = False, **toggles: Any) -> list[tuple[int, ...]]:
    """All prompts' tokens; they arrive in the middle of each other, or one after the other."""
    with minisgl.load("tiny", check=True, **{"num_pages": 4096, "max_running": 8} | toggles) as eng:
        asked = list[Request]()
        for prompt in prompts():
            asked.append(eng.add(prompt, ASK))
            if alone:
                eng.run()
            else:
                eng.step()
        eng.run()
        return [request.output for request in asked]


@functools.cache
def truth() -> list[tuple[int, ...]]:
    return outputs(device="cpu", dtype="float32", page_size=16)


@functools.cache
def models() -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM

    folder = locate("tiny")
    load_model: Any = AutoModelForCausalLM.from_pretrained
    exact, rounded = (
        load_model(folder, dtype=dtype).cuda() for dtype in (torch.float32, torch.bfloat16)
    )
    return exact, rounded


def assert_same_but_for_rounding(prompt: tuple[int, ...], ours: Any, says: Any) -> int:
    """How many outputs differ: 0, or 1 if they part where the logits are too close to call."""
    if ours == says:
        return 0
    at = next(i for i, (a, b) in enumerate(zip(ours, says, strict=True)) if a != b)
    ids = torch.tensor([[*prompt, *says[:at]]], device="cuda")
    with torch.inference_mode():
        exact, rounded = (model(ids).logits[0, -1].float() for model in models())
    gap = float((exact[says[at]] - exact[ours[at]]).abs())
    error = float((exact - rounded).abs().max())
    assert gap <= 2 * error, f"token {at}: {ours[at]} for {says[at]}, gap {gap}, error {error}"
    return 1


@pytest.mark.parametrize("toggles", CASES, ids=lambda case: "-".join(map(str, case.values())))
def test_greedy_tokens_are_those_of_the_cpu(toggles: dict[str, Any]) -> None:
    assert_those_of_the_cpu(outputs(device="cuda", **SETTINGS | toggles))


@pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_capability() < BULK_COPIES,
    reason="needs a GPU with bulk copies",
)
@pytest.mark.parametrize("toggles", ALONE, ids=lambda case: "-".join(map(str, case.values())))
def test_greedy_tokens_of_a_request_that_is_alone_are_those_of_the_cpu(
    toggles: dict[str, Any],
) -> None:
    assert_those_of_the_cpu(outputs(alone=True, device="cuda", **SETTINGS | toggles))


def assert_those_of_the_cpu(made: list[tuple[int, ...]]) -> None:
    parted = [
        assert_same_but_for_rounding(prompt, ours, says)
        for prompt, ours, says in zip(prompts(), made, truth(), strict=True)
    ]
    print(f"{sum(parted)} of {len(parted)} requests part, at logits closer than rounding")
    assert sum(parted) <= len(parted) // 2


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs; torch sees fewer here")
@pytest.mark.parametrize("attention", ["fa3,triton", "triton", "grouped"])
def test_two_gpus_say_what_one_cpu_says(attention: str) -> None:
    made = outputs(device="cuda", dtype="bfloat16", tp=2, attention=attention, page_size=16)
    for prompt, ours, says in zip(prompts(), made, truth(), strict=True):
        assert_same_but_for_rounding(prompt, ours, says)


def test_sampled_tokens_do_not_depend_on_graphs_and_overlap() -> None:
    def run(ask: SamplingParams, **toggles: Any) -> tuple[int, ...]:
        with minisgl.load(
            "tiny", device="cuda", dtype="bfloat16", num_pages=512, **toggles
        ) as engine:
            request = engine.add(prompts()[4], ask)
            engine.run()
            return request.output

    further: tuple[dict[str, Any], ...] = (
        {},
        {"top_k": 20, "top_p": 0.9},
        {"repetition_penalty": 1.3, "min_p": 0.05},
    )
    for more in further:
        ask = SamplingParams(temperature=0.8, seed=5, max_tokens=24, ignore_eos=True, **more)
        base = run(ask)
        assert run(ask, cuda_graph=False) == base
        assert run(ask, overlap=False) == base


def test_logits_are_those_of_transformers_within_the_error_of_bfloat16() -> None:
    prompt = prompts()[5]
    ask = SamplingParams(max_tokens=0, prompt_logprobs=20)
    with minisgl.load("tiny", device="cuda", dtype="bfloat16", num_pages=512) as engine:
        request = engine.add(prompt, ask)
        engine.run()
        got = request.prompt_logprobs or ()
    exact, rounded = models()
    ids = torch.tensor([prompt], device="cuda")
    with torch.inference_mode():
        truth, other = (model(ids).logits[0].float().log_softmax(-1) for model in (exact, rounded))
    worst = float((truth - other).abs().max())
    for place, record in enumerate(got):
        if record is not None:
            says = float(truth[place - 1, prompt[place]])
            assert abs(record.logprob - says) <= 2 * worst + 1e-3
