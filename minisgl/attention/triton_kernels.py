"""The Triton kernels of ``attention.triton``. Untyped, as Triton's language is."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def attend_pages(
    q,
    out,
    sums,
    keys,
    values,
    pages,
    ends,
    first,
    scale,
    q_stride,
    page_stride,
    kv_stride,
    out_stride,
    split_stride,
    WINDOW: tl.constexpr,
    PAGE: tl.constexpr,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SPLITS: tl.constexpr,
    EARLY: tl.constexpr,
):
    """Some new positions of a row, for the query heads of one key head, over a part of the keys.

    Lines of the block are (position, query head of the group). out: with one split the result, else
    float32 parts, split after split, whose log2 sums of exponentials go to ``sums``. EARLY: it may
    be started before the kernel ahead in the stream has ended, and waits for that itself.
    """
    if EARLY:
        tl.extra.cuda.gdc_wait()
    row = tl.program_id(0)
    head = tl.program_id(2) // SPLITS
    split = tl.program_id(2) % SPLITS
    begin = tl.load(first + row)
    count = tl.load(first + row + 1) - begin
    end = tl.load(ends + row)
    each = BLOCK_M // GROUP
    token = tl.program_id(1) * each
    if token >= count:
        return
    line = tl.arange(0, BLOCK_M)
    mine = token + line // GROUP
    used = (line < each * GROUP) & (mine < count)
    position = end - count + mine
    column = tl.arange(0, WIDE)
    query = (begin + mine) * q_stride + (head * GROUP + line % GROUP) * DIM
    inside = column < DIM
    x = tl.load(q + query[:, None] + column[None, :], used[:, None] & inside[None, :], 0.0)

    last = tl.minimum(end, end - count + token + each)  # what the block's last position sees
    lowest = 0
    if WINDOW > 0:
        lowest = tl.maximum(end - count + token - WINDOW + 1, 0) // BLOCK_K * BLOCK_K
    chunk = tl.cdiv(tl.cdiv(last - lowest, SPLITS), BLOCK_K) * BLOCK_K
    start = lowest + split * chunk
    stop = tl.minimum(start + chunk, last)

    best = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    result = tl.zeros([BLOCK_M, WIDE], tl.float32)
    for at in range(start, stop, BLOCK_K):
        place = at + tl.arange(0, BLOCK_K)
        there = place < stop
        page = tl.load(pages + row * page_stride + place // PAGE, there, 0)
        location = (page.to(tl.int64) * PAGE + place % PAGE) * kv_stride + head * DIM
        where = location[:, None] + column[None, :]
        seen = there[:, None] & inside[None, :]
        k = tl.load(keys + where, seen, 0.0)
        scores = tl.dot(x, tl.trans(k), input_precision="ieee") * scale
        visible = there[None, :] & (place[None, :] <= position[:, None])
        if WINDOW > 0:
            visible = visible & (place[None, :] > position[:, None] - WINDOW)
        scores = tl.where(visible, scores, float("-inf"))
        highest = tl.maximum(best, tl.max(scores, 1))
        safe = tl.where(highest == float("-inf"), 0.0, highest)
        weights = tl.exp2(scores - safe[:, None])
        shrink = tl.exp2(best - safe)
        total = total * shrink + tl.sum(weights, 1)
        v = tl.load(values + where, seen, 0.0)
        result = result * shrink[:, None]
        result += tl.dot(weights.to(v.dtype), v, input_precision="ieee")
        best = highest
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
    result = result / tl.where(total == 0.0, 1.0, total)[:, None]
    lines = (begin + mine) * out_stride + head * GROUP + line % GROUP
    to = split * split_stride + lines
    tl.store(
        out + to[:, None] * DIM + column[None, :],
        result.to(out.dtype.element_ty),
        used[:, None] & inside[None, :],
    )
    if SPLITS > 1:
        tl.store(sums + to, tl.where(total == 0.0, float("-inf"), best + tl.log2(total)), used)


@triton.jit
def merge_splits(
    parts,
    sums,
    out,
    split_stride,
    DIM: tl.constexpr,
    WIDE: tl.constexpr,
    SPLITS: tl.constexpr,
    COUNT: tl.constexpr,
    EARLY: tl.constexpr,
):
    """One line of the result from its parts. COUNT: SPLITS, rounded up to a power of two."""
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    line = tl.program_id(0)
    split = tl.arange(0, COUNT)
    column = tl.arange(0, WIDE)
    there = split < SPLITS
    each = tl.load(sums + split * split_stride + line, there, float("-inf"))
    weights = tl.exp2(each - tl.max(each, 0))
    where = (split * split_stride + line)[:, None] * DIM + column[None, :]
    part = tl.load(parts + where, there[:, None] & (column < DIM)[None, :], 0.0)
    result = tl.sum(part * weights[:, None], 0) / tl.sum(weights, 0)
    tl.store(out + line * DIM + column, result.to(out.dtype.element_ty), column < DIM)
