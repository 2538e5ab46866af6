"""What happens to a layer's rows between attention calls, as functions that have two makers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from minisgl.kernel.int4 import Int4


class Matrix(Protocol):
    """A weight matrix in the form in which it is multiplied: (outputs, inputs), maybe a bias."""

    shape: tuple[int, int]
    num_bytes: int  # what it takes, the bias left out

    def __call__(self, x: Tensor) -> Tensor:
        """x: (tokens, inputs). Returns x W^T + b: (tokens, outputs)."""
        ...

    def rows(self, ids: Tensor) -> Tensor:
        """Rows of W in the dtype that is computed in: (n, inputs), which the caller may write to.

        ids: (n,) int64. Only for a matrix that was made with ``rows``.
        """
        ...


class Place(NamedTuple):
    """Where a batch's new keys and values go on one layer."""

    keys: Tensor  # (positions, kv_heads, head_dim), all pages' positions one after the other
    values: Tensor  # the same
    locations: Tensor  # (tokens,) int64: the position of each token


class DecodeTables(NamedTuple):
    """What the device remembers of each slot, and how many positions a page has."""

    pages: Tensor  # (slots, width) int32
    last: Tensor  # (slots,) int64
    page_size: int


class DecodeInputs(NamedTuple):
    """What a model and its attention are given in a step of one position a row."""

    ids: Tensor  # (rows,) int64
    positions: Tensor  # (rows,) int64
    locations: Tensor  # (rows,) int64: page * page_size + offset
    ends: Tensor  # (rows,) int32: positions + 1
    pages: Tensor  # (rows, width) int32: each row's table as far as it is used


class LayerWeights(NamedTuple):
    """What a decoder's layer multiplies with, in the order in which it does."""

    attention_norm: Tensor  # (hidden,)
    qkv: Matrix
    head_norm: Tensor | None  # (query and key heads, head_dim)
    o: Matrix
    mlp_norm: Tensor  # (hidden,)
    gate_up: Matrix
    down: Matrix
    window: int | None  # newest positions that a token sees; None: all


class Shape(NamedTuple):
    """What all layers of a decoder have in common."""

    hidden: int
    inner: int  # numbers between an MLP's products
    heads: int
    kv_heads: int
    head_dim: int
    eps: float  # of the norms
    head_eps: float  # of the norms of queries and keys


class TokenMemory(NamedTuple):
    """The pages of one row, as a kernel takes them that computes a token on all layers."""

    pools: Tensor  # (layers, 2) int64 on the device: where each layer's keys and values are
    pages: Tensor  # (1, n) int32
    end: Tensor  # (1,) int32: how many positions the row has, this token's included
    page_size: int


class AllLayers(Protocol):
    """A decoder's layers for one token."""

    def __call__(self, x: Tensor, cos: Tensor, sin: Tensor, memory: TokenMemory) -> Tensor:
        """x: (1, hidden); cos, sin: (1, 1, head_dim / 2) of its position. Stores its keys and
        values. Returns the residual stream behind the last layer: (1, hidden)."""
        ...


class Kernels(Protocol):
    """The twins: ``kernel.plain`` anywhere, ``kernel.native`` on a CPU in float32, ``kernel.cuda``
    on an NVIDIA GPU."""

    def matrix(self, weight: Tensor, bias: Tensor | None, *, half: bool, rows: bool) -> Matrix:
        """Take over a weight (outputs, inputs), which may be rearranged in place.

        half: round its numbers to float16, which can hold them; else they stay what they are.
        rows: whether its rows will be asked for. Raises ValueError where ``half`` cannot be had.
        """
        ...

    def int4(self, weight: Int4, bias: Tensor | None) -> Matrix:
        """Take over a weight of four bits. No number is changed by more than the rounding to the
        dtype that is computed in, which float32 does not need."""
        ...

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """x / rms(x) * weight of each row. x: (tokens, size), kept."""
        ...

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Add x to ``residual`` in place, then the norm of that. Both (tokens, size)."""
        ...

    def silu_and_mul(self, x: Tensor) -> Tensor:
        """silu of the first half times the second half: (tokens, 2n) -> (tokens, n). x is kept."""
        ...

    def normed_product(
        self, matrix: Matrix, x: Tensor, residual: Tensor | None, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """Add x to ``residual``, if there is one; the norm of the sum is multiplied.

        x, residual: (tokens, inputs). Returns the product and the sum, which may be x itself or in
        the residual's memory: whoever calls gives up both.
        """
        ...

    def normed_gated_product(
        self, matrix: Matrix, x: Tensor, residual: Tensor | None, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """The same, of whose product silu of the first half times the second half is returned.

        (tokens, outputs / 2).
        """
        ...

    def megakernel(self, layers: Sequence[LayerWeights], shape: Shape) -> AllLayers | None:
        """All these layers for a single token as one kernel; None where there is none for them."""
        ...

    def rotation(
        self, positions: Tensor, frequencies: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """Cosine and sine of each position's angles: (tokens, 1, pairs) each, of this dtype.

        positions: (tokens,) int64; frequencies: (pairs,) float32, as are the angles.
        """
        ...

    def turn_and_store(
        self, qkv: Tensor, weight: Tensor | None, eps: float, cos: Tensor, sin: Tensor, to: Place
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Turn each token's query and key heads, RMS-normalised first if there is a weight, and
        store its keys and values.

        qkv: (tokens, heads, head_dim), query heads before as many key and value heads as ``to``
        has; it may be written to. weight: (query and key heads, head_dim). cos, sin: (tokens, 1,
        head_dim / 2). Returns queries, keys and values: (tokens, their heads, head_dim) each.
        """
        ...

    def decode_inputs(self, packed: Tensor, tables: DecodeTables, into: DecodeInputs) -> None:
        """Lay out a step in which each row computes one position; updates the page table first.

        packed: (5 * rows,) int64 on the device: runs of slots, positions, tokens (below 0: the one
        that the slot sampled last), entries of the flat page table to write (below 0: none; each
        among its own slot's first entries, up to that of the position) and the pages to write.
        """
        ...

    def flatten_pages(self, pages: Tensor, first: Tensor, out: Tensor) -> None:
        """Each row's pages one after the other: row i's first ones to out[first[i] : first[i + 1]].

        pages: (rows, n) int32; first: (rows + 1,) int32; out: int32, at least one place longer than
        all of them, which may be written to.
        """
        ...

    def choose_greedy(self, logits: Tensor, slots: Tensor, last: Tensor) -> Tensor:
        """The first of each row's largest logits, which the rows' slots remember: (rows,) int64.

        logits: (rows, vocab_size), where a NaN is larger than any number; slots: (rows,) int64.
        last: (slots,) int64, what each slot sampled last; written to.
        """
        ...
