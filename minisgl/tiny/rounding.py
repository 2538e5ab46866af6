"""Int4 rounding of weights, simulated in floating point: for training against it and for measuring
it.
"""

import torch
from torch import Tensor, nn


def _range(groups: Tensor) -> tuple[Tensor, Tensor]:
    """Step and integer zero point of each group of an asymmetric 4-bit grid that contains 0.
    groups: (n, group).
    """
    low = groups.amin(1, keepdim=True).clamp(max=0)
    high = groups.amax(1, keepdim=True).clamp(min=0)
    step = ((high - low) / 15).clamp(min=1e-8)
    return step, (-low / step).round()


def round_int4(weight: Tensor, group: int) -> Tensor:
    """The nearest weight that 4 bits, one step and one zero point per `group` values in a row can
    hold.
    """
    groups = weight.reshape(-1, group)
    step, zero = _range(groups)
    codes = ((groups / step).round() + zero).clamp(0, 15)
    return ((codes - zero) * step).reshape(weight.shape)


def shake_int4(weight: Tensor, group: int) -> Tensor:
    """The weight with even noise of one int4 step, as some unknown rounding would leave it."""
    groups = weight.reshape(-1, group)
    step, _ = _range(groups)
    return (groups + (torch.rand_like(groups) - 0.5) * step).reshape(weight.shape)


def linears(model: nn.Module) -> list[nn.Linear]:
    """The linear layers that int4 kernels serve: all but the output matrix (the embedding)."""
    return [
        m
        for n, m in model.named_modules()
        if isinstance(m, nn.Linear) and not n.endswith("lm_head")
    ]
