"""A grid has sixteen numbers, zero among them, and rounding to it is what is stored."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minisgl.kernel.int4 import dequantise
from minisgl.quantize.grid import grid, to_int4


@settings(max_examples=60, deadline=None)
@given(
    outputs=st.integers(1, 3),
    groups=st.integers(1, 3),
    group=st.integers(1, 40),
    mean=st.sampled_from([0.0, 1.0, -3.0]),
    size=st.sampled_from([1e-4, 0.02, 30.0]),
    shrink=st.sampled_from([1.0, 0.6]),
)
def test_what_is_stored_is_the_nearest_of_the_grid(
    outputs: int, groups: int, group: int, mean: float, size: float, shrink: float
) -> None:
    torch.manual_seed(group)
    weight = (torch.randn(8 * outputs, groups, group) + mean) * size
    on = grid(weight, shrink)
    assert torch.equal(on.scales, on.scales.half().float()), "a scale is a float16"
    assert torch.equal(dequantise(to_int4(weight, on)), on.nearest(weight).flatten(1))
    numbers = (torch.arange(16.0) - on.zeros) * on.scales  # (outputs, groups, 16)
    assert (numbers == 0).any(2).all()
    distance = (weight[..., None] - numbers[:, :, None]).abs()
    chosen = (weight - on.nearest(weight)).abs()
    assert (chosen <= distance.amin(3) * (1 + 1e-5) + 1e-7 * size).all()
    if shrink == 1.0:  # all is in reach, but for the rounding of zero and scale
        assert (chosen <= on.scales * 1.02).all()


def test_a_group_of_zeros_stays_zero() -> None:
    weight = torch.zeros(8, 2, 32)
    weight[:, 1] = -0.5
    rounded = grid(weight).nearest(weight)
    assert not rounded[:, 0].any()
    torch.testing.assert_close(rounded[:, 1], weight[:, 1], rtol=1e-3, atol=0)


def test_weights_too_large_for_a_scale_are_refused() -> None:
    with pytest.raises(ValueError, match="up to 2e.06 are too large for four bits"):
        grid(torch.full((8, 1, 4), 2e6))
