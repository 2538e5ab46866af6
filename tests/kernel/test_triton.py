"""Triton's four-bit products agree with the plain twin: interpreted on a CPU, compiled on a GPU.

That they compile for GPUs is tested without one, in a process that does not interpret.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from minisgl.kernel.int4 import Int4, dequantise
from minisgl.kernel.triton import TritonInt4
from tests.kernel.test_int4 import random

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when kernels are defined, at the first matrix
pytest.importorskip("triton", reason="needs Triton, which comes with torch for GPUs")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPES = [torch.float32, torch.float16]
if torch.cuda.is_available():  # the interpreter has no bfloat16
    DTYPES.append(torch.bfloat16)
SHAPES = [(8, 1, 32), (72, 3, 32), (200, 2, 64), (136, 1, 128), (40, 5, 20), (16, 2, 100)]


def made(outputs: int, groups: int, group: int, dtype: torch.dtype) -> Int4:
    weight = random(outputs, groups, group, dtype)
    codes, zeros, scales = (part.to(DEVICE) for part in weight[:3])
    return Int4(codes, zeros, scales, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_unpacking_is_exact(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    weight = made(*shape, dtype)
    assert torch.equal(TritonInt4(weight, None).dequantise(), dequantise(weight).t())


def twin(weight: Int4, bias: Tensor | None, x: Tensor) -> Tensor:
    """The weights rounded to their dtype, the product and the sum in float32."""
    y = x.float() @ dequantise(weight).float().t()
    return (y if bias is None else y + bias.float()).to(x.dtype)


@pytest.mark.parametrize("splits", [None, 1, 3])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_product_agrees_with_its_twin(
    shape: tuple[int, int, int], dtype: torch.dtype, splits: int | None
) -> None:
    weight = made(*shape, dtype)
    bias = torch.randn(weight.shape[0], device=DEVICE).to(dtype)
    close = {torch.float32: 1e-5, torch.float16: 2e-3}.get(dtype, 2e-2)
    for rows, added in ((1, bias), (21, None)):
        x = torch.randn(rows, weight.shape[1], device=DEVICE).to(dtype)
        got = TritonInt4(weight, added).multiply(x, splits)
        torch.testing.assert_close(got, twin(weight, added, x), atol=close, rtol=close)


@pytest.mark.parametrize("splits", [1, 2])
def test_sums_that_need_no_rounding_are_exact(splits: int) -> None:
    weight = made(64, 3, 64, torch.float16)
    weight = weight._replace(scales=weight.scales.sign() / 8)  # all of it multiples of 1 / 8
    x = torch.randint(-4, 5, (5, 192), device=DEVICE).half()
    assert torch.equal(TritonInt4(weight, None).multiply(x, splits), twin(weight, None, x))


def test_many_rows_are_multiplied_with_a_weight_unpacked_before() -> None:
    weight = made(24, 2, 32, torch.float32)
    bias, x = torch.randn(24, device=DEVICE), torch.randn(150, 64, device=DEVICE)
    for added in (None, bias):
        got = TritonInt4(weight, added)(x)
        torch.testing.assert_close(got, twin(weight, added, x), atol=1e-5, rtol=1e-5)


COMPILE = """
import sys
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from minisgl.kernel import triton_kernels

WEIGHT = {"codes": "*i32", "zeros": "*i32", "scales": "*fp16"}

def compiled(kernel, pointers, constants, capability):
    types = {name: pointers.get(name, "i32") for name in kernel.arg_names}
    types |= dict.fromkeys(constants, "constexpr")
    values = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    source = ASTSource(kernel, types, values)
    return compile(source, target=GPUTarget("cuda", capability, 32)).asm["cubin"]

for capability in map(int, sys.argv[1:]):
    for dtype in ("*fp16", "*bf16")[: 1 if capability < 80 else 2]:
        blocks = dict(GROUP=128, BLOCK_K=64, BLOCK_N=64)
        assert compiled(triton_kernels.dequantise, WEIGHT | {"out": dtype}, blocks, capability)
        for splits, out in ((1, dtype), (4, "*fp32")):
            pointers = WEIGHT | {"x": dtype, "bias": dtype, "out": out}
            constants = blocks | dict(BLOCK_M=16, SPLITS=splits)
            assert compiled(triton_kernels.multiply, pointers, constants, capability)
    print(capability)
"""


@pytest.mark.parametrize("capability", ["75", "80", "90", "100"])
def test_every_kernel_compiles_for_gpus_that_are_not_here(capability: str) -> None:
    quiet = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", COMPILE, capability]
    done = subprocess.run(command, capture_output=True, text=True, env=quiet)
    assert done.returncode == 0 and done.stdout.split() == [capability], done.stderr
