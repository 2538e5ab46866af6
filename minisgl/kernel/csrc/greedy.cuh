// The first of each row's largest logits, in one kernel however few the rows are: several blocks
// share a row, and the last of them to finish has the token.
#pragma once
#include "rows.cuh"

constexpr int kGreedyThreads = 256;
constexpr int kGreedyBlocks = 4;  // on a multiprocessor
constexpr int kGreedyAhead = 4;   // pieces that a thread fetches before it looks at the first

// What the blocks of a row share. All zero before a launch and after it.
struct Contest {
    uint64_t best;  // see ranked
    int there;      // blocks that have entered theirs
    int unused;
};

// The largest so far and where it was. A NaN is larger than any number, as torch has it.
struct Largest {
    float value;
    int at;

    // Of equal ones the one that was there first stays.
    __device__ void meet(float x, int index) {
        if (!(x <= value) && value == value) {
            value = x;
            at = index;
        }
    }
};

// A number that is the larger, the larger the value is, and of equal ones the earlier it is; it is
// never zero.
__device__ inline uint64_t ranked(const Largest& x) {
    const uint32_t bits = __float_as_uint(x.value + 0.0f);  // -0 is 0
    const uint32_t order = x.value != x.value ? ~0u : bits >> 31 ? ~bits : bits | 0x80000000u;
    return static_cast<uint64_t>(order) << 32 | ~static_cast<uint32_t>(x.at);
}

__device__ inline uint64_t warp_largest(uint64_t x) {
#pragma unroll
    for (int offset = kWarp / 2; offset > 0; offset /= 2) {
        x = max(x, __shfl_xor_sync(0xffffffffu, x, offset));
    }
    return x;
}

// `each` blocks a row of `size` logits, rows `stride` apart, which may begin anywhere: what does
// not fill a piece of 16 bytes, before and behind those that do, is the first block's.
template <typename T>
__global__ void __launch_bounds__(kGreedyThreads, kGreedyBlocks)
    greedy_kernel(const T* logits, int64_t stride, int size, int each, const int64_t* slots,
                  Contest* contests, int64_t* tokens, int64_t* last) {
    using P = Pack<T>;
    __shared__ uint64_t found[kGreedyThreads / kWarp];
    const int row = blockIdx.x / each, part = blockIdx.x % each;
    const T* from = logits + row * stride;
    const int off = static_cast<int>(reinterpret_cast<uintptr_t>(from) % 16 / sizeof(T));
    const int before = min(size, (P::kSize - off) % P::kSize);
    const int pieces = (size - before) / P::kSize, loose = size - pieces * P::kSize;
    const P* whole = reinterpret_cast<const P*>(from + before);
    const int step = each * kGreedyThreads, first = part * kGreedyThreads + threadIdx.x;
    let_next_start();
    wait_for_inputs();
    Largest mine = {__uint_as_float(0xff800000u), before + first * P::kSize};  // -inf
    for (int at = first; at < pieces; at += kGreedyAhead * step) {
        P ahead[kGreedyAhead];
#pragma unroll
        for (int i = 0; i < kGreedyAhead; ++i) {
            if (at + i * step < pieces) ahead[i] = whole[at + i * step];
        }
#pragma unroll
        for (int i = 0; i < kGreedyAhead; ++i) {
            if (at + i * step >= pieces) break;
#pragma unroll
            for (int j = 0; j < P::kSize; ++j) {
                mine.meet(to_float(ahead[i].at[j]), before + (at + i * step) * P::kSize + j);
            }
        }
    }
    uint64_t best = first < pieces ? ranked(mine) : 0;
    for (int i = threadIdx.x; part == 0 && i < loose; i += kGreedyThreads) {
        const int at = i < before ? i : i + pieces * P::kSize;
        best = max(best, ranked({to_float(from[at]), at}));
    }
    best = warp_largest(best);
    if (threadIdx.x % kWarp == 0) found[threadIdx.x / kWarp] = best;
    __syncthreads();
    if (threadIdx.x > 0) return;
#pragma unroll
    for (int i = 1; i < kGreedyThreads / kWarp; ++i) best = max(best, found[i]);
    Contest* const contest = contests + row;
    raise_to(&contest->best, best);
    if (arrive(&contest->there) != each - 1) return;
    const int64_t token = ~static_cast<uint32_t>(look_at(&contest->best));
    contest->best = 0;
    contest->there = 0;
    tokens[row] = token;
    last[slots[row]] = token;
}
