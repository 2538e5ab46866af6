"""The searches find less error than plain rounding, never more, and where it is known how much."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from minisgl.quantize.grid import grid
from minisgl.quantize.search import best_factors, best_grid, grouped, nearest, outputs_error


def error(weight: Tensor, x: Tensor, factors: Tensor) -> float:
    return outputs_error(nearest(weight * factors, 32) / factors - weight, x)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 99), spread=st.sampled_from([0.0, 1.0, 2.0]))
def test_factors_never_add_error(seed: int, spread: float) -> None:
    torch.manual_seed(seed)
    weight = torch.randn(24, 64)
    x = torch.randn(100, 64) * torch.exp(spread * torch.randn(64))
    factors = best_factors(x, x.abs().mean(0), [weight], 32)
    assert error(weight, x, factors) <= error(weight, x, torch.ones(64))
    torch.testing.assert_close(factors.max() * factors.min(), torch.tensor(1.0))


def test_a_few_large_inputs_get_the_finer_steps() -> None:
    """Lin et al. 2023: one input in a hundred carries most of what rounding costs."""
    torch.manual_seed(0)
    weight, x = torch.randn(64, 128), torch.randn(500, 128)
    large = [5, 77]
    x[:, large] *= 40
    factors = best_factors(x, x.abs().mean(0), [weight], 32)
    others = torch.ones(128, dtype=torch.bool)
    others[large] = False
    assert factors[large].min() > 2 * factors[others].max()
    assert error(weight, x, factors) < 0.3 * error(weight, x, torch.ones(128))


def test_matrices_that_share_inputs_count_by_their_own_size() -> None:
    torch.manual_seed(1)
    x = torch.randn(200, 64) * torch.exp(torch.randn(64))
    small, large = torch.randn(8, 64), torch.randn(8, 64)
    shared = best_factors(x, x.abs().mean(0), [small, large], 32)
    scaled = best_factors(x, x.abs().mean(0), [small, large * 1024], 32)
    assert torch.equal(shared, scaled)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 99))
def test_a_searched_reach_never_adds_error_to_a_group(seed: int) -> None:
    torch.manual_seed(seed)
    weight, x = torch.distributions.StudentT(2.0).sample(torch.Size((16, 3, 32))), torch.randn(
        50, 96
    )
    chosen, plain = best_grid(x, weight), grid(weight)
    for group in range(3):
        seen = x[:, 32 * group : 32 * group + 32]
        for output in range(16):
            some = weight[output, group]
            after, before = (
                float((seen @ (on.nearest(weight)[output, group] - some)).square().sum())
                for on in (chosen, plain)
            )
            assert after <= before * (1 + 1e-4)


def test_an_outlier_that_no_input_reads_is_left_out_of_reach() -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(8, 1, 64), torch.randn(200, 64)
    weight[:, 0, 9] = 9.0
    x[:, 9] *= 0.001
    shorter = best_grid(x, weight).scales / grid(weight).scales
    assert (shorter < 1).all() and shorter.mean() < 0.8


def test_outputs_are_searched_each_by_itself() -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(40, 2, 32), torch.randn(60, 64)
    whole = best_grid(x, weight)
    parts = [best_grid(x, some) for some in weight.split(7)]
    assert torch.equal(whole.scales, torch.cat([part.scales for part in parts]))
    assert torch.equal(grouped(weight.flatten(1), 32), weight)
