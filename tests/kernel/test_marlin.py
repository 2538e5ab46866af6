"""Marlin's arrangement loses nothing, and its kernels are right: run on a CPU, thread by thread, by
an emulation of what they use of a GPU. On a GPU tests/gpu asks the same of the hardware.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from minisgl.kernel import compile as kernels
from minisgl.kernel.int4 import Int4, dequantise
from minisgl.kernel.marlin import Packed, arranged, restored
from tests.kernel.test_int4 import random

EMULATION = Path(__file__).parent / "emulated"
SOURCE = Path(kernels.__file__).parent / "csrc" / "marlin.cuh"


@pytest.fixture(scope="module")
def gpu(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The kernels on a CPU."""
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        pytest.skip("needs a C++ compiler to emulate a GPU; there is none")
    folder = tmp_path_factory.mktemp("emulated")  # includes look beside the file that includes
    for file in (SOURCE, *EMULATION.iterdir()):
        shutil.copy(file, folder)
    flags = ("-std=c++17", "-O2", "-fPIC", "-shared", "-Wno-unknown-pragmas")
    made = folder / "emulated.so"
    subprocess.run([compiler, *flags, str(folder / "marlin.cpp"), "-o", str(made)], check=True)
    library = ctypes.CDLL(str(made))
    library.multiply.restype = library.unpack.restype = ctypes.c_char_p
    return library


