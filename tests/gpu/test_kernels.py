"""Each CUDA kernel agrees with its plain twin; the GPU attention backends with the oracle.

All tests that need a GPU: pytest -m gpu.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from minisgl import registry
from minisgl.attention.base import DeviceMeta, Meta
from minisgl.attention.cuda import CudaAttention
from minisgl.attention.torch import TorchAttention
from minisgl.executor.kv_pool import KVPool
from minisgl.kernel.base import Kernels
from minisgl.kernel.paging import store_kv
from tests.kernel.agreement import BF16, DTYPES, KernelsAgree
from tests.kernel.agreement import pytest_generate_tests as pytest_generate_tests

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    made: Kernels = registry.find("kernels", "cuda")()
    return made


class TestOnAGpu(KernelsAgree):
    """The kernels as they are launched."""

    device = "cuda"
    values: ClassVar[dict[str, list[Any]]] = {
        "dtype": DTYPES,
        "rows": [1, 7, 300],
        "size": [8, 256, 1024, 4096, 5120, 16384],
        "shape": [(1024, 2048), (4096, 1024), (151_936, 1024), (5, 8), (2561, 264)],
        "sides": [(6144, 1024), (1024, 3072), (2561, 264), (5, 8), (12, 20), (4096, 12_288)],
        "inner": [8, 3072, 17408],
        "logits": [(1, 1), (7, 7), (1, 151_936), (64, 128_257), (300, 32_000), (1025, 151_936)],
    }


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, device="cuda").bfloat16()


def batch(
    rows: list[tuple[int, int]], page_size: int, shape: tuple[int, int, int]
) -> tuple[Meta, KVPool, tuple[Tensor, Tensor, Tensor]]:
    """Random keys on scrambled pages, and these rows' new positions: (start, length)."""
    torch.manual_seed(len(rows))
    heads, kv_heads, dim = shape
    starts, lengths = (np.array(column, np.int64) for column in zip(*rows, strict=True))
    counts = [-(-(start + length) // page_size) for start, length in rows]
    free = torch.randperm(sum(counts) + 1, device="cuda").int()
    table = torch.zeros(len(rows), max(counts), dtype=torch.int32, device="cuda")
    where, taken = list[Tensor](), 0
    for i, (start, length) in enumerate(rows):
        table[i, : counts[i]] = free[taken : taken + counts[i]]
        taken += counts[i]
        at = torch.arange(start, start + length, device="cuda")
        where.append(table[i, at // page_size].long() * page_size + at % page_size)
    device = torch.device("cuda")
    pool = KVPool(1, sum(counts) + 1, page_size, kv_heads, dim, torch.bfloat16, device)
    pool.keys[0].normal_()
    pool.values[0].normal_()
    tokens = int(lengths.sum())
    q, k, v = (normal(tokens, n, dim) for n in (heads, kv_heads, kv_heads))
    meta = Meta(starts, lengths, table, torch.cat(where))
    store_kv(k, v, pool.place(0, meta.locations))
    return meta, pool, (q, k, v)


BATCHES: dict[str, list[tuple[int, int]]] = {
    "prompts": [(0, 33), (0, 1), (0, 200)],
    "chunks": [(77, 40), (5, 1), (300, 129)],
    "decodes": [(0, 1), (500, 1), (17, 1), (1023, 1)],
    "one": [(2000, 1)],
}


@pytest.mark.parametrize("name", ["fa3", "flashinfer", "triton"])
@pytest.mark.parametrize("rows", BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize("page_size", [1, 16, 64])
@pytest.mark.parametrize("shape", [(4, 2, 64), (16, 8, 128), (32, 8, 128), (40, 8, 128)], ids=str)
def test_attention_equals_the_oracle(
    name: str, rows: list[tuple[int, int]], page_size: int, shape: tuple[int, int, int]
) -> None:
    meta, pool, new = batch(rows, page_size, shape)
    made: Any = registry.find("attention", name)(pool, ())
    made.prepare(meta)
    fast = made.attend(0, *new)
    oracle = TorchAttention(pool, ())
    oracle.prepare(meta)
    torch.testing.assert_close(fast, oracle.attend(0, *new), **BF16)


@pytest.mark.parametrize("ends", [[1], [2000], [500, 17, 1023, 16], [521] * 16, [*range(1, 300)]])
@pytest.mark.parametrize("page_size", [16, 64])
@pytest.mark.parametrize(
    "shape",
    [(4, 2, 64), (16, 8, 128), (40, 8, 128), (9, 9, 128), (8, 1, 128), (64, 8, 128)],
    ids=str,
)
@pytest.mark.parametrize("window", [None, 100])
def test_decode_attention_in_cuda_equals_the_oracle(
    ends: list[int], page_size: int, shape: tuple[int, int, int], window: int | None
) -> None:
    meta, pool, new = batch([(end - 1, 1) for end in ends], page_size, shape)
    made, oracle = (kind(pool, (window,)) for kind in (CudaAttention, TorchAttention))
    for attention in (made, oracle):
        attention.prepare(meta)
    torch.testing.assert_close(made.attend(0, *new), oracle.attend(0, *new), **BF16)


@pytest.mark.parametrize("name", ["fa3", "flashinfer", "triton", "fa3,cuda"])
@pytest.mark.parametrize("shape", [(4, 2, 64), (40, 8, 128)], ids=str)
def test_captured_attention_follows_what_lengths_and_pages_become(
    name: str, shape: tuple[int, int, int]
) -> None:
    meta, pool, new = batch([(500, 1), (17, 1), (1023, 1)], 16, shape)
    made: Any = registry.find("attention", name)(pool, ())
    pages = torch.zeros_like(meta.pages)
    ends = torch.ones(3, dtype=torch.int32, device="cuda")
    first = torch.arange(4, dtype=torch.int32, device="cuda")
    where = torch.zeros_like(meta.locations)
    ones = np.ones(3, np.int64)
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        replan = made.capture(Meta(ones - 1, ones, pages, where, DeviceMeta(ends, first)), shape[0])
        made.captured()
        made.attend(0, *new)
        graph.capture_begin()
        made.captured()
        out = made.attend(0, *new)
        graph.capture_end()
        pages.copy_(meta.pages)
        ends.copy_(torch.from_numpy(meta.starts + 1))
        where.copy_(meta.locations)
        replan(meta.starts + 1)
        graph.replay()
    torch.cuda.synchronize()
    oracle = TorchAttention(pool, ())
    oracle.prepare(meta)
    torch.testing.assert_close(out, oracle.attend(0, *new), **BF16)
