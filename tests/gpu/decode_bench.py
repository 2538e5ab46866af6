"""Scratch: decode attention in Triton and in CUDA, us a layer in a graph. python tests/gpu/decode_bench.py"""

import sys

import numpy as np
import torch

from minisgl.attention.base import DeviceMeta, Meta
from minisgl.attention.cuda import CudaAttention
from minisgl.attention.triton import TritonAttention
from minisgl.executor.kv_pool import KVPool

torch.manual_seed(0)


def case(rows: int, lengths: list[int], heads: int, kv: int = 8, dim: int = 128) -> None:
    counts = [-(-n // 16) for n in lengths]
    each = (sum(counts) + 1) * 16 * kv * dim * 4
    layers = max(2, min(12, int(400e6 // each) + 1))
    device = torch.device("cuda")
    pool = KVPool(layers, sum(counts) + 1, 16, kv, dim, torch.bfloat16, device)
    for x in (*pool.keys, *pool.values):
        x.normal_()
    free = torch.randperm(sum(counts) + 1, device="cuda").int()
    table, taken = torch.zeros(rows, 130, dtype=torch.int32, device="cuda"), 0
    for i, n in enumerate(counts):
        table[i, :n] = free[taken : taken + n]
        taken += n
    ends = torch.tensor(lengths, dtype=torch.int32, device="cuda")
    first = torch.arange(rows + 1, dtype=torch.int32, device="cuda")
    ones = np.ones(rows, np.int64)
    meta = Meta(
        ones,
        ones,
        table,
        torch.zeros(rows, dtype=torch.int64, device="cuda"),
        DeviceMeta(ends, first),
    )
    q = torch.randn(rows, heads, dim, device="cuda").bfloat16()
    bytes_ = sum(lengths) * kv * dim * 4
    outs = {}
    graphs = {}
    stream = torch.cuda.Stream()
    for name, kind in (("triton", TritonAttention), ("cuda", CudaAttention)):
        made = kind(pool, ())
        with torch.cuda.stream(stream):
            made.capture(meta, heads)
            made.attend(0, q, q, q)
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            graph.capture_begin()
            for k in range(24):
                out = made.attend(k % layers, q, q, q)
            graph.capture_end()
        outs[name], graphs[name] = out, graph
    torch.cuda.synchronize()
    for graph in graphs.values():
        graph.replay()
    torch.cuda.synchronize()
    error = (outs["triton"].float() - outs["cuda"].float()).norm() / outs["triton"].float().norm()
    print(
        rows,
        "mean",
        sum(lengths) // rows,
        "heads",
        heads,
        "error %.1e" % error,
        "at 4.2 TB/s: %.1f us" % (bytes_ / 4.2e6),
        end=" ",
    )
    for _ in range(2):
        for name, graph in graphs.items():
            a, z = (torch.cuda.Event(enable_timing=True) for _ in "az")
            a.record()
            for _ in range(5):
                graph.replay()
            z.record()
            torch.cuda.synchronize()
            us = a.elapsed_time(z) * 1e3 / 120
            print(name, "%.1f us (%.2f TB/s)" % (us, bytes_ / us / 1e6), end=" ")
    print(flush=True)


random = np.random.default_rng(0)
for rows in (5, 16, 32, 64, 128, 256):
    for heads in (16, 32) if rows in (16, 64, 256) else (16,):
        case(rows, [521] * rows, heads)
    case(rows, [int(n) for n in random.integers(300, 1500, rows)], 16)
sys.exit()
