"""What a GPU allows at best, measured, and what the benchmarks on one need of it."""

from __future__ import annotations

import gc
from collections.abc import Callable
from statistics import median
from typing import NamedTuple

import torch

from minisgl.bench.gpu_shapes import SHAPES
from minisgl.bench.work import Work


class Gpu(NamedTuple):
    """What this GPU does at best, measured."""

    bandwidth: float  # bytes per second that a copy reads and writes
    products: float  # bf16 multiplications and additions per second


def measured() -> Gpu:
    """A copy of 4 GiB and a bf16 product of 8192 cubed: medians of 10."""
    made = Gpu(_copy_rate(1 << 32), _product_rate(8192))
    forget()
    return made


def _copy_rate(size: int) -> float:
    source = torch.empty(size, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    return 2 * size / timed(lambda: target.copy_(source))


def _product_rate(size: int) -> float:
    a, b = (torch.randn(size, size, device="cuda").bfloat16() for _ in range(2))
    return 2 * size**3 / timed(lambda: a @ b)


def timed(
    call: Callable[[], object], repeats: int = 10, before: Callable[[], object] | None = None
) -> float:
    """Seconds on the device: the median, the first two left out. before: called ahead of each."""
    times = list[float]()
    for _ in range(repeats + 2):
        if before is not None:
            before()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e-3)
    return median(times[2:])


def step_limit(name: str, rows: int, positions: int, gpu: Gpu) -> float:
    """Seconds that a decode step takes at least: weights and keys read once, products computed.

    positions: of all rows' contexts together.
    """
    shape = SHAPES[name]
    hidden, dim = shape["hidden_size"], shape["head_dim"]
    q, kv = shape["num_attention_heads"] * dim, shape["num_key_value_heads"] * dim
    layer = hidden * (2 * q + 2 * kv + 3 * shape["intermediate_size"])
    weights = shape["num_hidden_layers"] * layer + shape["vocab_size"] * hidden
    keys = shape["num_hidden_layers"] * 2 * kv * positions
    seconds: float = max(2 * (weights + keys) / gpu.bandwidth, 2 * weights * rows / gpu.products)
    return seconds


def offline_limit(name: str, work: Work, gpu: Gpu) -> float:
    """Seconds that the offline benchmark takes at least: prompts at the rate of products, then one
    decode step after the other, all requests beginning together."""
    shape = SHAPES[name]
    hidden, dim = shape["hidden_size"], shape["head_dim"]
    q, kv = shape["num_attention_heads"] * dim, shape["num_key_value_heads"] * dim
    layer = hidden * (2 * q + 2 * kv + 3 * shape["intermediate_size"])
    prompts = sum(len(asked.prompt) for asked in work.requests)
    seconds: float = 2 * prompts * shape["num_hidden_layers"] * layer / gpu.products
    for step in range(1, max(asked.num_tokens for asked in work.requests)):
        running = [asked for asked in work.requests if asked.num_tokens > step]
        positions = sum(len(asked.prompt) + step for asked in running)
        seconds += step_limit(name, len(running), positions, gpu)
    return seconds


def forget() -> None:
    """Give freed memory back to the GPU."""
    gc.collect()
    torch.cuda.empty_cache()
