"""What the machine allows: bytes over its measured bandwidth, products over its measured rate."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from time import perf_counter, thread_time
from typing import Any, NamedTuple

import torch

from minisgl.bench.work import Work


class Machine(NamedTuple):
    """One thread of this machine."""

    bandwidth: float  # bytes that it reads per second
    products: float  # multiplications and additions per second, in the best matrix product it has


def machine(megabytes: int = 256, size: int = 1024) -> Machine:
    """Measure it: the best of several tries, since a limit is what nobody exceeds."""
    from minisgl import registry
    from minisgl.build import load

    torch.set_num_threads(1)
    memory = torch.ones(megabytes << 18)
    bandwidth = memory.nbytes / _best(lambda: memory.sum())
    x, weight = torch.randn(256, size), torch.randn(size, size)
    kernels = [registry.find("kernels", "torch")()]
    with load("tiny", threads=1) as engine:
        if engine.config.kernels == "native":
            kernels.append(registry.find("kernels", "native")())
    products = 0.0
    for some in kernels:
        matrix = some.matrix(weight.clone(), None, half=False, rows=False)
        products = max(products, 2 * 256 * size * size / _best(partial(matrix, x)))
    return Machine(bandwidth, products)


def limit(work: Work, shape: dict[str, Any], machine: Machine, bytes_per_weight: int = 4) -> float:
    """Tokens per second that no engine exceeds which computes every position once.

    The larger of two times: all products at the machine's rate, and all weights read once for each
    of the steps that the longest request needs. Attention itself is left out.
    """
    hidden: int = shape["hidden_size"]
    dim: int = shape["head_dim"]
    heads = shape["num_attention_heads"] + shape["num_key_value_heads"]
    layers = (
        shape["num_hidden_layers"] * hidden * (2 * heads * dim + 3 * shape["intermediate_size"])
    )
    head = shape["vocab_size"] * hidden
    prompts = sum(len(asked.prompt) - work.shared for asked in work.requests) + work.shared
    computed = prompts + work.num_tokens - len(work.requests)
    products = 2 * (layers * computed + head * work.num_tokens) / machine.products
    steps = max(asked.num_tokens for asked in work.requests)
    reading: float = steps * (layers + head) * bytes_per_weight / machine.bandwidth
    seconds: float = max(products, reading)
    return work.num_tokens / seconds


def _best(call: Callable[[], object]) -> float:
    call()
    times = list[float]()
    start = perf_counter()
    while perf_counter() - start < 1.0 or len(times) < 3:
        begin = thread_time()
        call()
        times.append(thread_time() - begin)
    return min(times)
