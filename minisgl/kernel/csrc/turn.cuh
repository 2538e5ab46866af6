// Query and key heads turned by their position's angles: what a warp does with a head.
// Source: Su et al. 2021 (RoFormer), sec. 3.2; pairs are (i, i + dim / 2), as in GPT-NeoX.
#pragma once
#include "rows.cuh"

// Numbers that follow one another, read and written at once.
template <typename T, int kCount>
struct alignas(sizeof(T) * kCount) Run {
    T at[kCount];
};

// What stands there, if it is this thread's.
template <typename T, int kCount>
__device__ inline Run<T, kCount> read_run(const T* from, bool mine) {
    return mine ? *reinterpret_cast<const Run<T, kCount>*>(from) : Run<T, kCount>{};
}

// A thread's pairs of a head: low numbers, and those half a head further.
template <typename T, int kPairs>
struct Pairs {
    Run<T, kPairs> low, high;
};

// half: numbers from low to high.
template <typename T, int kPairs>
__device__ inline Pairs<T, kPairs> read_pairs(const T* from, int half, bool mine) {
    return {read_run<T, kPairs>(from, mine), read_run<T, kPairs>(from + half, mine)};
}

template <typename T, int kPairs>
__device__ inline void write_pairs(T* to, int half, const Pairs<T, kPairs>& pairs) {
    using R = Run<T, kPairs>;
    *reinterpret_cast<R*>(to) = pairs.low;
    *reinterpret_cast<R*>(to + half) = pairs.high;
}

// A head that is normalised by its factors, if `normed`, and turned. All threads of a warp have
// some of its 2 * half numbers, or zeros.
template <typename T, int kPairs>
__device__ inline Pairs<T, kPairs> turned(Pairs<T, kPairs> x, bool normed,
                                          const Pairs<T, kPairs>& factors, float eps, int half,
                                          const Run<T, kPairs>& cosine,
                                          const Run<T, kPairs>& sine) {
    float scale = 1.0f;
    if (normed) {
        float squares = 0.0f;
#pragma unroll
        for (int i = 0; i < kPairs; ++i) {
            const float a = to_float(x.low.at[i]), b = to_float(x.high.at[i]);
            squares += a * a + b * b;
        }
        scale = norm_scale(warp_sum(squares), 2 * half, eps);
    }
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
        float a = to_float(x.low.at[i]), b = to_float(x.high.at[i]);
        if (normed) {
            // rounded as a tensor between the two steps would be
            a = to_float(from_float<T>(a * scale * to_float(factors.low.at[i])));
            b = to_float(from_float<T>(b * scale * to_float(factors.high.at[i])));
        }
        const float c = to_float(cosine.at[i]), s = to_float(sine.at[i]);
        x.low.at[i] = from_float<T>(a * c - b * s);
        x.high.at[i] = from_float<T>(b * c + a * s);
    }
    return x;
}
