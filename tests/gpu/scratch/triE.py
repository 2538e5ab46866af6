"""The Triton kernels of ``attention.triton``. Untyped, as Triton's language is."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def attend_pages(
    q,
    out,
    keys,
    values,
    pages,
    ends,
    first,
    scale,
    q_stride,
    page_stride,
    kv_stride,
    heads,
    WINDOW: tl.constexpr,
    PAGE: tl.constexpr,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EARLY: tl.constexpr,
):
    """Some new positions of a row, for the query heads of one key head.

    Lines of the block are (position, query head of the group). EARLY: it may be started before the
    kernel ahead in the stream has ended, and waits for that itself.
    """
    if EARLY:
        tl.extra.cuda.gdc_wait()
    row = tl.program_id(0)
    head = tl.program_id(2)
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

    best = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    result = tl.zeros([BLOCK_M, WIDE], tl.float32)
    for at in range(lowest, last, BLOCK_K):
        place = at + tl.arange(0, BLOCK_K)
        there = place < last
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
    to = (begin + mine) * heads + head * GROUP + line % GROUP
    tl.store(
        out + to[:, None] * DIM + column[None, :],
        (result / total[:, None]).to(out.dtype.element_ty),
        used[:, None] & inside[None, :],
    )


@triton.jit
def _tiles_of(end, WINDOW: tl.constexpr, BLOCK_K: tl.constexpr):
    """How many tiles of keys a row's newest position sees, and which is the first of them."""
    first = end * 0
    if WINDOW > 0:
        first = tl.maximum(end - WINDOW, 0) // BLOCK_K
    return tl.cdiv(end, BLOCK_K) - first, first


@triton.jit(do_not_specialize=["rows"])
def attend_newest(
    q,
    out,
    parts,
    sums,
    arrived,
    keys,
    values,
    pages,
    ends,
    rows,
    scale,
    q_stride,
    page_stride,
    kv_stride,
    WINDOW: tl.constexpr,
    PAGE: tl.constexpr,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EARLY: tl.constexpr,
):
    """The newest position of every row, for the query heads of one key head: one of equal shares
    of the tiles of keys that all rows have together, row after row.

    A row that lies in several shares leaves a float32 part and the log2 sum of its exponentials in
    each: the row that a share begins within in place 2 * share, the one that it ends within in the
    next. Whoever is the last to leave one merges them. arrived: zeros, which it leaves as such.
    ends must be there when the model begins, for they are read before what is ahead has ended.
    """
    head, kv_heads = tl.program_id(0), tl.num_programs(0)
    index = tl.arange(0, ROWS)
    tiles, _ = _tiles_of(tl.load(ends + index, index < rows, 0), WINDOW, BLOCK_K)
    every = tl.sum(tiles).to(tl.int64)
    share, shares = tl.program_id(1), tl.minimum(tl.num_programs(1), every)
    at = tl.minimum(every * share // shares, every).to(tl.int32)
    stop = tl.minimum(every * (share + 1) // shares, every).to(tl.int32)
    row = tl.sum((tl.cumsum(tiles) <= at).to(tl.int32))
    tile = at - tl.sum(tl.where(index < row, tiles, 0))
    if EARLY:
        tl.extra.cuda.gdc_wait()
    line = tl.arange(0, BLOCK_M)
    own = head * GROUP + line
    column = tl.arange(0, WIDE)
    inside = column < DIM
    used = (line < GROUP)[:, None] & inside[None, :]
    while at < stop:
        end = tl.load(ends + row)
        count, lowest = _tiles_of(end, WINDOW, BLOCK_K)
        taken = tl.minimum(count - tile, stop - at)
        begin = (lowest + tile) * BLOCK_K
        finish = tl.minimum(begin + taken * BLOCK_K, end)
        x = tl.load(q + row * q_stride + own[:, None] * DIM + column[None, :], used, 0.0)
        best = tl.full([BLOCK_M], float("-inf"), tl.float32)
        total = tl.zeros([BLOCK_M], tl.float32)
        result = tl.zeros([BLOCK_M, WIDE], tl.float32)
        for start in range(begin, finish, BLOCK_K):
            place = start + tl.arange(0, BLOCK_K)
            there = place < finish
            page = tl.load(pages + row * page_stride + place // PAGE, there, 0)
            location = (page.to(tl.int64) * PAGE + place % PAGE) * kv_stride + head * DIM
            where = location[:, None] + column[None, :]
            seen = there[:, None] & inside[None, :]
            k = tl.load(keys + where, seen, 0.0, eviction_policy="evict_first")
            scores = tl.dot(x, tl.trans(k), input_precision="ieee") * scale
            visible = there
            if WINDOW > 0:
                visible = visible & (place >= end - WINDOW)
            scores = tl.where(visible[None, :], scores, float("-inf"))
            highest = tl.maximum(best, tl.max(scores, 1))
            weights = tl.exp2(scores - highest[:, None])
            shrink = tl.exp2(best - highest)
            total = total * shrink + tl.sum(weights, 1)
            v = tl.load(values + where, seen, 0.0, eviction_policy="evict_first")
            result = result * shrink[:, None]
            result += tl.dot(weights.to(v.dtype), v, input_precision="ieee")
            best = highest
        result = result / total[:, None]
        complete = taken == count
        if not complete:
            heads = kv_heads * GROUP
            lines = (2 * share + (tile == 0).to(tl.int32)) * heads + own
            tl.store(parts + lines[:, None] * DIM + column[None, :], result, used)
            tl.store(sums + lines, best + tl.log2(total), line < GROUP)
            first = (((at - tile + 1) * shares - 1) // every).to(tl.int32)  # the shares it lies in
            last = (((at - tile + count) * shares - 1) // every).to(tl.int32)
            tl.debug_barrier()  # all threads' stores come before the sign that they are made
            sign = arrived + first * kv_heads + head
            complete = tl.atomic_add(sign, 1, sem="acq_rel") == last - first
            if complete:
                tl.store(sign, 0)
                best = tl.full([BLOCK_M], float("-inf"), tl.float32)
                total = tl.zeros([BLOCK_M], tl.float32)
                result = tl.zeros([BLOCK_M, WIDE], tl.float32)
                for other in tl.range(first, last + 1, loop_unroll_factor=4):
                    lines = (2 * other + (other == first).to(tl.int32)) * heads + own
                    from_ = parts + lines[:, None] * DIM + column[None, :]
                    part = tl.load(from_, used, 0.0, cache_modifier=".cg")
                    each = tl.load(sums + lines, line < GROUP, 0.0, cache_modifier=".cg")
                    highest = tl.maximum(best, each)
                    weights = tl.exp2(each - highest)
                    shrink = tl.exp2(best - highest)
                    total = total * shrink + weights
                    result = result * shrink[:, None] + part * weights[:, None]
                    best = highest
                result = result / total[:, None]
        if complete:
            to = out + (row * kv_heads * GROUP + own)[:, None] * DIM + column[None, :]
            tl.store(to, result.to(out.dtype.element_ty), used)
        at += taken
        row += 1
        tile = 0
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
