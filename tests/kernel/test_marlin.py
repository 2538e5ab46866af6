"""Marlin's arrangement loses nothing, and its kernels are right: run on a CPU, thread by thread, by
an emulation of what they use of a GPU. On a GPU tests/gpu asks the same of the hardware.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from minisgl.kernel.int4 import Int4, dequantise
from minisgl.kernel.marlin import MarlinInt4, Room, arranged, restored
from tests.kernel.test_int4 import random

DTYPES = [torch.float16, torch.bfloat16]
ROUNDING = {torch.float16: 2**-11, torch.bfloat16: 2**-8}  # of a result, to its size


@pytest.fixture(scope="module")
def gpu(emulated: Callable[[str], Any]) -> Any:
    """What csrc/marlin.cu exports, on a CPU."""
    return emulated("marlin.cu")


@pytest.fixture(scope="module", params=[False, True], ids=["warps", "warpgroups"])
def room(gpu: Any, request: pytest.FixtureRequest) -> Iterator[Room]:
    """On a GPU without, and on one with products of warpgroups."""
    gpu["emulate_warpgroups"](request.param)
    yield Room.made(gpu, torch.device("cpu"))
    gpu["emulate_warpgroups"](False)


def exact(weight: Int4, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """The product of the numbers that the codes stand for, in float64."""
    y = x.double() @ dequantise(weight._replace(dtype=torch.float32)).double().t()
    return y if bias is None else y + bias.double()


SHAPES = given(
    strips=st.integers(1, 6),
    chunks=st.integers(1, 3),
    group=st.sampled_from([32, 64, 128, None]),
    seed=st.integers(0, 99),
)


@settings(max_examples=30, deadline=None)
@SHAPES
def test_what_is_arranged_can_be_restored(
    strips: int, chunks: int, group: int | None, seed: int
) -> None:
    inputs = chunks * 128
    weight = random(strips * 32, inputs // (group or inputs), group or inputs, seed=seed)
    packed = arranged(weight)
    assert packed.shape == weight.shape and packed.group == weight.group
    assert packed.words.nbytes == weight.codes.nbytes
    back = restored(packed)
    assert all(torch.equal(a, b) for a, b in zip(back[:3], weight[:3], strict=True))


def test_where_a_scale_is_zero_the_weight_is_zero(room: Room) -> None:
    weight = random(64, 4, 64, torch.float16)
    weight.scales[1, ::3] = 0.0
    x = torch.randn(3, 256).half()
    want = exact(weight, x)
    got = MarlinInt4(weight, None, room).multiply(x)
    assert (got.double() - want).abs().max() <= ROUNDING[torch.float16] * want.abs().max()
    assert torch.equal(MarlinInt4(weight, None, room).dequantise(), dequantise(weight))


def test_a_large_weight_is_arranged_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = random(320, 3, 128)
    whole = arranged(weight)
    monkeypatch.setattr("minisgl.kernel.marlin._BLOCK", 2 * 32 * 384)
    assert torch.equal(arranged(weight).words, whole.words)


@pytest.mark.parametrize("shape", [(72, 1, 128), (64, 1, 64), (64, 8, 16)], ids=str)
def test_a_shape_that_the_kernels_do_not_have_is_refused_with_the_numbers(
    shape: tuple[int, int, int],
) -> None:
    outputs, groups, group = shape
    said = f"{outputs} outputs and {groups * group} inputs in groups of {group}.* 32, 128 and 32"
    with pytest.raises(ValueError, match=said):
        arranged(random(*shape))


def test_float32_is_refused(room: Room) -> None:
    with pytest.raises(ValueError, match="in float16 and bfloat16, not in torch.float32"):
        MarlinInt4(random(64, 1, 128), None, room)


@settings(max_examples=12, deadline=None)
@SHAPES
def test_unpacking_is_exact(
    room: Room, strips: int, chunks: int, group: int | None, seed: int
) -> None:
    inputs = chunks * 128
    for dtype in DTYPES:
        weight = random(strips * 32, inputs // (group or inputs), group or inputs, dtype, seed)
        assert torch.equal(MarlinInt4(weight, None, room).dequantise(), dequantise(weight))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("tokens", [8, 16, 32, 64])
def test_no_weight_is_rounded(room: Room, tokens: int, group: int, dtype: torch.dtype) -> None:
    """An input of ones at one place gives that column of the weight, rounded once at the end."""
    weight = random(64, 128 // group, group, dtype)
    x = torch.zeros(tokens, 128, dtype=dtype)
    some = torch.randperm(128)[:tokens]
    x[torch.arange(tokens), some] = 1.0
    got = MarlinInt4(weight, None, room).multiply(x)
    want = dequantise(weight._replace(dtype=torch.float32))[:, some].t().double()
    half = ROUNDING[dtype] * torch.frexp(want).exponent.sub(1).double().exp2()  # of the last place
    assert ((got.double() - want).abs() <= half * (1 + 2**-10)).all()


def test_nothing_is_written_beside_the_result(gpu: Any, room: Room) -> None:
    weight = arranged(random(128, 2, 128, torch.float16))
    x, around = torch.randn(11, 256).half(), torch.full((11 + 16, 128), -7.0).half()
    parts = (weight.words, weight.groups, None, around[8:-8], room.parts, room.arrived)
    gpu["multiply"](x, *parts, 128, 2, 1)
    assert (around[:8] == -7).all() and (around[-8:] == -7).all()
    assert (around[8:-8] != -7).all()


@pytest.mark.parametrize("eager", list(product((False, True), repeat=2)), ids=str)
@pytest.mark.parametrize(("strips", "tokens"), [(9, 20), (8, 70)], ids=str)
def test_many_chunks_of_a_tile_come_in_time(
    gpu: Any, room: Room, strips: int, tokens: int, eager: tuple[bool, bool]
) -> None:
    weight = random(strips * 32, 11, 128, torch.float16)
    x = torch.randn(tokens, 11 * 128).half()
    want, matrix = exact(weight, x), MarlinInt4(weight, None, room)
    for seed in range(2):
        gpu["emulate"](seed, *eager)
        got = matrix.multiply(x, 2)
        assert (got.double() - want).abs().max() <= ROUNDING[torch.float16] * want.abs().max()


@settings(max_examples=30, deadline=None)
@given(
    strips=st.integers(1, 9) | st.sampled_from([12, 13]),
    chunks=st.integers(1, 12),
    group=st.sampled_from([32, 64, 128, None]),
    tokens=st.integers(1, 24) | st.sampled_from([32, 40, 64, 67]),
    blocks=st.integers(0, 5),
    seed=st.integers(0, 99),
    dtype=st.sampled_from(DTYPES),
    biased=st.booleans(),
    eager=st.tuples(st.booleans(), st.booleans()),
)
def test_the_product_is_that_of_the_numbers_however_it_is_shared(
    gpu: Any,
    room: Room,
    strips: int,
    chunks: int,
    group: int | None,
    tokens: int,
    blocks: int,
    seed: int,
    dtype: torch.dtype,
    biased: bool,
    eager: tuple[bool, bool],
) -> None:
    inputs = chunks * 128
    weight = random(strips * 32, inputs // (group or inputs), group or inputs, dtype, seed)
    # rows of a wider matrix, as a part of a merged product would be
    x = torch.randn(tokens, inputs + 8).to(dtype)[:, :inputs]
    bias = torch.randn(strips * 32).to(dtype) if biased else None
    matrix = MarlinInt4(weight, bias, room)
    room.parts.fill_(torch.nan)
    gpu["emulate"](seed, *eager)
    got = matrix.multiply(x, blocks)
    assert not room.arrived.any(), "the next product finds zeros"
    want = exact(weight, x, bias)
    assert (got.double() - want).abs().max() <= ROUNDING[dtype] * want.abs().max()
    gpu["emulate"](seed + 1, not eager[0], eager[1])
    again = matrix.multiply(x, blocks)
    assert torch.equal(again, got), "whatever comes first, sums are added in one order"


def test_inputs_that_lie_badly_are_copied_first(room: Room) -> None:
    weight = random(64, 1, 128, torch.float16)
    matrix, x = MarlinInt4(weight, None, room), torch.randn(3, 129).half()
    assert torch.equal(matrix(x[:, 1:]), matrix(x[:, 1:].contiguous()))
    assert matrix(x[:0, 1:]).shape == (0, 64)


def test_many_rows_are_multiplied_with_weights_unpacked_before(room: Room) -> None:
    weight = random(64, 1, 128, torch.float16)
    bias, x = torch.randn(64).half(), torch.randn(257, 128).half()
    got = MarlinInt4(weight, bias, room)(x)
    assert torch.equal(got, torch.nn.functional.linear(x, dequantise(weight), bias))
