"""Each C++ kernel agrees with its torch twin, on random shapes."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from minisgl.kernel.base import Kernels, Place
from minisgl.kernel.native import NativeKernels
from minisgl.kernel.plain import PlainKernels
from tests.kernel.agreement import NormedProductsAgree
from tests.kernel.agreement import pytest_generate_tests as pytest_generate_tests

PLAIN = PlainKernels()
SIZES = st.integers(1, 70)


def close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, atol=2e-5, rtol=2e-5)


@pytest.fixture(scope="module")
def native() -> NativeKernels:
    torch.set_num_threads(1)
    return NativeKernels()


@pytest.fixture(scope="module")
def kernels(native: NativeKernels) -> Kernels:
    return native


class TestNormedProducts(NormedProductsAgree):
    """A norm and a product, one after the other."""

    device = "cpu"
    values: ClassVar[dict[str, list[Any]]] = {
        "dtype": [torch.float32],
        "sides": [(21, 256), (61, 264), (5, 8), (12, 20)],
    }


def random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Numbers that ``dtype`` holds, as float32."""
    return torch.randn(shape).to(dtype).float()


@settings(max_examples=150, deadline=None)
@given(
    tokens=st.integers(1, 40),
    inputs=SIZES | st.sampled_from([128, 256]),
    outputs=SIZES,
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    biased=st.booleans(),
)
def test_a_matrix_multiplies_and_gives_its_rows(
    native: NativeKernels,
    tokens: int,
    inputs: int,
    outputs: int,
    dtype: torch.dtype,
    biased: bool,
) -> None:
    torch.manual_seed(tokens)
    weight, x = random(outputs, inputs, dtype=dtype), random(tokens, inputs)
    bias = random(outputs) if biased else None
    plain = PLAIN.matrix(weight.clone(), bias, half=False, rows=True)
    packed = native.matrix(weight.clone(), bias, half=False, rows=True)
    close(packed(x), plain(x))
    ids = torch.randint(outputs, (tokens,))
    assert torch.equal(packed.rows(ids), plain.rows(ids))


def test_numbers_that_fit_16_bits_are_kept_in_16_bits(native: NativeKernels) -> None:
    def taken(weight: Tensor) -> int:
        return native.matrix(weight.clone(), None, half=False, rows=False).num_bytes

    weight = random(64, 48)
    assert taken(weight) == 64 * 48 * 4
    assert taken(weight.half().float()) == taken(weight.bfloat16().float()) == 64 * 48 * 2
    one_more = weight.half().float()
    one_more[40, 3] += 1e-6
    assert taken(one_more) == 64 * 48 * 4


def test_a_packed_matrix_takes_the_memory_of_its_weight(native: NativeKernels) -> None:
    weight = random(96, 40)
    before = weight.clone()
    matrix = native.matrix(weight, None, half=False, rows=True)
    assert not torch.equal(weight, before), "it was rearranged in place"
    assert torch.equal(matrix.rows(torch.arange(96)), before)


@settings(max_examples=60, deadline=None)
@given(tokens=st.integers(1, 9), size=SIZES)
def test_norms_agree(native: NativeKernels, tokens: int, size: int) -> None:
    torch.manual_seed(size)
    x, residual, weight = random(tokens, size), random(tokens, size), random(size)
    close(native.rms_norm(x, weight, 1e-5), PLAIN.rms_norm(x, weight, 1e-5))
    mine, theirs = residual.clone(), residual.clone()
    close(
        native.add_rms_norm(x, mine, weight, 1e-5),
        PLAIN.add_rms_norm(x, theirs, weight, 1e-5),
    )
    assert torch.equal(mine, theirs)


@settings(max_examples=60, deadline=None)
@given(tokens=st.integers(1, 9), size=SIZES, scale=st.sampled_from([1.0, 30.0, 300.0]))
def test_silu_and_mul_agrees_where_it_saturates_too(
    native: NativeKernels, tokens: int, size: int, scale: float
) -> None:
    torch.manual_seed(size)
    x = random(tokens, 2 * size) * scale
    close(native.silu_and_mul(x), PLAIN.silu_and_mul(x))


@settings(max_examples=60, deadline=None)
@given(
    tokens=st.integers(1, 9),
    heads=st.integers(1, 6),
    kv_heads=st.integers(1, 3),
    half=st.integers(1, 40),
    normed=st.booleans(),
)
def test_heads_are_turned_and_stored_alike(
    native: NativeKernels, tokens: int, heads: int, kv_heads: int, half: int, normed: bool
) -> None:
    torch.manual_seed(half)
    qkv, weight = (
        random(n, heads + k, 2 * half) for n, k in ((tokens, 2 * kv_heads), (1, kv_heads))
    )
    angles, where = random(tokens, 1, half), torch.randperm(20)[:tokens]
    turn = weight[0] if normed else None, 1e-6, angles.cos(), angles.sin()
    made = []
    for kernels in (native, PLAIN):
        keys, values = torch.zeros(2, 20, kv_heads, 2 * half)
        given = kernels.turn_and_store(qkv.clone(), *turn, Place(keys, values, where))
        made.append((*given, keys, values))
    for ours, theirs in zip(*made, strict=True):
        close(ours, theirs)
    assert torch.equal(made[0][2], qkv[:, heads + kv_heads :])


def test_a_position_that_does_not_exist_is_not_written(native: NativeKernels) -> None:
    keys, angles = torch.zeros(5, 1, 4), torch.zeros(1, 1, 2)
    to = Place(keys, keys, torch.tensor([5]))
    with pytest.raises(Exception, match="no such position"):
        native.turn_and_store(torch.ones(1, 3, 4), None, 1e-6, angles, angles, to)


def test_two_threads_compute_what_one_does(native: NativeKernels) -> None:
    matrix = native.matrix(random(1000, 256), None, half=False, rows=False)
    x = random(33, 256)
    alone = matrix(x)
    torch.set_num_threads(2)
    try:
        assert torch.equal(matrix(x), alone)
    finally:
        torch.set_num_threads(1)
