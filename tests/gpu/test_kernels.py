"""Each CUDA kernel agrees with its plain twin; the GPU attention backends with the oracle.

All tests that need a GPU: pytest -m gpu.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from minisgl import registry
from minisgl.attention.base import DeviceMeta, Meta
from minisgl.attention.torch import TorchAttention
from minisgl.executor.kv_pool import KVPool
from minisgl.kernel.base import DecodeInputs, DecodeTables, Kernels
from minisgl.kernel.plain import PlainKernels

pytestmark = pytest.mark.gpu
BF16: dict[str, Any] = {"atol": 2e-2, "rtol": 2e-2}


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    made: Kernels = registry.find("kernels", "cuda")()
    return made


def normal(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(shape, device="cuda").to(dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("rows", [1, 7, 300])
@pytest.mark.parametrize("size", [8, 256, 1024, 4096, 5120, 16384])
def test_norms_agree(kernels: Kernels, rows: int, size: int, dtype: torch.dtype) -> None:
    torch.manual_seed(size)
    x, residual, weight = (normal(n, size, dtype=dtype) for n in (rows, rows, 1))
    plain = PlainKernels()
    near: dict[str, Any] = {"atol": 1e-5, "rtol": 1e-5} if dtype == torch.float32 else BF16
    ours, theirs = (k.rms_norm(x, weight[0], 1e-6) for k in (kernels, plain))
    torch.testing.assert_close(ours, theirs, **near)
    sums = residual.clone(), residual.clone()
    ours, theirs = (
        k.add_rms_norm(x, total, weight[0], 1e-6)
        for k, total in zip((kernels, plain), sums, strict=True)
    )
    torch.testing.assert_close(ours, theirs, **near)
    torch.testing.assert_close(*sums, atol=0, rtol=0)


@pytest.mark.parametrize("tokens", [1, 2, 3, 4])
@pytest.mark.parametrize(
    "shape", [(1024, 2048), (4096, 1024), (151_936, 1024), (5, 8), (2561, 264)]
)
@pytest.mark.parametrize("biased", [True, False])
def test_products_agree(
    kernels: Kernels, tokens: int, shape: tuple[int, int], biased: bool
) -> None:
    torch.manual_seed(tokens)
    weight, x = normal(*shape), normal(tokens, shape[1])
    bias = normal(shape[0]) if biased else None
    exact = x.double() @ weight.double().t() + (0 if bias is None else bias.double())
    for some in (kernels, PlainKernels()):
        got = some.matrix(weight, bias, half=False, rows=False)(x)
        assert (got - exact).norm() < 5e-3 * exact.norm()


@pytest.mark.parametrize("rows", [1, 33])
@pytest.mark.parametrize("size", [8, 3072, 17408])
def test_silu_and_mul_agrees(kernels: Kernels, rows: int, size: int) -> None:
    x = normal(rows, 2 * size)
    torch.testing.assert_close(kernels.silu_and_mul(x), PlainKernels().silu_and_mul(x), **BF16)


@pytest.mark.parametrize("dim", [24, 64, 80, 128, 256])
@pytest.mark.parametrize("normed", [True, False])
def test_heads_are_normalised_and_turned_alike(kernels: Kernels, dim: int, normed: bool) -> None:
    x, weight = normal(9, 10, dim), normal(7, dim) if normed else None
    angle = torch.rand(9, 1, dim // 2, device="cuda") * 6
    cos, sin = angle.cos().bfloat16(), angle.sin().bfloat16()
    ours, theirs = (
        k.norm_and_rotate(x.clone(), 7, weight, 1e-6, cos, sin) for k in (kernels, PlainKernels())
    )
    torch.testing.assert_close(ours, theirs, atol=4e-2, rtol=2e-2)


@pytest.mark.parametrize("dim", [64, 128, 20])
def test_keys_and_values_are_stored_alike(kernels: Kernels, dim: int) -> None:
    qkv = normal(50, 8, dim)
    k, v = qkv[:, 4:6], qkv[:, 6:]
    where = torch.randperm(90, device="cuda")[:50]
    pools = [torch.zeros(2, 90, 2, dim, device="cuda").bfloat16() for _ in range(2)]
    for pool, some in zip(pools, (kernels, PlainKernels()), strict=True):
        some.store_kv(k, v, pool[0], pool[1], where)
    assert torch.equal(*pools)


def test_decode_steps_are_laid_out_alike(kernels: Kernels) -> None:
    torch.manual_seed(0)
    slots, width, size, rows = 40, 30, 4, 24
    table = torch.randint(0, 999, (slots, width), dtype=torch.int32, device="cuda")
    last = torch.randint(0, 999, (slots,), device="cuda")
    packed = torch.zeros(5, rows, dtype=torch.int64, device="cuda")
    packed[0] = torch.randperm(slots, device="cuda")[:rows]
    packed[1] = torch.randint(0, width * size, (rows,), device="cuda")
    packed[2] = torch.where(torch.rand(rows, device="cuda") < 0.5, -1, 7)
    own = packed[0] * width + packed[1] // size
    packed[3] = torch.where(torch.rand(rows, device="cuda") < 0.5, own, -1)
    packed[4] = torch.arange(rows, device="cuda") + 1000
    made = []
    for some in (kernels, PlainKernels()):
        tables = DecodeTables(table.clone(), last, size)
        wide = torch.zeros(3, rows, dtype=torch.int64, device="cuda")
        ends = torch.zeros(rows, dtype=torch.int32, device="cuda")
        pages = torch.zeros(rows, width, dtype=torch.int32, device="cuda")
        some.decode_inputs(
            packed.ravel(), tables, DecodeInputs(wide[0], wide[1], wide[2], ends, pages)
        )
        used = torch.arange(width, device="cuda") <= (packed[1] // size)[:, None]
        made.append((tables.pages, wide, ends, pages * used))
    assert all(torch.equal(a, b) for a, b in zip(*made, strict=True))


def test_pages_are_flattened_alike(kernels: Kernels) -> None:
    pages = torch.randint(0, 999, (5, 7), dtype=torch.int32, device="cuda")
    first = torch.tensor([0, 3, 3, 10, 11, 18], dtype=torch.int32, device="cuda")
    out = [torch.zeros(19, dtype=torch.int32, device="cuda") for _ in range(2)]
    for into, some in zip(out, (kernels, PlainKernels()), strict=True):
        some.flatten_pages(pages, first, into)
    assert torch.equal(out[0][:18], out[1][:18])


def batch(
    rows: list[tuple[int, int]], page_size: int, shape: tuple[int, int, int]
) -> tuple[Meta, KVPool, tuple[Tensor, Tensor, Tensor]]:
    """Random keys on scrambled pages, and new positions for these rows: (start, length)."""
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
    new = normal(tokens, heads, dim), normal(tokens, kv_heads, dim), normal(tokens, kv_heads, dim)
    return Meta(starts, lengths, table, torch.cat(where)), pool, new


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


@pytest.mark.parametrize("name", ["fa3", "flashinfer", "triton"])
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
    before = pool.keys[0].clone(), pool.values[0].clone()
    with torch.cuda.stream(stream):
        replan = made.capture(Meta(ones - 1, ones, pages, where, DeviceMeta(ends, first)), shape[0])
        made.captured()
        made.attend(0, *new)
        graph.capture_begin()
        made.captured()
        out = made.attend(0, *new)
        graph.capture_end()
        pool.keys[0].copy_(before[0])
        pool.values[0].copy_(before[1])
        pages.copy_(meta.pages)
        ends.copy_(torch.from_numpy(meta.starts + 1))
        where.copy_(meta.locations)
        replan(meta.starts + 1)
        graph.replay()
    torch.cuda.synchronize()
    oracle = TorchAttention(pool, ())
    oracle.prepare(meta)
    torch.testing.assert_close(out, oracle.attend(0, *new), **BF16)
