"""The Triton kernels of ``kernel.triton``. Untyped, as Triton's language is."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _spread(words):
    """(n, words) int32 to the (n, 8 * words) codes in them, in the order of the outputs."""
    place = tl.arange(0, 8)
    shift = 4 * (place % 2 * 4 + place // 2)  # nibbles 0, 4, 1, 5, 2, 6, 3, 7
    codes = (words[:, :, None] >> shift[None, None, :]) & 15
    return tl.reshape(codes, (words.shape[0], words.shape[1] * 8))


@triton.jit
def _weights(
    codes,
    zeros,
    scales,
    inputs,
    outputs,
    first_input,
    first_output,
    GROUP: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """A block of weights: (BLOCK_K, BLOCK_N) float32, exact; 0 outside of the matrix."""
    words = outputs // 8
    k = first_input + tl.arange(0, BLOCK_K)
    n = first_output + tl.arange(0, BLOCK_N)
    word = first_output // 8 + tl.arange(0, BLOCK_N // 8)
    if GROUP % BLOCK_K == 0:  # the block is in one group
        group = first_input // GROUP + tl.arange(0, 1)
    else:
        group = k // GROUP
    here = (k < inputs)[:, None] & (word < words)[None, :]
    in_group = (group * GROUP < inputs)[:, None]
    code = _spread(tl.load(codes + k[:, None] * words + word[None, :], here, 0))
    at = group[:, None] * words + word[None, :]
    zero = _spread(tl.load(zeros + at, in_group & (word < words)[None, :], 0))
    at = group[:, None] * outputs + n[None, :]
    scale = tl.load(scales + at, in_group & (n < outputs)[None, :], 0.0).to(tl.float32)
    return tl.where((k < inputs)[:, None], (code - zero).to(tl.float32) * scale, 0.0)


@triton.jit
def dequantise(
    codes,
    zeros,
    scales,
    out,
    inputs,
    outputs,
    GROUP: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """out: (inputs, outputs), each weight rounded once to its dtype."""
    first_input, first_output = tl.program_id(0) * BLOCK_K, tl.program_id(1) * BLOCK_N
    weights = _weights(
        codes, zeros, scales, inputs, outputs, first_input, first_output, GROUP, BLOCK_K, BLOCK_N
    )
    k = first_input + tl.arange(0, BLOCK_K)[:, None]
    n = first_output + tl.arange(0, BLOCK_N)[None, :]
    at = out + k.to(tl.int64) * outputs + n
    tl.store(at, weights.to(out.dtype.element_ty), (k < inputs) & (n < outputs))


@triton.jit
def multiply(
    x,
    codes,
    zeros,
    scales,
    bias,
    out,
    rows,
    inputs,
    outputs,
    x_stride,
    GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """x (rows, inputs) times the weights, each rounded to x's dtype, summed in float32.

    Split s sums every SPLITS-th block of inputs. out: (SPLITS, rows, outputs), float32 parts that
    are to be added; with one split the whole result, bias included where there is one.
    """
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    first_output = tl.program_id(1) * BLOCK_N
    split = tl.program_id(2)
    n = first_output + tl.arange(0, BLOCK_N)
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for first_input in range(split * BLOCK_K, inputs, SPLITS * BLOCK_K):
        k = first_input + tl.arange(0, BLOCK_K)
        inside = (m < rows)[:, None] & (k < inputs)[None, :]
        a = tl.load(x + m.to(tl.int64)[:, None] * x_stride + k[None, :], inside, 0.0)
        b = _weights(
            codes,
            zeros,
            scales,
            inputs,
            outputs,
            first_input,
            first_output,
            GROUP,
            BLOCK_K,
            BLOCK_N,
        )
        total = tl.dot(a, b.to(a.dtype), total, input_precision="ieee")
    if SPLITS == 1:
        if bias is not None:
            total += tl.load(bias + n, n < outputs, 0.0).to(tl.float32)[None, :]
    at = (split * rows + m).to(tl.int64)[:, None] * outputs + n[None, :]
    inside = (m < rows)[:, None] & (n < outputs)[None, :]
    tl.store(out + at, total.to(out.dtype.element_ty), inside)
