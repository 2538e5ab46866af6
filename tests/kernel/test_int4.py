"""Four-bit weights mean what the format says, and the C++ product is exact in them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from minisgl.kernel.int4 import Int4, dequantise, pack, unpack
from minisgl.kernel.native import NativeKernels
from minisgl.kernel.plain import PlainKernels
from tests.quantization import published


@pytest.fixture(scope="module")
def native() -> NativeKernels:
    torch.set_num_threads(1)
    return NativeKernels()


def random(
    outputs: int, groups: int, group: int, dtype: torch.dtype = torch.float32, seed: int = 0
) -> Int4:
    """A weight whose codes, zeros and scales are all random."""
    torch.manual_seed(seed)
    codes = torch.randint(16, (groups * group, outputs))
    zeros = torch.randint(16, (groups, outputs))
    scales = (torch.randn(groups, outputs) * 0.01).half()
    return Int4(pack(codes), pack(zeros), scales, dtype)


@settings(max_examples=50, deadline=None)
@given(rows=st.integers(1, 9), words=st.integers(1, 5), seed=st.integers(0, 9))
def test_codes_are_packed_as_the_format_says(rows: int, words: int, seed: int) -> None:
    codes = np.random.default_rng(seed).integers(0, 16, (rows, 8 * words))
    packed = pack(torch.from_numpy(codes))
    assert packed.dtype == torch.int32
    assert np.array_equal(packed.numpy(), published.pack(codes))
    assert np.array_equal(unpack(packed).numpy(), codes)


@settings(max_examples=50, deadline=None)
@given(outputs=st.integers(1, 6), groups=st.integers(1, 5), group=st.integers(1, 70))
def test_a_weight_is_code_less_zero_times_scale(outputs: int, groups: int, group: int) -> None:
    weight = random(8 * outputs, groups, group)
    expected = published.weight(weight.codes.numpy(), weight.zeros.numpy(), weight.scales.numpy())
    assert np.array_equal(dequantise(weight).numpy(), expected)
    assert weight.shape == (8 * outputs, groups * group) and weight.group == group
    for dtype in (torch.float16, torch.bfloat16):
        rounded = dequantise(weight._replace(dtype=dtype))
        assert torch.equal(rounded, torch.from_numpy(expected).to(dtype)), "rounded once"


def test_a_large_weight_is_unpacked_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = random(16, 7, 12)
    whole = dequantise(weight)
    monkeypatch.setattr("minisgl.kernel.int4._BLOCK", 400)  # two groups at a time
    assert torch.equal(dequantise(weight), whole)


SHAPES = given(
    outputs=st.integers(1, 12),
    groups=st.integers(1, 4),
    group=st.integers(1, 40) | st.sampled_from([64, 128]),
    tokens=st.integers(1, 30),
)


@settings(max_examples=60, deadline=None)
@SHAPES
def test_no_weight_is_rounded(
    native: NativeKernels, outputs: int, groups: int, group: int, tokens: int
) -> None:
    """An input of ones at one place gives that column of the weight, exactly."""
    weight = random(8 * outputs, groups, group, seed=tokens)
    inputs = groups * group
    some = torch.randperm(inputs)[:tokens]
    x = torch.zeros(len(some), inputs)
    x[torch.arange(len(some)), some] = 1.0
    expected = dequantise(weight)[:, some].t()
    assert torch.equal(native.int4(weight, None)(x), expected)
    assert torch.equal(PlainKernels().int4(weight, None)(x), expected)


@settings(max_examples=60, deadline=None)
@SHAPES
def test_the_product_agrees_with_its_twin(
    native: NativeKernels, outputs: int, groups: int, group: int, tokens: int
) -> None:
    weight = random(8 * outputs, groups, group, seed=tokens)
    x, bias = torch.randn(tokens, groups * group), torch.randn(8 * outputs)
    ours, twin = native.int4(weight, bias), PlainKernels().int4(weight, bias)
    assert ours.shape == twin.shape
    torch.testing.assert_close(ours(x), twin(x), atol=2e-5, rtol=2e-5)


def test_four_bits_stay_four_bits(native: NativeKernels) -> None:
    weight = random(64, 4, 128)
    packed = 64 * 512 // 2 + 64 * 4 * 4  # a scale and a zero of 16 bits for each group
    assert native.int4(weight, None).num_bytes == packed
    with pytest.raises(AssertionError, match="not asked for"):
        native.int4(weight, None).rows(torch.tensor([0]))


def test_two_threads_compute_what_one_does(native: NativeKernels) -> None:
    matrix = native.int4(random(1000, 2, 128), None)
    for tokens in (1, 33):
        x: Tensor = torch.randn(tokens, 256)
        alone = matrix(x)
        torch.set_num_threads(2)
        try:
            assert torch.equal(matrix(x), alone)
        finally:
            torch.set_num_threads(1)
