"""Four-bit products on a GPU: tensor cores agree with the numbers, tokens with the CPU's.

All tests that need a GPU: pytest -m gpu.
"""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch

import minisgl
from minisgl.core import SamplingParams
from minisgl.kernel.int4 import Int4, dequantise
from minisgl.kernel.marlin import MarlinInt4
from minisgl.kernel.plain import PlainKernels
from minisgl.layers.quantization.awq_marlin import awq_marlin
from tests.gpu.test_tokens import prompts
from tests.kernel.test_int4 import random
from tests.kernel.test_marlin import exact

pytestmark = pytest.mark.gpu
DTYPES = [torch.bfloat16, torch.float16]
ASK = SamplingParams(max_tokens=48, ignore_eos=True)


def made(outputs: int, groups: int, group: int, dtype: torch.dtype) -> Int4:
    codes, zeros, scales, _ = random(outputs, groups, group)
    return Int4(codes.cuda(), zeros.cuda(), scales.cuda(), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("group", [32, 64, 128, 1024])
@pytest.mark.parametrize("outputs", [64, 192, 6144])
def test_products_agree_for_every_number_of_tokens(
    outputs: int, group: int, dtype: torch.dtype
) -> None:
    weight = made(outputs, 1024 // group, group, dtype)
    bias = torch.randn(outputs, device="cuda").to(dtype)
    matrix, close = MarlinInt4(weight, bias), 2**-8 if dtype == torch.bfloat16 else 2**-11
    for tokens in (1, 2, 7, 8, 9, 16, 17, 32, 33, 64, 65, 129, 192, 256, 257):
        x = torch.randn(tokens, 1024 + 8, device="cuda").to(dtype)[:, :1024]
        want = exact(weight, x, bias)
        got = matrix(x)
        # many tokens take weights that were rounded first
        allowed = close if tokens <= 256 else 2 * close
        assert (got.double() - want).abs().max() <= allowed * want.abs().max()
        assert torch.equal(matrix(x), got), "results repeat"
        if matrix.gates(x):
            gate, up = got.float().chunk(2, -1)
            active = torch.nn.functional.silu(gate) * up
            torch.testing.assert_close(matrix.gated(x).float(), active, rtol=2 * close, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("blocks", [1, 3, 7, 100])
def test_however_the_work_is_shared_the_product_is_the_same(
    blocks: int, dtype: torch.dtype
) -> None:
    weight = made(512, 24, 128, dtype)
    matrix, close = MarlinInt4(weight, None), 2**-8 if dtype == torch.bfloat16 else 2**-11
    for tokens in (5, 16, 20, 50, 70):
        x = torch.randn(tokens, 24 * 128, device="cuda").to(dtype)
        want = exact(weight, x)
        for _ in range(10):
            got = matrix.multiply(x, blocks)
            assert (got.double() - want).abs().max() <= close * want.abs().max()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_unpacking_is_exact(dtype: torch.dtype) -> None:
    weight = made(192, 6, 64, dtype)
    assert torch.equal(MarlinInt4(weight, None).dequantise(), dequantise(weight))


def test_a_product_can_be_captured_and_replayed() -> None:
    weight = made(4096, 32, 128, torch.bfloat16)
    matrix = MarlinInt4(weight, None)
    x = torch.randn(3, 4096, device="cuda").bfloat16()
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        matrix(x)
        graph.capture_begin()
        out = matrix(matrix(x))  # one right after the other, on the same parts
        graph.capture_end()
        for _ in range(5):
            x.normal_()
            graph.replay()
            torch.cuda.synchronize()
            assert torch.equal(out, matrix(matrix(x)))


def test_a_shape_that_tensor_cores_do_not_take_is_computed_by_triton() -> None:
    weight = made(72, 2, 128, torch.bfloat16)
    with pytest.warns(RuntimeWarning, match="72 outputs and 256 inputs"):
        matrix = awq_marlin(PlainKernels(), weight, None, rows=False)
    x = torch.randn(4, 256, device="cuda").bfloat16()
    torch.testing.assert_close(matrix(x).double(), exact(weight, x), atol=2e-2, rtol=2e-2)


def outputs(**toggles: Any) -> list[tuple[int, ...]]:
    """All prompts' tokens; they arrive in the middle of each other."""
    sizes: dict[str, Any] = {"num_pages": 4096, "max_running": 8, "check": True}
    with minisgl.load("tiny-awq", **sizes | toggles) as engine:
        asked = []
        for prompt in prompts():
            asked.append(engine.add(prompt, ASK))
            engine.step()
        engine.run()
        return [request.output for request in asked]


@pytest.fixture(scope="module")
def truth() -> list[tuple[int, ...]]:
    return outputs(device="cpu", dtype="float32")


@pytest.mark.parametrize("quantization", ["awq", "awq_marlin"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("cuda_graph", [True, False], ids=["graph", "eager"])
def test_greedy_tokens_are_those_of_the_cpu(
    quantization: str, dtype: str, cuda_graph: bool, truth: list[tuple[int, ...]]
) -> None:
    """Where one differs, it was close: the CPU's own score of it is within rounding of the best."""
    made = outputs(device="cuda", dtype=dtype, quantization=quantization, cuda_graph=cuda_graph)
    parted = 0
    for prompt, ours, says in zip(prompts(), made, truth, strict=True):
        if ours == says:
            continue
        parted += 1
        at = next(i for i, (a, b) in enumerate(zip(ours, says, strict=True)) if a != b)
        with minisgl.load("tiny-awq", device="cpu", dtype="float32") as engine:
            ask = SamplingParams(max_tokens=1, logprobs=20)
            request = engine.add([*prompt, *says[:at]], ask)
            engine.run()
            assert request.logprobs is not None and request.logprobs[0] is not None
            scores = dict(request.logprobs[0].top)
        assert ours[at] in scores and scores[says[at]] - scores[ours[at]] < 0.25
    print(f"{parted} of {len(made)} requests part, at logits closer than rounding")
    assert parted <= len(made) // 2


def test_auto_takes_tensor_cores_and_says_so_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "minisgl"), minisgl.load("tiny-awq") as engine:
        assert engine.config.quantization == "awq_marlin"
    said = [r.getMessage() for r in caplog.records if "four bits" in r.getMessage()]
    assert len(said) == 1 and "'awq_marlin'" in said[0]
    with minisgl.load("tiny-awq", quantization="awq") as engine:
        assert engine.config.quantization == "awq"
