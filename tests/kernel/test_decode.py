"""Attention of decode steps in CUDA is right, run on a CPU by an emulation of a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

ROUNDING = {torch.float16: 2**-11, torch.bfloat16: 2**-8}  # of a result, to its size


@pytest.fixture(scope="module")
def gpu(emulated: Callable[[str], Any]) -> Any:
    """What csrc/decode.cu exports, on a CPU."""
    return emulated("decode.cu")


def attention(q: Tensor, keys: Tensor, values: Tensor, window: int | None) -> Tensor:
    """q: (heads, dim); keys, values: (positions, kv_heads, dim). In float64: (heads, dim)."""
    group = q.shape[0] // keys.shape[1]
    k, v = (x[-(window or len(x)) :].double().repeat_interleave(group, 1) for x in (keys, values))
    weights = torch.einsum("hd,phd->hp", q.double(), k).mul(q.shape[1] ** -0.5).softmax(1)
    return torch.einsum("hp,phd->hd", weights, v)


@settings(max_examples=30, deadline=None)
@given(
    ends=st.lists(
        st.integers(1, 200) | st.sampled_from([1, 16, 17, 64, 640]), min_size=1, max_size=6
    ),
    page_size=st.sampled_from([16, 32, 64]),
    heads=st.sampled_from([(1, 1), (8, 1), (6, 2), (15, 3), (8, 4), (9, 9)]),
    dim=st.sampled_from([64, 128]),
    window=st.none() | st.integers(1, 100),
    shares=st.sampled_from([1, 2, 5, 13]),
    dtype=st.sampled_from(list(ROUNDING)),
    eager=st.booleans(),
    seed=st.integers(0, 99),
)
def test_attention_is_that_of_all_keys_however_they_are_shared(
    gpu: Any,
    ends: list[int],
    page_size: int,
    heads: tuple[int, int],
    dim: int,
    window: int | None,
    shares: int,
    dtype: torch.dtype,
    eager: bool,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    rows, (queries, kv_heads) = len(ends), heads
    counts = [-(-end // page_size) for end in ends]
    table, free = torch.zeros(rows, max(counts) + 1).int(), torch.randperm(sum(counts) + 1)
    for i, count in enumerate(counts):
        table[i, :count], free = free[:count], free[count:]
    every = [
        table[i, torch.arange(end) // page_size].long() * page_size + torch.arange(end) % page_size
        for i, end in enumerate(ends)
    ]
    keys, values = torch.randn(2, sum(counts) + 1, page_size, kv_heads, dim).to(dtype)
    for i, end in enumerate(ends):  # what lies behind a row is nobody's
        for x in (keys, values):
            x[table[i, counts[i] - 1], (end - 1) % page_size + 1 :] = float("nan")
    flat = [x.view(-1, kv_heads, dim) for x in (keys, values)]
    q = torch.randn(rows, queries + 1, dim).to(dtype)[:, :-1]  # of a wider tensor
    arrived = torch.zeros(shares * kv_heads, dtype=torch.int32)
    parts, sums = torch.full((2 * shares, queries, dim), 9e9), torch.full(
        (2 * shares, queries), 9e9
    )
    out = torch.full((rows, queries * dim), -7.0).to(dtype)
    on_device = torch.tensor(ends, dtype=torch.int32)
    gpu["emulate"](seed, eager, eager)
    scratch = parts, sums, arrived, window or 0, shares
    gpu["attend"](q, keys, values, table, on_device, out, *scratch)
    assert not arrived.any()
    for i, where in enumerate(every):
        right = attention(q[i], flat[0][where], flat[1][where], window)
        error = (out[i].view(queries, dim).double() - right).norm(dim=1) / right.norm(dim=1)
        assert error.max() <= 4 * ROUNDING[dtype], (i, error)
