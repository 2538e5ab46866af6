// Attention over pages of keys and values. Source: Kwon et al. 2023 (PagedAttention), sec. 4.
//
// A row of one new position reads its pages where they lie. A row of several first copies them into
// panels, since each is read once per few queries then, and goes through the matrix product's tile.
#pragma once

#include <cmath>

#include "gemm.h"

namespace minisgl {

// Keys or values of one layer: (pages, page_size, kv_heads, dim), and one row's page table.
struct Pages {
    const float* memory;
    const int32_t* table;
    int64_t page_size, kv_heads, dim;

    const float* at(int64_t position, int64_t head) const {
        int64_t place = table[position / page_size] * page_size + position % page_size;
        return memory + (place * kv_heads + head) * dim;
    }
};

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

// scores[j] = q . keys[j] for kLanes keys at once: their products are summed as a tree.
inline void dot(const float* q, const float* const* keys, int64_t dim, float* scores) {
    Vec sums[kLanes] = {};
    int64_t i = 0;
    for (; i + kLanes <= dim; i += kLanes) {
        Vec part = load(q + i);
#pragma GCC unroll 16
        for (int j = 0; j < kLanes; ++j) sums[j] += part * load(keys[j] + i);
    }
    // after the round with distance d, lane l of sums[j] holds d-fold fewer parts of two keys
#pragma GCC unroll 4
    for (int half = kLanes / 2; half; half /= 2) {
        IntVec low, high;
        for (int l = 0; l < kLanes; ++l) {
            int from = l & (half - 1), block = l / half;  // lanes of `half` floats
            low[l] = (block & 1 ? kLanes : 0) + (block / 2) * 2 * half + from;
            high[l] = low[l] + half;
        }
#pragma GCC unroll 8
        for (int j = 0; j < half; ++j) {
            Vec a = sums[j], b = sums[j + half];
            sums[j] = __builtin_shuffle(a, b, low) + __builtin_shuffle(a, b, high);
        }
    }
    Vec total = sums[0];
    if (i < dim) {
        for (int j = 0; j < kLanes; ++j) {
            for (int64_t d = i; d < dim; ++d) total[j] += q[d] * keys[j][d];
        }
    }
    store(scores, total);
}

// out[h][0..V registers) = sum over j of weights[h][j] * values[j][0..V registers)
template <int H, int V>
void mix(const float* weights, int64_t weights_stride, const Pages& values, int64_t head,
         int64_t first, int64_t count, int64_t offset, float* out) {
    Vec sums[H][V] = {};
    for (int64_t j = 0; j < count; ++j) {
        const float* value = values.at(first + j, head) + offset;
        Vec parts[V];
        for (int v = 0; v < V; ++v) parts[v] = load(value + v * kLanes);
        for (int h = 0; h < H; ++h) {
            Vec weight = splat(weights[h * weights_stride + j]);
            for (int v = 0; v < V; ++v) sums[h][v] += weight * parts[v];
        }
    }
    for (int h = 0; h < H; ++h) {
        for (int v = 0; v < V; ++v) store(out + h * values.dim + offset + v * kLanes, sums[h][v]);
    }
}

template <int H>
void mix(const float* weights, int64_t weights_stride, const Pages& values, int64_t head,
         int64_t first, int64_t count, float* out) {
    int64_t i = 0;
    for (; i + 4 * kLanes <= values.dim; i += 4 * kLanes) {
        mix<H, 4>(weights, weights_stride, values, head, first, count, i, out);
    }
    for (; i + kLanes <= values.dim; i += kLanes) {
        mix<H, 1>(weights, weights_stride, values, head, first, count, i, out);
    }
    if (i == values.dim) return;
    for (int h = 0; h < H; ++h) {
        for (int64_t d = i; d < values.dim; ++d) {
            float total = 0;
            for (int64_t j = 0; j < count; ++j) {
                total += weights[h * weights_stride + j] * values.at(first + j, head)[d];
            }
            out[h * values.dim + d] = total;
        }
    }
}

// One new position: q, out: (group, dim), the query heads that share key head `head`.
inline void decode(const float* q, const Pages& keys, const Pages& values, int64_t head,
                   int64_t first, int64_t end, int64_t group, float scale,
                   std::vector<float>& scratch, float* out) {
    const int64_t count = end - first, dim = keys.dim;
    const int64_t stride = (count + kLanes - 1) / kLanes * kLanes;
    scratch.resize(group * (stride + dim));
    float *scores = scratch.data(), *scaled = scores + group * stride;
    for (int64_t i = 0; i < group * dim; ++i) scaled[i] = q[i] * scale;
    for (int64_t j = 0; j < count; j += kLanes) {
        const float* some[kLanes];
        for (int64_t l = 0; l < kLanes; ++l) {
            some[l] = keys.at(std::min(first + j + l, end - 1), head);
        }
        for (int64_t h = 0; h < group; ++h)
            dot(scaled + h * dim, some, dim, scores + h * stride + j);
    }
    for (int64_t h = 0; h < group; ++h) softmax(scores + h * stride, count);
    for (int64_t h = 0; h < group; h += 4) {
        const float* weights = scores + h * stride;
        float* to = out + h * dim;
        switch (std::min<int64_t>(4, group - h)) {
            case 1:
                mix<1>(weights, stride, values, head, first, count, to);
                break;
            case 2:
                mix<2>(weights, stride, values, head, first, count, to);
                break;
            case 3:
                mix<3>(weights, stride, values, head, first, count, to);
                break;
            case 4:
                mix<4>(weights, stride, values, head, first, count, to);
                break;
        }
    }
}

// Several new positions [start, end). q: (positions, q_stride), out: (positions, out_stride), both
// at the first query head of key head `head`. window: newest positions that a token sees, 0: all.
inline void prefill(const float* q, int64_t q_stride, const Pages& keys, const Pages& values,
                    int64_t head, int64_t start, int64_t end, int64_t window, int64_t group,
                    float scale, std::vector<float>& scratch, float* out, int64_t out_stride) {
    const int64_t dim = keys.dim;
    const int64_t base = window ? std::max<int64_t>(0, start + 1 - window) : 0;
    const int64_t count = end - base, key_panels = (count + kPanel - 1) / kPanel;
    const int64_t padded = key_panels * kPanel, value_panels = (dim + kPanel - 1) / kPanel;
    scratch.assign(padded * dim + value_panels * count * kPanel + kRows * (dim + padded), 0.0f);
    float* key_panel = scratch.data();                            // (key_panels, dim, kPanel)
    float* value_panel = key_panel + padded * dim;                // (value_panels, count, kPanel)
    float* scaled = value_panel + value_panels * count * kPanel;  // (kRows, dim)
    float* scores = scaled + kRows * dim;                         // (kRows, padded)
    for (int64_t j = 0; j < count; ++j) {
        const float *key = keys.at(base + j, head), *value = values.at(base + j, head);
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
            tile(rows, gathered, dim, key_panel + p * dim * kPanel, dim, nullptr,
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
                 nullptr, mixed, kPanel, kPanel);
            const int64_t width = std::min<int64_t>(kPanel, dim - p * kPanel);
            for (int64_t i = begin; i < stop; ++i) {
                std::memcpy(out + i / group * out_stride + i % group * dim + p * kPanel,
                            mixed + (i - begin) * kPanel, width * sizeof(float));
            }
        }
    }
}

}  // namespace minisgl
