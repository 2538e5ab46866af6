// Weights of four bits, in panels of kPanel outputs. A word holds the codes of eight inputs of one
// output, so that a register of words becomes eight registers of weights by shifts and masks alone.
//
// A weight is (code - zero) * scale without any rounding: that takes 5 bits and 11.
#pragma once

#include <vector>

#include "gemm.h"

namespace minisgl {

constexpr int kCodes = 8;  // in a word
#if defined(__AVX512F__)
constexpr int kFew = 12;  // rows for which weights are decoded in registers, as many as those hold
#else
constexpr int kFew = 4;
#endif
constexpr int64_t kDecoded = 128;  // inputs that are decoded at a time: they stay in the L1 cache

// Codes: (panels, groups, words, kPanel); scales and zeros: (panels, groups, kPanel).
struct Int4 {
    const int32_t* codes;
    const Half* scales;
    const Half* zeros;
    int64_t groups, group;  // a group has `group` inputs; its last word may not be full

    int64_t words() const { return (group + kCodes - 1) / kCodes; }
};

// 16 plus code k of each word: the code is put where a float between 16 and 32 has its ones.
inline Vec decode(IntVec words, int k) {
    const int shift = 4 * k - 19;
    IntVec bits = shift > 0 ? words >> shift : words << -shift;
    bits = (bits & 0x00780000) | 0x41800000;
    Vec out;
    std::memcpy(&out, &bits, sizeof(out));
    return out;
}

inline IntVec load(const int32_t* from) {
    IntVec out;
    std::memcpy(&out, from, sizeof(out));
    return out;
}

// What a decoded 16 + code is multiplied by, and what is then added.
struct Line {
    Vec slope, offset;

    Line(const Half* scales, const Half* zeros)
        : slope(load(scales)), offset(-(load(zeros) + 16.0f) * slope) {}
    Vec at(Vec code) const { return code * slope + offset; }
};

// out[m][0..columns) = bias + sum over i of x[m][i] * weight[i][0..columns), for panel p.
template <int M>
void tile_int4(const float* x, int64_t x_stride, const Int4& weight, int64_t p, const float* bias,
               float* out, int64_t out_stride, int columns) {
    const int64_t words = weight.words();
    const int32_t* codes = weight.codes + p * weight.groups * words * kPanel;
    Vec sums[M][2] = {};
    for (int64_t g = 0; g < weight.groups; ++g) {
        const int64_t at = (p * weight.groups + g) * kPanel;
        const Line left(weight.scales + at, weight.zeros + at);
        const Line right(weight.scales + at + kLanes, weight.zeros + at + kLanes);
        const float* from = x + g * weight.group;
        auto add = [&](IntVec a, IntVec b, int k) {
            Vec l = left.at(decode(a, k)), r = right.at(decode(b, k));
#pragma GCC unroll 12
            for (int m = 0; m < M; ++m) {
                Vec value = splat(from[m * x_stride + k]);
                sums[m][0] += value * l;
                sums[m][1] += value * r;
            }
        };
        for (int64_t i = 0; i < weight.group; i += kCodes, codes += kPanel, from += kCodes) {
            IntVec a = load(codes), b = load(codes + kLanes);
            __builtin_prefetch(reinterpret_cast<const char*>(codes) + kAhead / 4);
            if (i + kCodes <= weight.group) {
#pragma GCC unroll 8
                for (int k = 0; k < kCodes; ++k) add(a, b, k);
            } else {
                for (int k = 0; k < weight.group - i; ++k) add(a, b, k);
            }
        }
    }
    const Start start{bias, 0};
    for (int m = 0; m < M; ++m) finish(sums[m], start, m, out + m * out_stride, columns);
}

// The weights of groups [first, end) of panel p as floats: (their inputs, kPanel).
inline void decode(const Int4& weight, int64_t p, int64_t first, int64_t end, float* out) {
    const int64_t words = weight.words();
    const int32_t* codes = weight.codes + (p * weight.groups + first) * words * kPanel;
    for (int64_t g = first; g < end; ++g) {
        const int64_t at = (p * weight.groups + g) * kPanel;
        const Line left(weight.scales + at, weight.zeros + at);
        const Line right(weight.scales + at + kLanes, weight.zeros + at + kLanes);
        for (int64_t i = 0; i < weight.group; i += kCodes, codes += kPanel) {
            IntVec a = load(codes), b = load(codes + kLanes);
            const int count = std::min<int64_t>(kCodes, weight.group - i);
#pragma GCC unroll 8
            for (int k = 0; k < kCodes; ++k) {
                if (k == count) break;
                store(out, left.at(decode(a, k)));
                store(out + kLanes, right.at(decode(b, k)));
                out += kPanel;
            }
        }
    }
}

// x: (rows, inputs), out: (rows, outputs), both contiguous.
inline void gemm_int4(const float* x, int64_t rows, int64_t inputs, const Int4& weight,
                      const float* bias, float* out, int64_t outputs, int threads) {
    if (rows > kFew) {  // decoding once costs less than once for each few rows
        const int64_t some = std::max<int64_t>(1, kDecoded / weight.group);  // groups at a time
        auto panel_at = [&](int64_t p, int64_t i) {
            static thread_local std::vector<float> panel;
            panel.resize(some * weight.group * kPanel);
            const int64_t first = i / weight.group;
            decode(weight, p, first, std::min(first + some, weight.groups), panel.data());
            return static_cast<const float*>(panel.data());
        };
        gemm(x, rows, inputs, some * weight.group, panel_at, bias, out, outputs, threads);
        return;
    }
    const int64_t panels = (outputs + kPanel - 1) / kPanel;
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (int64_t p = 0; p < panels; ++p) {
        const int columns = std::min<int64_t>(kPanel, outputs - p * kPanel);
        const float* from = bias ? bias + p * kPanel : nullptr;
        float* to = out + p * kPanel;
        switch (rows) {
#define MINISGL_ROWS(M)                                                 \
    case M:                                                             \
        tile_int4<M>(x, inputs, weight, p, from, to, outputs, columns); \
        break;
            MINISGL_ROWS(1)
            MINISGL_ROWS(2)
            MINISGL_ROWS(3)
            MINISGL_ROWS(4)
#if defined(__AVX512F__)
            MINISGL_ROWS(5)
            MINISGL_ROWS(6)
            MINISGL_ROWS(7)
            MINISGL_ROWS(8)
            MINISGL_ROWS(9)
            MINISGL_ROWS(10)
            MINISGL_ROWS(11)
            MINISGL_ROWS(12)
#endif
#undef MINISGL_ROWS
        }
    }
}

}  // namespace minisgl
