"""float16 weights: how far they are from exact, what is refused, and that tokens stay."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
import torch

import minisgl
from minisgl.kernel.base import Kernels
from minisgl.layers.quantization.fp16 import fp16
from minisgl.registry import find
from tests.checkpoints import write


@pytest.fixture(params=("torch", "native"))
def kernels(request: pytest.FixtureRequest) -> Kernels:
    torch.set_num_threads(1)
    found: Kernels = find("kernels", request.param)()
    return found


def test_the_result_is_that_of_rounded_weights_in_float32(kernels: Kernels) -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(200, 96), torch.randn(5, 96) * 1e6  # activations are never rounded
    y = fp16(kernels, weight.clone(), None, rows=False)(x)
    torch.testing.assert_close(y, x @ weight.half().float().t(), rtol=1e-5, atol=20)


def test_a_weight_departs_by_the_rounding_of_float16_and_no_more(kernels: Kernels) -> None:
    weight = torch.randn(64, 256) * torch.logspace(-9, 4, 256)
    matrix = fp16(kernels, weight.clone(), None, rows=True)
    error = (matrix.rows(torch.arange(64)) - weight).abs()
    assert (error <= torch.maximum(weight.abs() * 2**-11, torch.tensor(2.0**-25))).all()
    exact = matrix(torch.eye(256)).t()
    assert torch.equal(exact, weight.half().float())


@pytest.mark.parametrize("value", [65_520.0, -70_000.0, float("inf"), float("nan")])
def test_a_weight_that_float16_cannot_hold_is_refused(kernels: Kernels, value: float) -> None:
    weight = torch.ones(4, 8)
    weight[2, 3] = value
    with pytest.raises(ValueError, match="cannot hold a weight of .*use quantization=None"):
        fp16(kernels, weight, None, rows=False)


def test_another_dtype_is_refused_with_the_way_out(kernels: Kernels) -> None:
    with pytest.raises(ValueError, match="use dtype='float16' there"):
        fp16(kernels, torch.ones(2, 2, dtype=torch.bfloat16), None, rows=False)


@pytest.mark.parametrize("which", ("torch", "native"))
def test_the_embedded_model_says_the_same_words(which: str) -> None:
    """Its weights were stored in float16: packing them changes no number."""
    random = Random(5)
    prompts = [[random.randrange(5, 1000) for _ in range(random.randint(3, 60))] for _ in range(20)]
    ask = minisgl.SamplingParams(max_tokens=16, ignore_eos=True)
    said = []
    for quantization in (None, "fp16"):
        with minisgl.load("tiny", kernels=which, quantization=quantization) as engine:
            requests = [engine.add(prompt, ask) for prompt in prompts]
            engine.run()
            said.append([request.output for request in requests])
    assert said[0] == said[1]


@pytest.mark.parametrize("which", ("torch", "native"))
def test_a_model_stored_in_float32_stays_close(which: str, tmp_path: Path) -> None:
    folder = write("llama", tmp_path)
    scores = []
    for quantization in (None, "fp16"):
        with minisgl.load(folder, kernels=which, quantization=quantization) as engine:
            ask = minisgl.SamplingParams(max_tokens=0, prompt_logprobs=0)
            request = engine.add(list(range(5, 95)), ask)
            engine.run()
            given = request.prompt_logprobs
            assert given is not None
            scores.append([one.logprob for one in given if one is not None])
    worst = max(abs(a - b) for a, b in zip(*scores, strict=True))
    assert 0 < worst < 0.05
