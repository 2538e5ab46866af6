"""Products of many tokens are right, run on a CPU by an emulation of a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

ROUNDING = {torch.float16: 2**-11, torch.bfloat16: 2**-8}  # of a result, to its size


@pytest.fixture(scope="module")
def gpu(emulated: Callable[[str], Any]) -> Any:
    """What csrc/many.cu exports, on a CPU."""
    return emulated("many.cu")


@settings(max_examples=25, deadline=None)
@given(
    tokens=st.sampled_from([1, 17, 63, 64, 65, 128, 129, 200]),
    outputs=st.integers(1, 12),
    inputs=st.sampled_from([8, 64, 72, 640, 1000]),
    gated=st.booleans(),
    high=st.sampled_from([64, 128]),
    wide=st.sampled_from([32, 48, 64, 96]),
    parts=st.sampled_from([1, 2, 3]),
    across=st.sampled_from([1, 2]),
    dtype=st.sampled_from(list(ROUNDING)),
    biased=st.booleans(),
    eager=st.booleans(),
    seed=st.integers(0, 99),
)
def test_the_product_is_that_of_the_numbers_however_it_is_shared(
    gpu: Any,
    tokens: int,
    outputs: int,
    inputs: int,
    gated: bool,
    high: int,
    wide: int,
    parts: int,
    across: int,
    dtype: torch.dtype,
    biased: bool,
    eager: bool,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    above = -(-tokens // high) if across > 1 else 1
    rows, chunks = outputs * 8 * (1 + gated), -(-inputs // 64)
    if above > 2 or (wide // 8 // (1 + gated)) % above:
        above = across = 1
    x = torch.randn(tokens, inputs + 8).to(dtype)[:, :inputs]  # of a wider matrix
    weight = (torch.randn(rows, inputs) / inputs**0.5).to(dtype)
    bias = torch.randn(rows).to(dtype) if biased else None
    around = torch.full((tokens + 4, outputs * 8), -7.0).to(dtype)
    shared = high, wide, min(parts, chunks), across, above
    gpu["emulate"](seed, eager)
    gpu["multiply"](x, weight, bias, around[2:-2], gated, *shared)
    exact = x.double() @ weight.double().t() + (0 if bias is None else bias.double())
    if gated:
        gate, up = exact.to(dtype).double().chunk(2, -1)
        exact = torch.nn.functional.silu(gate) * up
    got = around[2:-2].clone()
    assert (got.double() - exact).norm() <= 2 * ROUNDING[dtype] * exact.norm()
    assert (around[:2] == -7).all() and (around[-2:] == -7).all()
    gpu["emulate"](seed + 1, not eager)
    gpu["multiply"](x, weight, bias, around[2:-2], gated, *shared)
    assert torch.equal(around[2:-2], got), "sums are added in one order"
