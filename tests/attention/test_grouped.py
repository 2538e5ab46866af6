"""The fast backend agrees with the oracle, and the oracle with torch on unpaged keys."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from minisgl.attention.base import Meta
from minisgl.attention.grouped import GroupedAttention
from minisgl.attention.torch import TorchAttention
from minisgl.executor.kv_pool import KVPool
from minisgl.kernel.paging import store_kv

CPU = torch.device("cpu")


class Case:
    """A random batch over a pool full of random keys, its own among them."""

    def __init__(
        self,
        rows: list[tuple[int, int]],  # (start, length)
        page_size: int,
        heads: int,
        kv_heads: int,
        dim: int,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        torch.manual_seed(len(rows) + page_size)
        starts, lengths = (np.array(column, dtype=np.int64) for column in zip(*rows, strict=True))
        pages = [-(-(start + length) // page_size) for start, length in rows]
        self.num_pages, width, tokens = sum(pages) + 3, max(pages), int(lengths.sum())
        free, table = torch.randperm(self.num_pages), torch.zeros(len(rows), width).int()
        locations: list[Tensor] = []
        for i, (start, length) in enumerate(rows):
            table[i, : pages[i]] = free[: pages[i]]
            table[i, pages[i] :] = free[-1]  # any page: it must not be seen
            free = free[pages[i] :]
            at = torch.arange(start, start + length)
            locations.append(table[i, at // page_size].long() * page_size + at % page_size)
        self.meta = Meta(starts, lengths, table, torch.cat(locations))
        self.pool = KVPool(1, self.num_pages, page_size, kv_heads, dim, dtype, CPU)
        for memory in (*self.pool.keys, *self.pool.values):
            memory.normal_()
        self.q = torch.randn(tokens, heads, dim).to(dtype)
        self.k, self.v = torch.randn(2, tokens, kv_heads, dim).to(dtype)
        store_kv(self.k, self.v, self.pool.place(0, self.meta.locations))


def attend(
    backend: type[GroupedAttention] | type[TorchAttention], case: Case, window: int | None
) -> Tensor:
    attention = backend(case.pool, () if window is None else (window,))
    attention.prepare(case.meta)
    return attention.attend(0, case.q, case.k, case.v)


@settings(max_examples=60)
@given(
    rows=st.lists(st.tuples(st.integers(0, 70), st.integers(1, 40) | st.just(1)), min_size=1),
    page_size=st.sampled_from([1, 3, 16, 64]),
    shape=st.sampled_from([(4, 2, 8), (3, 1, 5), (2, 2, 16), (8, 2, 24)]),
    window=st.none() | st.integers(1, 60),
)
def test_grouped_equals_the_oracle(
    rows: list[tuple[int, int]],
    page_size: int,
    shape: tuple[int, int, int],
    window: int | None,
) -> None:
    torch.set_num_threads(1)
    case = Case(rows, page_size, *shape)
    fast, slow = (attend(backend, case, window) for backend in (GroupedAttention, TorchAttention))
    torch.testing.assert_close(fast, slow, atol=1e-5, rtol=1e-5)


def test_the_oracle_equals_torch_on_keys_that_lie_in_order() -> None:
    case = Case([(0, 13)], 4, 4, 2, 8)
    q, k, v = (x.transpose(0, 1)[None] for x in (case.q, case.k, case.v))
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    result = attend(TorchAttention, case, None)
    torch.testing.assert_close(result, expected[0].transpose(0, 1).flatten(1))


def test_many_decodes_of_very_different_lengths_are_cut_into_groups() -> None:
    torch.set_num_threads(1)
    rows = [(length, 1) for length in (1, 2, 3, 700, 90, 650, 3000, 40, 41, 42, 0)]
    case = Case(rows, 16, 8, 8, 64)
    torch.testing.assert_close(
        attend(GroupedAttention, case, None), attend(TorchAttention, case, None), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_agrees_to_its_rounding(dtype: torch.dtype) -> None:
    case = Case([(0, 9), (30, 1), (20, 7), (44, 1)], 4, 4, 2, 16, dtype)
    torch.testing.assert_close(
        attend(GroupedAttention, case, 11), attend(TorchAttention, case, 11), atol=2e-2, rtol=2e-2
    )


@pytest.mark.parametrize("backend", [GroupedAttention, TorchAttention])
def test_attention_writes_to_no_page(
    backend: type[GroupedAttention] | type[TorchAttention],
) -> None:
    case = Case([(5, 1), (3, 6)], 4, 4, 2, 8)
    before = case.pool.keys[0].clone(), case.pool.values[0].clone()
    attend(backend, case, None)
    assert all(map(torch.equal, before, (case.pool.keys[0], case.pool.values[0])))


def test_only_the_positions_of_the_batch_are_written() -> None:
    case = Case([(5, 1), (3, 6)], 4, 4, 2, 8)
    keys, values = case.pool.keys[0].flatten(0, 1), case.pool.values[0].flatten(0, 1)
    before, (k, v) = keys.clone(), torch.randn(2, *case.k.shape)
    store_kv(k, v, case.pool.place(0, case.meta.locations))
    changed = (before != keys).flatten(1).any(1).nonzero().flatten()
    assert changed.tolist() == sorted(case.meta.locations.tolist())
    assert torch.equal(keys[case.meta.locations], k)
    assert torch.equal(values[case.meta.locations], v)
