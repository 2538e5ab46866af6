"""Our Triton backend agrees with the oracle: interpreted on a CPU, compiled where a GPU is."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minisgl.attention.base import Capturable, DeviceMeta, Meta
from minisgl.attention.torch import TorchAttention
from minisgl.attention.triton import TritonAttention
from minisgl.kernel.base import Turn
from minisgl.kernel.plain import PlainKernels
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


@settings(max_examples=12)
@given(
    ends=st.lists(st.integers(1, 300) | st.sampled_from([1, 64, 65, 129]), min_size=1, max_size=5),
    page_size=st.sampled_from([1, 3, 16]),
    shape=st.sampled_from([(4, 1, 16), (5, 1, 24), (4, 2, 8)]),
    window=st.none() | st.integers(1, 150),
    normed=st.booleans(),
)
def test_heads_are_turned_and_kept_on_the_way(
    ends: list[int],
    page_size: int,
    shape: tuple[int, int, int],
    window: int | None,
    normed: bool,
) -> None:
    case = on_device(Case([(end - 1, 1) for end in ends], page_size, *shape))
    heads, kv_heads, dim = shape
    windows = () if window is None else (window,)
    weight = 1 + torch.randn(heads + kv_heads, dim, device=DEVICE) / 4 if normed else None
    angles = torch.randn(len(ends), 1, dim // 2, device=DEVICE)
    qkv = torch.randn(len(ends), heads + 2 * kv_heads, dim + 8, device=DEVICE)[..., :dim]
    qkv = qkv.flatten(1).view(len(ends), -1, dim)
    turn = Turn(PlainKernels(), weight, 1e-6, angles.cos(), angles.sin())
    place, oracle = case.pool.place(0, case.meta.locations), TorchAttention(case.pool, windows)
    before = [x.clone() for x in (place.keys, place.values)]
    oracle.prepare(case.meta)
    slow = oracle.attend(0, *turn.store(qkv.clone(), place))
    kept = [x.clone() for x in (place.keys, place.values)]
    place.keys.copy_(before[0]), place.values.copy_(before[1])
    ours = TritonAttention(case.pool, windows)
    ours.prepare(case.meta)
    assert ours.turn_and_attend(0, qkv, turn) is None, "plain kernels show every step"
    unused: Any = None
    for _ in range(2):
        fast = ours.turn_and_attend(0, qkv, turn._replace(kernels=unused))
        torch.testing.assert_close(fast, slow, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close([place.keys, place.values], kept)


def test_prompts_are_turned_apart() -> None:
    case = on_device(Case([(5, 3), (9, 1)], 4, 4, 2, 8))
    ours, unused = TritonAttention(case.pool, ()), torch.zeros(0)
    ours.prepare(case.meta)
    kernels: Any = None
    turn = Turn(kernels, None, 0.0, unused, unused)
    assert ours.turn_and_attend(0, torch.zeros(4, 8, 8, device=DEVICE), turn) is None


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
