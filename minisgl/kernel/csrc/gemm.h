// y = x W^T + b for few rows of x: W is packed once into panels that are read from end to end.
//
// A panel holds kPanel outputs: (inputs, kPanel), so that one step of the inner loop loads two
// registers of weights and multiplies them with one value of each of up to kRows rows.
// Source of the loop order: Goto and van de Geijn 2008, "Anatomy of high-performance matrix
// multiplication", for matrices so narrow that packing x does not pay.
#pragma once

#include <algorithm>
#include <vector>

#include "vec.h"

namespace minisgl {

constexpr int64_t kChunkFloats = 64 << 10;  // of x that are used together: a part of the L2 cache
constexpr int64_t kAhead = 16 << 10;  // bytes between the weights that are used and those fetched

// What a tile's sums are added to: nothing, the bias, or what the tile before left there.
struct Start {
    const float* from = nullptr;  // nothing
    int64_t stride = 0;           // from one row to the next: 0 for a bias
};

// out[0..columns) = start + sums, the two registers of one row of a tile.
inline void finish(const Vec sums[2], Start start, int row, float* out, int columns) {
    float whole[kPanel];
    store(whole, sums[0]);
    store(whole + kLanes, sums[1]);
    const float* from = start.from + row * start.stride;
    for (int j = 0; j < columns; ++j) out[j] = start.from ? from[j] + whole[j] : whole[j];
}

// out[m][0..columns) = start + sum over i < inputs of x[m][i] * panel[i][0..columns)
template <int M, typename Weight>
void tile(const float* x, int64_t x_stride, const Weight* panel, int64_t inputs, Start start,
          float* out, int64_t out_stride, int columns) {
    constexpr int kChains = M == 1 ? 4 : M <= 3 ? 2 : 1;  // sums that hide a multiply's latency
    Vec sums[kChains][M][2] = {};
    int64_t i = 0;
    for (; i + kChains <= inputs; i += kChains) {
#pragma GCC unroll 4
        for (int c = 0; c < kChains; ++c) {
            const Weight* at = panel + (i + c) * kPanel;
            Vec left = load(at), right = load(at + kLanes);
            for (size_t byte = 0; byte < kPanel * sizeof(Weight); byte += 64) {
                __builtin_prefetch(reinterpret_cast<const char*>(at) + kAhead + byte);
            }
#pragma GCC unroll 12
            for (int m = 0; m < M; ++m) {
                Vec value = splat(x[m * x_stride + i + c]);
                sums[c][m][0] += value * left;
                sums[c][m][1] += value * right;
            }
        }
    }
    for (; i < inputs; ++i) {
        for (int m = 0; m < M; ++m) {
            Vec value = splat(x[m * x_stride + i]);
            sums[0][m][0] += value * load(panel + i * kPanel);
            sums[0][m][1] += value * load(panel + i * kPanel + kLanes);
        }
    }
    for (int m = 0; m < M; ++m) {
        Vec total[2] = {sums[0][m][0], sums[0][m][1]};
        for (int c = 1; c < kChains; ++c) {
            total[0] += sums[c][m][0];
            total[1] += sums[c][m][1];
        }
        finish(total, start, m, out + m * out_stride, columns);
    }
}

// The same for any number of rows up to kRows.
template <typename Weight>
void tile(int rows, const float* x, int64_t x_stride, const Weight* panel, int64_t inputs,
          Start start, float* out, int64_t out_stride, int columns) {
    switch (rows) {
#define MINISGL_ROWS(M)                                                       \
    case M:                                                                   \
        tile<M>(x, x_stride, panel, inputs, start, out, out_stride, columns); \
        break;
        MINISGL_ROWS(1)
        MINISGL_ROWS(2)
        MINISGL_ROWS(3)
        MINISGL_ROWS(4)
        MINISGL_ROWS(5)
        MINISGL_ROWS(6)
#if defined(__AVX512F__)
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

// x: (rows, inputs), out: (rows, outputs), both contiguous. Inputs are taken `step` at a time:
// panel_at(p, i) is where panel p's weights of inputs i to i + step are, (step, kPanel), until the
// same thread asks for others.
template <typename PanelAt>
void gemm(const float* x, int64_t rows, int64_t inputs, int64_t step, PanelAt panel_at,
          const float* bias, float* out, int64_t outputs, int threads) {
    const int64_t panels = (outputs + kPanel - 1) / kPanel;
    const int64_t fit = std::max<int64_t>(kRows, kChunkFloats / step / kRows * kRows);
    // rows a power of two apart share their place in the cache: move them apart
    const int64_t stride = inputs % 128 ? inputs : inputs + kLanes;
    static thread_local std::vector<float> apart;
    for (int64_t first = 0; first < rows; first += fit) {
        const int64_t count = std::min(fit, rows - first);
        const float* from = x + first * inputs;
        int64_t from_stride = inputs;
        if (count > 1 && stride != inputs) {
            apart.resize(count * stride);
            for (int64_t m = 0; m < count; ++m) {
                std::memcpy(&apart[m * stride], from + m * inputs, inputs * sizeof(float));
            }
            from = apart.data();
            from_stride = stride;
        }
        const int64_t blocks = (count + kRows - 1) / kRows;
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
        for (int64_t p = 0; p < panels; ++p) {
            const int columns = std::min<int64_t>(kPanel, outputs - p * kPanel);
            for (int64_t i = 0; i < inputs; i += step) {
                const auto* panel = panel_at(p, i);
                const int64_t some = std::min(step, inputs - i);
                for (int64_t b = 0; b < blocks; ++b) {  // of nearly equal size
                    const int64_t begin = count * b / blocks, end = count * (b + 1) / blocks;
                    float* to = out + (first + begin) * outputs + p * kPanel;
                    const Start start = i      ? Start{to, outputs}
                                        : bias ? Start{bias + p * kPanel, 0}
                                               : Start{};
                    tile(end - begin, from + begin * from_stride + i, from_stride, panel, some,
                         start, to, outputs, columns);
                }
            }
        }
    }
}

}  // namespace minisgl
