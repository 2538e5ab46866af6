"""Attention of decode steps in CUDA is right, run on a CPU by an emulation of a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from minisgl.attention.base import DeviceMeta, Meta
from minisgl.attention.cuda import CudaAttention
from minisgl.attention.torch import TorchAttention
from minisgl.executor.kv_pool import KVPool

ROUNDING = {torch.float16: 2**-11, torch.bfloat16: 2**-8}  # of a result, to its size
BLOCK, LITTLE = 227 << 10, 99 << 10  # bytes that a block may have, on an H200 and on other GPUs


@pytest.fixture(scope="module")
def gpu(emulated: Callable[[str], Any]) -> Iterator[Any]:
    """What csrc/decode.cu exports, on a CPU."""
    module = emulated("decode.cu")
    yield module
    module["allow"](120 << 10)


class Rows:
    """Random keys of rows on scrambled pages; what lies behind a row is NaN."""

    def __init__(
        self, ends: Sequence[int], page_size: int, kv_heads: int, dim: int, dtype: torch.dtype
    ) -> None:
        counts = [-(-end // page_size) for end in ends]
        self.table = torch.zeros(len(ends), max(counts) + 1, dtype=torch.int32)
        free = torch.randperm(sum(counts) + 1).int()
        for i, count in enumerate(counts):
            self.table[i, :count], free = free[:count], free[count:]
        shape = sum(counts) + 1, page_size, kv_heads, dim
        self.keys, self.values = torch.randn(2, *shape).to(dtype)
        self.ends = torch.tensor(ends, dtype=torch.int32)
        self.newest = list[Tensor]()  # keys and values that the kernel ahead stores
        for i, end in enumerate(ends):
            page, at = int(self.table[i, counts[i] - 1]), (end - 1) % page_size
            for x in (self.keys, self.values):
                x[page, at + 1 :] = float("nan")
                self.newest.append(x[page, at])

    def attention(self, row: int, q: Tensor, window: int | None) -> Tensor:
        """q: (heads, dim). In float64, (heads, dim)."""
        size, (kv_heads, dim) = self.keys.shape[1], self.keys.shape[2:]
        at = torch.arange(int(self.ends[row]))[-(window or 1 << 30) :]
        where = self.table[row, at // size].long() * size + at % size
        group = len(q) // kv_heads
        k, v = (
            x.view(-1, kv_heads, dim)[where].double().repeat_interleave(group, 1)
            for x in (self.keys, self.values)
        )
        weights = torch.einsum("hd,phd->hp", q.double(), k).mul(dim**-0.5).softmax(1)
        return torch.einsum("hp,phd->hd", weights, v)


def check(
    gpu: Any, rows: Rows, queries: int, shares: int, window: int | None, eager: bool, seed: int
) -> None:
    """The kernel's rows are those of all keys."""
    (kv_heads, dim), dtype, count = rows.keys.shape[2:], rows.keys.dtype, len(rows.ends)
    q = torch.randn(count, queries + 1, dim).to(dtype)[:, :-1]  # of a wider tensor
    arrived = torch.zeros(shares * kv_heads, dtype=torch.int32)
    parts = torch.full((2 * shares, queries, dim), 9e9)
    sums = torch.full((2 * shares, queries), 9e9)
    out = torch.full((count, queries * dim), -7.0).to(dtype)
    gpu["emulate"](seed, eager, eager)
    for x in rows.newest:
        gpu["late"](x)
    scratch = parts, sums, arrived, window or 0, shares
    gpu["attend"](q, rows.keys, rows.values, rows.table, rows.ends, out, *scratch)
    assert not arrived.any()
    for i in range(count):
        right = rows.attention(i, q[i], window)
        error = (out[i].view(queries, dim).double() - right).norm(dim=1) / right.norm(dim=1)
        assert error.max() <= 4 * ROUNDING[dtype], (i, error)


