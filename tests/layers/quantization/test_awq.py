"""Four bits as they are stored: exact in float32, and nothing else is touched."""

from __future__ import annotations

import pytest
import torch

from minisgl.kernel.base import Kernels
from minisgl.kernel.int4 import dequantise
from minisgl.layers.quantization.awq import awq
from minisgl.layers.quantization.fp16 import fp16
from minisgl.layers.quantization.stored import stored
from minisgl.registry import find
from tests.kernel.test_int4 import random


@pytest.fixture(params=["torch", "native"])
def kernels(request: pytest.FixtureRequest) -> Kernels:
    torch.set_num_threads(1)
    found: Kernels = find("kernels", request.param)()
    return found


def test_four_bits_multiply_as_the_numbers_that_they_stand_for(kernels: Kernels) -> None:
    weight, bias = random(64, 2, 64), torch.randn(64)
    x = torch.randn(5, 128)
    kept = awq(kernels, weight, bias, rows=False)
    same = stored(kernels, weight, bias, rows=False)
    torch.testing.assert_close(kept(x), same(x), atol=1e-5, rtol=1e-5)
    assert torch.equal(kept(torch.eye(128)) - bias, same(torch.eye(128)) - bias)


def test_a_weight_that_is_not_packed_stays_as_it_is(kernels: Kernels) -> None:
    weight = torch.randn(40, 24)
    matrix = awq(kernels, weight.clone(), None, rows=True)
    assert torch.equal(matrix.rows(torch.arange(40)), weight)


def test_fp16_rounds_the_numbers_that_four_bits_stand_for(kernels: Kernels) -> None:
    weight = random(64, 2, 64)
    exact = fp16(kernels, weight, None, rows=False)(torch.eye(128)).t()
    assert torch.equal(exact, dequantise(weight).half().float())
