// Attention over pages of keys and values. Source: Kwon et al. 2023 (PagedAttention), sec. 4.
//
// A row of one new position reads its pages where they lie. A row of several first copies them into
// panels, since each is read once per few queries then, and goes through the matrix product's tile.
#pragma once

#include <cmath>
#include <utility>

#include "gemm.h"

namespace minisgl {

// Where positions [first, end) of one row begin, in memory laid out as (pages, page_size, size).
inline void find(const int32_t* table, int64_t page_size, int64_t size, int64_t first, int64_t end,
                 std::vector<int64_t>& places) {
    places.resize(end - first);
    int64_t page = first / page_size, offset = first % page_size;
    for (int64_t& place : places) {
        place = (table[page] * page_size + offset) * size;
        if (++offset == page_size) ++page, offset = 0;
    }
}

// scores *= 1/sum after scores = e^(scores - largest)
inline void softmax(float* scores, int64_t count) {
    float largest = scores[0];
    int64_t i = 0;
    if (count >= kLanes) {
        Vec top = load(scores);
        for (i = kLanes; i + kLanes <= count; i += kLanes) top = max(top, load(scores + i));
        for (int j = 0; j < kLanes; ++j) largest = std::max(largest, top[j]);
    }
    for (; i < count; ++i) largest = std::max(largest, scores[i]);
    Vec totals = {};
    float total = 0;
    for (i = 0; i + kLanes <= count; i += kLanes) {
        Vec e = exp(load(scores + i) - largest);
        totals += e;
        store(scores + i, e);
    }
    for (; i < count; ++i) total += scores[i] = std::exp(scores[i] - largest);
    float inverse = 1.0f / (total + sum(totals));
    for (i = 0; i < count; ++i) scores[i] *= inverse;
}

// Lane l of the result is the sum of two neighbours of `Half` lanes each: of a, then of b, in turn.
template <int Half, int... L>
Vec fold(Vec a, Vec b, std::integer_sequence<int, L...>) {
#define MINISGL_FROM(l, high) \
    ((l) / Half % 2 * kLanes + (l) / Half / 2 * 2 * Half + (l) % Half + (high) * Half)
#if defined(__clang__)
    return __builtin_shufflevector(a, b, MINISGL_FROM(L, 0)...) +
           __builtin_shufflevector(a, b, MINISGL_FROM(L, 1)...);
#else
    return __builtin_shuffle(a, b, IntVec{MINISGL_FROM(L, 0)...}) +
           __builtin_shuffle(a, b, IntVec{MINISGL_FROM(L, 1)...});
#endif
#undef MINISGL_FROM
}

// Lane j of the result is the sum over the lanes of sums[j], which are used up.
template <int Half = kLanes / 2>
Vec sums_of(Vec* sums) {
    for (int j = 0; j < Half; ++j) {
        sums[j] = fold<Half>(sums[j], sums[j + Half], std::make_integer_sequence<int, kLanes>());
    }
    if constexpr (Half > 1) return sums_of<Half / 2>(sums);
    return sums[0];
}

// scores[j] = q . keys[j] for kLanes keys at once.
inline void dot(const float* q, const float* const* keys, int64_t dim, float* scores) {
    Vec sums[kLanes] = {};
    int64_t i = 0;
    for (; i + kLanes <= dim; i += kLanes) {
        Vec part = load(q + i);
#pragma GCC unroll 16
        for (int j = 0; j < kLanes; ++j) sums[j] += part * load(keys[j] + i);
    }
    Vec total = sums_of(sums);
    if (i < dim) {
        for (int j = 0; j < kLanes; ++j) {
            for (int64_t d = i; d < dim; ++d) total[j] += q[d] * keys[j][d];
        }
    }
    store(scores, total);
}

// out[h][0..V registers) += sum over j of weights[h][j] * values[places[j]][0..V registers)
template <int H, int V>
void mix(const float* weights, int64_t stride, const float* values, const int64_t* places,
         int64_t count, float* out, int64_t dim) {
    constexpr int kChains = H * V >= 8 ? 1 : H * V >= 4 ? 2 : 4;  // sums that hide the latency
    Vec sums[kChains][H][V] = {};
    auto add = [&](int c, int64_t j) {
        const float* value = values + places[j];
        for (int h = 0; h < H; ++h) {
            Vec weight = splat(weights[h * stride + j]);
            for (int v = 0; v < V; ++v) sums[c][h][v] += weight * load(value + v * kLanes);
        }
    };
    int64_t j = 0;
    for (; j + kChains <= count; j += kChains) {
#pragma GCC unroll 4
        for (int c = 0; c < kChains; ++c) add(c, j + c);
    }
    for (; j < count; ++j) add(0, j);
    for (int h = 0; h < H; ++h) {
        for (int v = 0; v < V; ++v) {
            Vec total = sums[0][h][v];
            for (int c = 1; c < kChains; ++c) total += sums[c][h][v];
            float* to = out + h * dim + v * kLanes;
            store(to, load(to) + total);
        }
    }
}

template <int H>
void mix(const float* weights, int64_t stride, const float* values, const int64_t* places,
         int64_t count, float* out, int64_t dim) {
    int64_t i = 0;
    for (; i + 4 * kLanes <= dim; i += 4 * kLanes) {
        mix<H, 4>(weights, stride, values + i, places, count, out + i, dim);
    }
    for (; i + 2 * kLanes <= dim; i += 2 * kLanes) {
        mix<H, 2>(weights, stride, values + i, places, count, out + i, dim);
    }
    for (; i + kLanes <= dim; i += kLanes) {
        mix<H, 1>(weights, stride, values + i, places, count, out + i, dim);
    }
    for (int h = 0; i < dim && h < H; ++h) {
        for (int64_t d = i; d < dim; ++d) {
            float total = 0;
            for (int64_t j = 0; j < count; ++j) {
                total += weights[h * stride + j] * values[places[j] + d];
            }
            out[h * dim + d] += total;
        }
    }
}

constexpr int64_t kTogether = 64;  // positions whose values stay in the cache for all heads

// One new position, for `kv_heads` key heads that lie one after the other: q, out: (kv_heads,
// group, dim). places: where the keys and values of `count` positions begin. Every head reads a few
// positions before any reads the next, since those lie together in memory.
inline void decode(const float* q, const float* keys, const float* values, const int64_t* places,
                   int64_t count, int64_t kv_heads, int64_t dim, int64_t group, float scale,
                   std::vector<float>& scratch, float* out) {
    const int64_t stride = (count + kLanes - 1) / kLanes * kLanes, heads = kv_heads * group;
    scratch.resize(heads * (stride + dim));
    float *scores = scratch.data(), *scaled = scores + heads * stride;
    for (int64_t i = 0; i < heads * dim; ++i) scaled[i] = q[i] * scale;
    for (int64_t j = 0; j < count; j += kLanes) {
        const float* some[kLanes];
        for (int64_t l = 0; l < kLanes; ++l) some[l] = keys + places[std::min(j + l, count - 1)];
        for (int64_t h = 0; h < heads; ++h) {
            dot(scaled + h * dim, some, dim, scores + h * stride + j);
            if ((h + 1) % group == 0) {
                for (int64_t l = 0; l < kLanes; ++l) some[l] += dim;
            }
        }
    }
    for (int64_t h = 0; h < heads; ++h) softmax(scores + h * stride, count);
    std::memset(out, 0, heads * dim * sizeof(float));
    for (int64_t j = 0; j < count; j += kTogether) {
        const int64_t some = std::min(kTogether, count - j);
        for (int64_t head = 0; head < kv_heads; ++head) {
            const float* from = values + head * dim;
            for (int64_t h = head * group; h < (head + 1) * group; h += 4) {
                const float* weights = scores + h * stride + j;
                float* to = out + h * dim;
                switch (std::min<int64_t>(4, (head + 1) * group - h)) {
                    case 1:
                        mix<1>(weights, stride, from, places + j, some, to, dim);
                        break;
                    case 2:
                        mix<2>(weights, stride, from, places + j, some, to, dim);
                        break;
                    case 3:
                        mix<3>(weights, stride, from, places + j, some, to, dim);
                        break;
                    case 4:
                        mix<4>(weights, stride, from, places + j, some, to, dim);
                        break;
                }
            }
        }
    }
}

// Several new positions [start, end). q: (positions, q_stride), out: (positions, out_stride), both
// at the first query head of a key head. places: of positions [base, end).
// window: newest positions that a token sees, 0: all.
inline void prefill(const float* q, int64_t q_stride, const float* keys, const float* values,
                    const int64_t* places, int64_t base, int64_t start, int64_t end, int64_t window,
                    int64_t dim, int64_t group, float scale, std::vector<float>& scratch,
                    float* out, int64_t out_stride) {
    const int64_t count = end - base, key_panels = (count + kPanel - 1) / kPanel;
    const int64_t padded = key_panels * kPanel, value_panels = (dim + kPanel - 1) / kPanel;
    scratch.assign(padded * dim + value_panels * count * kPanel + kRows * (dim + padded), 0.0f);
    float* key_panel = scratch.data();                            // (key_panels, dim, kPanel)
    float* value_panel = key_panel + padded * dim;                // (value_panels, count, kPanel)
    float* scaled = value_panel + value_panels * count * kPanel;  // (kRows, dim)
    float* scores = scaled + kRows * dim;                         // (kRows, padded)
    for (int64_t j = 0; j < count; ++j) {
        const float *key = keys + places[j], *value = values + places[j];
        float* to = key_panel + j / kPanel * dim * kPanel + j % kPanel;
        for (int64_t d = 0; d < dim; ++d) to[d * kPanel] = key[d];
        for (int64_t d = 0; d < dim; d += kPanel) {
            std::memcpy(value_panel + (d / kPanel * count + j) * kPanel, value + d,
                        std::min<int64_t>(kPanel, dim - d) * sizeof(float));
        }
    }
    const int64_t queries = (end - start) * group, blocks = (queries + kRows - 1) / kRows;
    for (int64_t b = 0; b < blocks; ++b) {
        const int64_t begin = queries * b / blocks, stop = queries * (b + 1) / blocks;
        const int rows = stop - begin;
        float* gathered = scaled;
        for (int64_t i = begin; i < stop; ++i) {
            const float* from = q + i / group * q_stride + i % group * dim;
            for (int64_t d = 0; d < dim; ++d) gathered[(i - begin) * dim + d] = from[d] * scale;
        }
        const int64_t oldest = start + begin / group;  // the block's first and last position
        const int64_t newest = start + (stop - 1) / group;
        const int64_t low = window ? std::max(base, oldest + 1 - window) - base : 0;
        const int64_t low_panel = low / kPanel, high = newest + 1 - base;
        for (int64_t p = low_panel; p * kPanel < high; ++p) {
            tile(rows, gathered, dim, key_panel + p * dim * kPanel, dim, Start{},
                 scores + p * kPanel, padded, kPanel);
        }
        for (int i = 0; i < rows; ++i) {
            const int64_t position = start + (begin + i) / group;
            const int64_t last = position + 1 - base;
            const int64_t seen = window ? std::max<int64_t>(0, last - window) : 0;
            float* row = scores + i * padded;
            softmax(row + seen, last - seen);
            for (int64_t j = low; j < seen; ++j) row[j] = 0;
            for (int64_t j = last; j < high; ++j) row[j] = 0;
        }
        for (int64_t p = 0; p < value_panels; ++p) {
            float mixed[kRows * kPanel];
            tile(rows, scores + low, padded, value_panel + (p * count + low) * kPanel, high - low,
                 Start{}, mixed, kPanel, kPanel);
            const int64_t width = std::min<int64_t>(kPanel, dim - p * kPanel);
            for (int64_t i = begin; i < stop; ++i) {
                std::memcpy(out + i / group * out_stride + i % group * dim + p * kPanel,
                            mixed + (i - begin) * kPanel, width * sizeof(float));
            }
        }
    }
}

}  // namespace minisgl