def multiply(
    gpu: ctypes.CDLL,
    weight: Packed,
    x: Tensor,
    bias: Tensor | None = None,
    *,
    tile: int = 8,
    blocks: int = 1,
    seed: int = 0,
    eager: bool = False,
) -> Tensor:
    """The kernel's product, its buffers surrounded by what must not change."""
    outputs, inputs = weight.shape
    tiles = -(-len(x) // tile) * (outputs // 64)
    parts = torch.full((blocks, 2, tile, 64), torch.nan)
    arrived = torch.zeros(tiles, dtype=torch.int32)
    around = torch.full((len(x) + 2 * tile, outputs), -7.0, dtype=x.dtype)
    out = around[tile:-tile]
    buffers = [x, weight.words, weight.groups, bias, out, parts, arrived]
    pointers = (ctypes.c_void_p * 7)(*(0 if b is None else b.data_ptr() for b in buffers))
    nbytes = (ctypes.c_size_t * 7)(*(0 if b is None else extent(b) for b in buffers))
    sizes = (ctypes.c_int * 5)(x.stride(0), len(x), inputs, outputs, weight.group)
    brain = int(x.dtype == torch.bfloat16)
    problem = gpu.multiply(brain, pointers, sizes, nbytes, tile, blocks, seed, int(eager))
    assert problem is None, problem.decode()
    assert not arrived.any(), "the next product finds zeros"
    assert (around[:tile] == -7.0).all() and (around[-tile:] == -7.0).all(), "written outside"
    return out


def extent(x: Tensor) -> int:
    """Bytes from the first number to the last, both included."""
    places = 1 + sum((n - 1) * stride for n, stride in zip(x.shape, x.stride(), strict=True))
    return places * x.element_size()


def exact(weight: Int4, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """The product of the numbers that the codes stand for, in float64."""
    y = x.double() @ dequantise(weight._replace(dtype=torch.float32)).double().t()
    return y if bias is None else y + bias.double()


SHAPES = given(
    tiles=st.integers(1, 3),
    chunks=st.integers(1, 3),
    group=st.sampled_from([32, 64, 128, None]),
    seed=st.integers(0, 99),
)


@settings(max_examples=30, deadline=None)
@SHAPES
def test_what_is_arranged_can_be_restored(
    tiles: int, chunks: int, group: int | None, seed: int
) -> None:
    inputs = chunks * 128
    weight = random(tiles * 64, inputs // (group or inputs), group or inputs, seed=seed)
    packed = arranged(weight)
    assert packed.shape == weight.shape and packed.group == weight.group
    assert packed.words.nbytes == weight.codes.nbytes
    back = restored(packed)
    assert all(torch.equal(a, b) for a, b in zip(back[:3], weight[:3], strict=True))


def test_a_large_weight_is_arranged_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = random(320, 3, 128)
    whole = arranged(weight)
    monkeypatch.setattr("minisgl.kernel.marlin._BLOCK", 2 * 64 * 384)
    assert torch.equal(arranged(weight).words, whole.words)


@pytest.mark.parametrize("shape", [(72, 1, 128), (64, 1, 64), (64, 8, 16)], ids=str)
def test_a_shape_that_the_kernels_do_not_have_is_refused_with_the_numbers(
    shape: tuple[int, int, int],
) -> None:
    outputs, groups, group = shape
    said = f"{outputs} outputs and {groups * group} inputs in groups of {group}.* 64, 128 and 32"
    with pytest.raises(ValueError, match=said):
        arranged(random(*shape))


@settings(max_examples=12, deadline=None)
@SHAPES
def test_unpacking_is_exact(
    gpu: ctypes.CDLL, tiles: int, chunks: int, group: int | None, seed: int
) -> None:
    inputs = chunks * 128
    for dtype in (torch.float16, torch.bfloat16):
        weight = random(tiles * 64, inputs // (group or inputs), group or inputs, dtype, seed)
        packed = arranged(weight)
        out = torch.empty(weight.shape, dtype=dtype)
        places = (t.data_ptr() for t in (packed.words, packed.groups, out))
        at = map(ctypes.c_void_p, places)
        brain = int(dtype == torch.bfloat16)
        assert gpu.unpack(brain, *at, inputs, tiles * 64, weight.group) is None
        assert torch.equal(out, dequantise(weight))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("group", [32, 64])
@pytest.mark.parametrize("tile", [8, 16, 32, 64])
def test_no_weight_is_rounded(gpu: ctypes.CDLL, tile: int, group: int, dtype: torch.dtype) -> None:
    """An input of ones at one place gives that column of the weight, rounded once at the end."""
    weight = random(64, 128 // group, group, dtype)
    x = torch.zeros(tile, 128, dtype=dtype)
    some = torch.randperm(128)[:tile]
    x[torch.arange(tile), some] = 1.0
    got = multiply(gpu, arranged(weight), x, tile=tile)
    assert torch.equal(got, dequantise(weight)[:, some].t())


@settings(max_examples=40, deadline=None)
@given(
    tiles=st.integers(1, 3),
    chunks=st.integers(1, 12),
    group=st.sampled_from([32, 64, 128, None]),
    tokens=st.integers(1, 20),
    tile=st.sampled_from([8, 16]),
    blocks=st.integers(1, 9),
    seed=st.integers(0, 99),
    brain=st.booleans(),
    biased=st.booleans(),
    eager=st.booleans(),
)
def test_the_product_is_that_of_the_numbers_however_it_is_shared(
    gpu: ctypes.CDLL,
    tiles: int,
    chunks: int,
    group: int | None,
    tokens: int,
    tile: int,
    blocks: int,
    seed: int,
    brain: bool,
    biased: bool,
    eager: bool,
) -> None:
    dtype = torch.bfloat16 if brain else torch.float16
    inputs = chunks * 128
    weight = random(tiles * 64, inputs // (group or inputs), group or inputs, dtype, seed)
    # rows of a wider matrix, as a slice of a merged product would be
    x = torch.randn(tokens, inputs + 8).to(dtype)[:, :inputs]
    bias = torch.randn(tiles * 64).to(dtype) if biased else None
    blocks = min(blocks, chunks * tiles * -(-tokens // tile))
    packed = arranged(weight)
    got = multiply(gpu, packed, x, bias, tile=tile, blocks=blocks, seed=seed, eager=eager)
    want = exact(weight, x, bias)
    assert got.isfinite().all()
    error = (got.double() - want).abs().max() / want.abs().max()
    assert error <= (2**-8 if brain else 2**-11)
    again = multiply(gpu, packed, x, bias, tile=tile, blocks=blocks, seed=seed + 1)
    assert torch.equal(again, got), "whatever comes first, sums are added in one order"


@pytest.mark.parametrize("tile", [32, 64])
@pytest.mark.parametrize("eager", [False, True])
def test_many_tokens_take_a_larger_tile(gpu: ctypes.CDLL, tile: int, eager: bool) -> None:
    weight = random(128, 5, 128, torch.bfloat16)
    x = torch.randn(tile + 3, 640).bfloat16()
    got = multiply(gpu, arranged(weight), x, tile=tile, blocks=7, seed=3, eager=eager)
    want = exact(weight, x)
    assert (got.double() - want).abs().max() <= 2**-8 * want.abs().max()


@pytest.mark.parametrize("scaled", [32, 64])
@pytest.mark.parametrize(("tile", "least"), [(8, 8), (16, 8), (32, 6), (64, 3)])
def test_several_fetches_are_under_way(
    gpu: ctypes.CDLL, tile: int, least: int, scaled: int
) -> None:
    assert gpu.stages(tile, scaled) >= least
