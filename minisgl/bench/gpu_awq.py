"""One GPU: what weights of four bits gain over bfloat16, in decode steps and product by product."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Final

import torch
from torch import Tensor

from minisgl.bench.gpu import NO_GPU, about, in_turn
from minisgl.bench.gpu_limits import Gpu, forget, measured, timed
from minisgl.bench.gpu_shapes import matrices, write
from minisgl.bench.gpu_steps import Line, engine_for, kernels_of, warm_up
from minisgl.kernel.int4 import Int4, dequantise
from minisgl.kernel.marlin import MarlinInt4
from minisgl.kernel.triton import TritonInt4

_GROUP: Final = 128
_TOKENS: Final = (1, 8, 16, 32, 64, 128, 256, 512)
_FLUSH: Final = 1 << 28  # bytes written between two products, so that no weight is in a cache


def lines(quick: bool, name: str = "8B") -> Iterator[Line]:
    """One shape, stored in bfloat16 and in four bits: decode steps, then each product by itself."""
    if not torch.cuda.is_available():
        yield NO_GPU
        return
    gpu = measured()
    yield about(gpu)
    with tempfile.TemporaryDirectory() as temporary:
        dense = write(name, Path(temporary) / "dense")
        packed = write(name, Path(temporary) / "packed", four_bits=True)
        yield from decode_lines(name, dense, packed, quick)
    yield from product_lines(matrices(name), gpu)


def decode_lines(name: str, dense: Path, packed: Path, quick: bool) -> Iterator[Line]:
    """Decode steps at 1, 16 and 64 requests: bfloat16, tensor cores on four bits, Triton."""
    small: dict[str, Any] = {"max_running": 64}
    arms = {
        "base": (dense, small),
        "awq_marlin": (packed, small | {"quantization": "awq_marlin"}),
        "awq": (packed, small | {"quantization": "awq"}),
    }
    yield from in_turn(name, arms, 2 if quick else 5, (1, 16, 64))
    with engine_for(packed, **small, num_pages=64 * 36) as engine:
        yield {"model": f"{name}, four bits", "quantization": engine.config.quantization}
        warm_up(engine, 64)
        for rows in (1, 64) if quick else (1, 16, 64):
            yield from kernels_of(engine, rows)
    forget()


def random_weight(outputs: int, inputs: int, dtype: torch.dtype) -> Int4:
    """Random codes, zeros and scales on the GPU."""

    def words(rows: int) -> Tensor:
        x = torch.empty(rows, outputs // 8, dtype=torch.int32, device="cuda")
        return x.random_(-(1 << 31), 1 << 31)

    groups = inputs // _GROUP
    scales = torch.rand(groups, outputs, device="cuda").half() * 0.01
    return Int4(words(inputs), words(groups), scales, dtype)


def product_lines(
    shapes: Sequence[tuple[int, int]], gpu: Gpu, tokens: Sequence[int] = _TOKENS
) -> Iterator[Line]:
    """One product after the other, weights from memory: us, and the share of what reading them at
    the copy's rate would allow. shapes: (outputs, inputs)."""
    spare = torch.empty(_FLUSH, dtype=torch.uint8, device="cuda")
    for outputs, inputs in shapes:
        weight = random_weight(outputs, inputs, torch.bfloat16)
        sides, exact = _sides(weight), dequantise(weight).double().t()
        bytes_ = {"bfloat16": 2 * outputs * inputs}
        packed = MarlinInt4(weight, None).num_bytes
        for rows in tokens:
            x = torch.randn(rows, inputs, device="cuda").bfloat16()
            want = x.double() @ exact
            for side, multiply in sides.items():
                error = (multiply(x).double() - want).norm() / want.norm()
                took = median(timed(partial(multiply, x), before=spare.zero_) for _ in range(3))
                read = bytes_.get(side, packed) / gpu.bandwidth
                least = max(read, 2 * rows * outputs * inputs / gpu.products)
                yield {
                    "product": f"{outputs} x {inputs}",
                    "tokens": rows,
                    "side": side,
                    "us": took * 1e6,
                    "limit us": least * 1e6,
                    "of limit": least / took,
                    "error": float(error),
                }
    forget()


def _sides(weight: Int4) -> dict[str, Callable[[Tensor], Tensor]]:
    dense, marlin, triton = dequantise(weight), MarlinInt4(weight, None), TritonInt4(weight, None)
    return {
        "bfloat16": lambda x: torch.nn.functional.linear(x, dense),
        "marlin": lambda x: marlin.multiply(x),
        "marlin, unpacked first": lambda x: torch.nn.functional.linear(x, marlin.dequantise()),
        "triton": lambda x: triton(x),
    }
