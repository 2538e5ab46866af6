"""Attention in C++ agrees with the oracle."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minisgl.attention.native import NativeAttention
from minisgl.attention.torch import TorchAttention
from tests.attention.test_grouped import Case


def agree(case: Case, window: int | None) -> None:
    results = []
    for backend in (NativeAttention, TorchAttention):
        attention = backend(case.pool, () if window is None else (window,))
        attention.prepare(case.meta)
        results.append(attention.attend(0, case.q, case.k, case.v))
    torch.testing.assert_close(*results, atol=1e-5, rtol=1e-5)


@settings(max_examples=150, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 70), st.integers(1, 40) | st.just(1)), min_size=1),
    page_size=st.sampled_from([1, 3, 16, 64]),
    shape=st.sampled_from([(4, 2, 8), (3, 1, 5), (2, 2, 16), (8, 2, 24), (5, 1, 40), (14, 2, 64)]),
    window=st.none() | st.integers(1, 60),
)
def test_native_equals_the_oracle(
    rows: list[tuple[int, int]],
    page_size: int,
    shape: tuple[int, int, int],
    window: int | None,
) -> None:
    torch.set_num_threads(1)
    agree(Case(rows, page_size, *shape), window)


def test_long_rows_and_two_threads() -> None:
    torch.set_num_threads(2)
    try:
        agree(Case([(700, 1), (0, 300), (3000, 1), (650, 40), (90, 1)], 16, 8, 4, 128), None)
        agree(Case([(700, 1)], 16, 8, 4, 128), 99)
    finally:
        torch.set_num_threads(1)


def test_keys_that_point_the_same_way_do_not_overflow() -> None:
    case = Case([(40, 1), (0, 9)], 16, 4, 2, 32)
    case.q.mul_(1000)
    agree(case, None)


def test_another_dtype_is_refused_with_the_way_out() -> None:
    case = Case([(0, 2)], 4, 2, 1, 8, torch.bfloat16)
    with pytest.raises(ValueError, match="use attention='grouped'"):
        NativeAttention(case.pool, ())