@settings(max_examples=30, deadline=None)
@given(
    ends=st.lists(
        st.integers(1, 200) | st.sampled_from([1, 16, 17, 64, 640]), min_size=1, max_size=6
    ),
    page_size=st.sampled_from([16, 32, 48, 64]),
    heads=st.sampled_from(
        [(1, 1), (8, 1), (6, 2), (15, 3), (8, 4), (9, 9), (12, 2), (7, 1), (20, 5)]
    ),
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
    queries, kv_heads = heads
    rows = Rows(ends, page_size, kv_heads, dim, dtype)
    check(gpu, rows, queries, shares, window, eager, seed)


@pytest.mark.parametrize("heads", [(8, 8), (16, 8), (10, 10)], ids=str)
@pytest.mark.parametrize("dim", [64, 128])
def test_many_rows_have_blocks_of_many_heads(gpu: Any, heads: tuple[int, int], dim: int) -> None:
    gpu["allow"](BLOCK)
    torch.manual_seed(dim)
    rows = Rows([1] * 60 + [5, 16, 17, 33, 64, 70], 16, heads[1], dim, torch.bfloat16)
    check(gpu, rows, heads[0], 3, None, False, 1)


def test_rows_may_have_pages_in_common(gpu: Any) -> None:
    torch.manual_seed(0)
    rows = Rows([70, 50, 1, 1], 16, 2, 64, torch.bfloat16)
    rows.table[1, :3] = rows.table[0, :3]  # a prefix of 48
    rows.table[3] = rows.table[2]  # as rows that fill up a graph
    check(gpu, rows, 4, 5, None, False, 1)


@pytest.mark.parametrize("limit", [BLOCK, LITTLE])
@pytest.mark.parametrize("kv_heads", [1, 2, 3, 5, 8, 16])
def test_blocks_find_room_for_the_keys_of_many_rows(gpu: Any, limit: int, kv_heads: int) -> None:
    gpu["allow"](limit)
    for dim in (64, 128):
        keys = torch.empty(1, 16, kv_heads, dim, dtype=torch.bfloat16)
        for count in (1, 4, 5, 64, 65, 256, 4096):
            assert 1 <= gpu["shares"](keys, count) <= 5, (dim, count)  # processors
    assert gpu["shares"](torch.empty(1, 8, kv_heads, 64), 1) == 0
    assert gpu["shares"](torch.empty(1, 16, kv_heads, 96), 1) == 0
    assert gpu["shares"](torch.empty(1, 16, kv_heads, 64), 100_000) == 0


@pytest.mark.parametrize("window", [None, 40])
def test_the_backend_equals_the_oracle(gpu: Any, window: int | None) -> None:
    gpu["allow"](BLOCK)
    torch.manual_seed(1)
    made = Rows([40, 1, 100], 16, 2, 64, torch.bfloat16)
    device = torch.device("cpu")
    pool = KVPool(2, len(made.keys), 16, 2, 64, torch.bfloat16, device)
    for mine, its in ((pool.keys, made.keys), (pool.values, made.values)):
        mine[1].copy_(its.nan_to_num(0.0))
    ends = np.array([40, 1, 100])
    meta = Meta(ends - 1, np.ones(3, np.int64), made.table, torch.zeros(3, dtype=torch.int64))
    windows = () if window is None else (None, window)
    ours, oracle = CudaAttention(pool, windows, gpu), TorchAttention(pool, windows)
    q = torch.randn(3, 64, 8).bfloat16().transpose(1, 2)
    k = v = torch.zeros(3, 2, 64, dtype=torch.bfloat16)
    gpu["emulate"](1, False, False)
    for attention in (ours, oracle):
        attention.prepare(meta)
    slow = oracle.attend(1, q, k, v)
    torch.testing.assert_close(ours.attend(1, q, k, v), slow, atol=0.02, rtol=0.02)
    # a graph's rows: the last of them fills it up
    padded = torch.cat((made.table, made.table[1:2]))
    first = torch.arange(5, dtype=torch.int32)
    on_device = DeviceMeta(torch.tensor([40, 1, 100, 1], dtype=torch.int32), first)
    ours.capture(meta._replace(pages=padded, device=on_device), 8)(ends)
    fast = ours.attend(1, torch.cat((q, q[:1])), k, v)
    torch.testing.assert_close(fast[:3], slow, atol=0.02, rtol=0.02)


@pytest.mark.parametrize(
    ("name", "says"),
    [("keys", "queries' type"), ("values", "queries' type"), ("table", "int32"), ("ends", "int32")],
)
def test_tensors_of_another_type_are_refused(gpu: Any, name: str, says: str) -> None:
    rows = Rows([5], 16, 1, 64, torch.bfloat16)
    setattr(rows, name, getattr(rows, name).double())
    with pytest.raises(RuntimeError, match=says):
        gpu["attend"](
            *(torch.ones(1, 1, 64).bfloat16(), rows.keys, rows.values, rows.table, rows.ends),
            *(torch.empty(1, 64).bfloat16(), torch.empty(2, 1, 64), torch.empty(2, 1)),
            *(torch.zeros(1, dtype=torch.int32), 0, 1),
        )


def test_what_the_kernel_does_not_take_is_named(gpu: Any) -> None:
    device = torch.device("cpu")

    def pool(page_size: int, dim: int) -> KVPool:
        return KVPool(1, 2, page_size, 2, dim, torch.bfloat16, device)

    with pytest.raises(ValueError, match="here are heads of 64 on pages of 8; use"):
        CudaAttention(pool(8, 64), (), gpu)
    with pytest.raises(ValueError, match="here are heads of 96 on pages of 16; use"):
        CudaAttention(pool(16, 96), (), gpu)
    count = 100_000
    ones, zeros = np.ones(count, np.int64), torch.zeros(count, dtype=torch.int64)
    meta = Meta(ones - 1, ones, torch.zeros(count, 1, dtype=torch.int32), zeros)
    with pytest.raises(ValueError, match="no room for 100000 rows .* lower max_running, or use"):
        CudaAttention(pool(16, 64), (), gpu).prepare(meta)
