"""Linear layers that multiply with one matrix on each rank, read part by part."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from minisgl.distributed.group import Group, share
from minisgl.layers.norm import RMSNorm
from minisgl.layers.source import Part, Source


class ColumnLinear:
    """y = x W^T + b for this rank's outputs: rows of several stored matrices, stacked once.

    A norm stands before it in all models, so what multiplies is ``RMSNorm.then`` or ``then_gated``.
    """

    def __init__(self, source: Source, parts: Sequence[Part], in_features: int, bias: bool) -> None:
        biases = None
        if bias:
            biases, begin = source.empty(sum(len(part.rows) for part in parts)), 0
            for part in parts:
                own = biases[begin : begin + len(part.rows)]
                source.fill(own, f"{part.name}.bias", (part.total,), (part.rows.start,))
                begin += len(own)
        self.matrix = source.linear(parts, in_features, range(in_features), biases)


class RowLinear:
    """y = x W^T + b where each rank holds some of x's columns and of W's; y is whole on each."""

    def __init__(
        self,
        source: Source,
        name: str,
        in_features: int,
        columns: range,
        out_features: int,
        bias: bool,
        group: Group,
    ) -> None:
        whole = Part(name, out_features, range(out_features))
        self.matrix = source.linear([whole], in_features, columns)
        self.bias = source.empty(out_features) if bias else None
        if self.bias is not None:
            source.fill(self.bias, f"{name}.bias", (out_features,))
        self._group = group

    def __call__(self, x: Tensor) -> Tensor:
        """x: (tokens, this rank's columns). Returns (tokens, out_features)."""
        y = self._group.all_reduce(self.matrix(x))
        return y if self.bias is None else y.add_(self.bias)  # once, not once per rank


def qkv_linear(
    source: Source,
    name: str,
    hidden_size: int,
    head_dim: int,
    heads: tuple[int, range],
    kv_heads: tuple[int, range],
    bias: bool,
) -> ColumnLinear:
    """The projections to queries, keys and values as one matrix.

    heads, kv_heads: how many the model has, and which of them this rank owns.
    Its output is (tokens, (q + k + v heads of this rank) * head_dim), in that order.
    """
    parts = [
        Part(
            f"{name}.{projection}",
            total * head_dim,
            range(own.start * head_dim, own.stop * head_dim),
        )
        for projection, (total, own) in (
            ("q_proj", heads),
            ("k_proj", kv_heads),
            ("v_proj", kv_heads),
        )
    ]
    return ColumnLinear(source, parts, hidden_size, bias)


class GatedMLP:
    """down(silu(gate(x)) * up(x)), gate and up as one matrix. Source: Shazeer 2020 (SwiGLU)."""

    def __init__(
        self,
        source: Source,
        name: str,
        hidden_size: int,
        intermediate_size: int,
        bias: bool,
        group: Group,
    ) -> None:
        own = share(intermediate_size, group, "MLP columns")
        parts = [
            Part(f"{name}.{part}", intermediate_size, own) for part in ("gate_proj", "up_proj")
        ]
        self.gate_up = ColumnLinear(source, parts, hidden_size, bias)
        self.down = RowLinear(
            source, f"{name}.down_proj", intermediate_size, own, hidden_size, bias, group
        )

    def __call__(self, x: Tensor, residual: Tensor | None, norm: RMSNorm) -> tuple[Tensor, Tensor]:
        """Of the norm of x + residual. x, residual: (tokens, hidden_size), both given up.

        Returns what to add to the residual stream next, and the stream.
        """
        active, residual = norm.then_gated(self.gate_up.matrix, x, residual)
        return self.down(active), residual
