"""Our Triton backend agrees with the oracle: interpreted on a CPU, compiled where a GPU is."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minisgl.attention.base import Capturable, DeviceMeta, Meta
from minisgl.attention.torch import TorchAttention
from minisgl.attention.triton import TritonAttention
from tests.attention.test_grouped import Case

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when kernels are defined, at the first backend
pytest.importorskip("triton", reason="needs Triton, which comes with torch for GPUs")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def on_device(case: Case) -> Case:
    """The same case where Triton can compute it."""
    pool, meta = case.pool, case.meta
    pool.keys, pool.values = ([x.to(DEVICE) for x in xs] for xs in (pool.keys, pool.values))
    pool._flat = [
        (k.flatten(0, 1), v.flatten(0, 1)) for k, v in zip(pool.keys, pool.values, strict=True)
    ]
    pages, locations = meta.pages.to(DEVICE), meta.locations.to(DEVICE)
    case.meta = meta._replace(pages=pages, locations=locations)
    case.q, case.k, case.v = (x.to(DEVICE) for x in (case.q, case.k, case.v))
    return case


def check(case: Case, window: int | None) -> None:
    case, windows = on_device(case), () if window is None else (window,)
    ours, oracle = TritonAttention(case.pool, windows), TorchAttention(case.pool, windows)
    oracle.prepare(case.meta)
    slow = oracle.attend(0, case.q, case.k, case.v)
    ours.prepare(case.meta)
    for _ in range(2):  # what the first call notes is gone before the second
        fast = ours.attend(0, case.q, case.k, case.v)
        torch.testing.assert_close(fast, slow, atol=1e-4, rtol=1e-4)


@settings(max_examples=8)
@given(
    rows=st.lists(
        st.tuples(st.integers(0, 90), st.integers(1, 40) | st.just(1)), min_size=1, max_size=3
    ),
    page_size=st.sampled_from([1, 3, 16]),
    shape=st.sampled_from([(4, 2, 8), (5, 1, 24), (2, 2, 16)]),
    window=st.none() | st.integers(1, 60),
)
def test_triton_equals_the_oracle(
    rows: list[tuple[int, int]],
    page_size: int,
    shape: tuple[int, int, int],
    window: int | None,
) -> None:
    check(Case(rows, page_size, *shape), window)


@settings(max_examples=12)
@given(
    ends=st.lists(st.integers(1, 400) | st.sampled_from([64, 128]), min_size=1, max_size=6),
    page_size=st.sampled_from([1, 3, 16]),
    shape=st.sampled_from([(4, 1, 16), (5, 1, 24), (4, 2, 8)]),
    window=st.none() | st.integers(1, 150),
)
def test_a_decode_step_is_cut_into_equal_shares_wherever_rows_end(
    ends: list[int], page_size: int, shape: tuple[int, int, int], window: int | None
) -> None:
    check(Case([(end - 1, 1) for end in ends], page_size, *shape), window)


def test_what_is_captured_reads_lengths_and_pages_on_the_device() -> None:
    case = on_device(Case([(70, 1), (9, 1)], 4, 4, 2, 8))
    ends = torch.zeros(2, dtype=torch.int32, device=DEVICE)
    first = torch.arange(3, dtype=torch.int32, device=DEVICE)
    one = np.ones(2, np.int64)
    meta = Meta(one - 1, one, case.meta.pages, case.meta.locations, DeviceMeta(ends, first))
    ours: Capturable = TritonAttention(case.pool, ())
    replan = ours.capture(meta, 4)
    ends.copy_(torch.tensor([71, 10]))  # filled in after capturing, as a replay does
    replan(np.array([71, 10]))
    fast = ours.attend(0, case.q, case.k, case.v)
    oracle = TorchAttention(case.pool, ())
    oracle.prepare(case.meta)
    slow = oracle.attend(0, case.q, case.k, case.v)
    torch.testing.assert_close(fast, slow, atol=1e-4, rtol=1e-4)
