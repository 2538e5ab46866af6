// What happens to each token's row between two matrix products.
#pragma once

#include <cmath>
#include <cstring>

#include "vec.h"

namespace minisgl {

// 1 / root mean square of a row.
inline float inverse_rms(const float* x, int64_t size, float eps) {
    Vec squares[2] = {};
    int64_t i = 0;
    for (; i + 2 * kLanes <= size; i += 2 * kLanes) {
        Vec a = load(x + i), b = load(x + i + kLanes);
        squares[0] += a * a;
        squares[1] += b * b;
    }
    float total = sum(squares[0] + squares[1]);
    for (; i < size; ++i) total += x[i] * x[i];
    return 1.0f / std::sqrt(total / size + eps);
}

// out = x / rms(x) * weight; with a residual, residual += x first and that sum is normalised.
inline void rms_norm(const float* x, float* residual, const float* weight, float eps, float* out,
                     int64_t rows, int64_t size) {
    for (int64_t row = 0; row < rows; ++row) {
        const float* from = x + row * size;
        if (residual) {
            float* into = residual + row * size;
            for (int64_t i = 0; i < size; ++i) into[i] += from[i];
            from = into;
        }
        float scale = inverse_rms(from, size, eps);
        float* to = out + row * size;
        for (int64_t i = 0; i < size; ++i) to[i] = from[i] * scale * weight[i];
    }
}

// out = silu(first half of x) * second half
inline void silu_and_mul(const float* x, float* out, int64_t rows, int64_t size) {
    for (int64_t row = 0; row < rows; ++row) {
        const float *gate = x + 2 * row * size, *up = gate + size;
        float* to = out + row * size;
        int64_t i = 0;
        for (; i + kLanes <= size; i += kLanes) {
            Vec g = load(gate + i);
            store(to + i, g / (1.0f + exp(-g)) * load(up + i));
        }
        for (; i < size; ++i) to[i] = gate[i] / (1.0f + std::exp(-gate[i])) * up[i];
    }
}

// Normalises (where there is a weight) and turns each token's query and key heads, in place, and
// copies its keys and values to where they belong.
// qkv: (tokens, stride), `heads` query heads, then kv_heads keys, then values; weight: (heads +
// kv_heads, dim) or null; cosine, sine: (tokens, dim / 2); keys, values: (positions, kv_heads,
// dim).
inline void turn_and_store(float* qkv, int64_t stride, const float* weight, float eps,
                           const float* cosine, const float* sine, float* keys, float* values,
                           const int64_t* locations, int64_t tokens, int64_t heads,
                           int64_t kv_heads, int64_t dim) {
    const int64_t half = dim / 2, size = kv_heads * dim;
    for (int64_t token = 0; token < tokens; ++token) {
        const float *cos = cosine + token * half, *sin = sine + token * half;
        float* x = qkv + token * stride;
        for (int64_t head = 0; head < heads + kv_heads; ++head) {
            float *a = x + head * dim, *b = a + half;
            if (weight) {
                float scale = inverse_rms(a, dim, eps);
                const float* by = weight + head * dim;
                for (int64_t i = 0; i < dim; ++i) a[i] = a[i] * scale * by[i];
            }
            for (int64_t i = 0; i < half; ++i) {
                float left = a[i], right = b[i];
                a[i] = left * cos[i] - right * sin[i];
                b[i] = right * cos[i] + left * sin[i];
            }
        }
        const float* k = x + heads * dim;
        std::memcpy(keys + locations[token] * size, k, size * sizeof(float));
        std::memcpy(values + locations[token] * size, k + size, size * sizeof(float));
    }
}

}  // namespace minisgl
