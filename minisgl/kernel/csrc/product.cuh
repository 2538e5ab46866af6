// A product for few tokens: out = rows W^T + bias, where the rows may be a norm that is computed on
// the way, for a kernel of its own takes longer than that.
//
// Such a product is reading W. All blocks run at once; each takes a run of W's rows (outputs), and
// every warp keeps kRows * kAhead pieces of 16 bytes a thread on their way from the beginning to
// the end, over the borders between rows. The first are fetched while the kernel before this one
// still runs, and while the block makes its copy of the input rows in shared memory. Each block
// makes them all: they come from the second cache, and nobody has to wait for another block.
#pragma once
#include <algorithm>

#include "host.cuh"
#include "rows.cuh"

// How a block shares its work: kSplit warps share an output, 16 bytes of it a thread in turn, and
// each fetches kAhead pieces of kRows outputs before it uses the first. The best of 16 that were
// measured on an H200 at one token, for the shapes of Qwen3 0.6B and 8B together.
constexpr int kRows = 4;
constexpr int kSplit = 4;
constexpr int kAhead = 4;
constexpr int kProductThreads = 256;
constexpr int kGroups = kProductThreads / kWarp / kSplit;
constexpr int kAtOnce = 2;             // blocks on a multiprocessor
constexpr int kMostOutputs = 128;      // of one block
constexpr int kMostShared = 96 << 10;  // bytes of one block

// What the input rows are. `prepare` reads what no kernel writes; `make` writes kTokens rows to
// shared memory, each of them `pieces` long. kSpare: more rows that it needs there, behind them.
template <typename T>
struct AsTheyAre {
    static constexpr int kSpare = 0;
    const T* x;

    __device__ void prepare(Pack<T>*, int) const {}

    template <int kTokens>
    __device__ void make(Pack<T>* rows, int pieces) const {
        const Pack<T>* from = reinterpret_cast<const Pack<T>*>(x);
        for (int at = threadIdx.x; at < kTokens * pieces; at += blockDim.x) rows[at] = from[at];
    }
};

// (x + residual) / rms * weight. The sum goes to `sum`, which is not the residual: other blocks may
// still read that. Without a residual there is no sum either.
template <typename T>
struct Normed {
    static constexpr int kSpare = 1;
    const T *x, *residual, *weight;
    float eps;
    T* sum;

    __device__ void prepare(Pack<T>* spare, int pieces) const {
        const Pack<T>* from = reinterpret_cast<const Pack<T>*>(weight);
        for (int at = threadIdx.x; at < pieces; at += blockDim.x) spare[at] = from[at];
    }

    template <int kTokens>
    __device__ void make(Pack<T>* rows, int pieces) const {
        __shared__ float scratch[kTokens][kMaxThreads / kWarp];
        const Pack<T>* from = reinterpret_cast<const Pack<T>*>(x);
        const Pack<T>* base = reinterpret_cast<const Pack<T>*>(residual);
        float squares[kTokens] = {};
#pragma unroll
        for (int t = 0; t < kTokens; ++t) {
            for (int i = threadIdx.x; i < pieces; i += blockDim.x) {
                const int at = t * pieces + i;
                Pack<T> row = from[at];
                if (base != nullptr) {
                    row = added(row, base[at]);
                    if (blockIdx.x == 0) reinterpret_cast<Pack<T>*>(sum)[at] = row;
                }
                squares[t] = add_squares(squares[t], row);
                rows[at] = row;
            }
        }
        const Pack<T>* factors = rows + kTokens * pieces;  // this thread's own, as its pieces are
#pragma unroll
        for (int t = 0; t < kTokens; ++t) {
            const int64_t size = int64_t{pieces} * Pack<T>::kSize;
            const float scale = norm_scale(block_sum(squares[t], scratch[t]), size, eps);
            for (int i = threadIdx.x; i < pieces; i += blockDim.x) {
                rows[t * pieces + i] = scaled(rows[t * pieces + i], scale, factors[i]);
            }
        }
    }
};

// weight: (outputs, inputs); out: (kTokens, outputs).
template <typename T, typename Input, int kTokens>
__global__ void __launch_bounds__(kProductThreads, kAtOnce)
    product_kernel(Input input, const T* weight, const T* bias, T* out, int inputs, int outputs) {
    using P = Pack<T>;
    constexpr int kStride = kSplit * kWarp;
    const int pieces = inputs / P::kSize;
    P* rows = reinterpret_cast<P*>(dynamic_shared());
    P* spare = rows + kTokens * pieces;
    float* parts = reinterpret_cast<float*>(spare + Input::kSpare * pieces);
    const int64_t total = outputs;
    const int begin = static_cast<int>(total * blockIdx.x / gridDim.x);
    const int end = static_cast<int>(total * (blockIdx.x + 1) / gridDim.x);
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    const int part = warp % kSplit, mine = part * kWarp + lane;
    const int first = begin + warp / kSplit;  // a group's outputs are kGroups apart

    uint4 now[kRows][kAhead];  // as words: numbers apart would take a register each
    int next = first, next_column = 0;
    auto fetch_next = [&](int i) {
        const int at = next_column + mine;
        const uint4* from =
            reinterpret_cast<const uint4*>(weight) + static_cast<int64_t>(next) * pieces;
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
            if (next + r * kGroups < end && at < pieces) {
                now[r][i] = load_once(from + r * kGroups * pieces + at);
            }
        }
        next_column += kStride;
        if (next_column >= pieces) {
            next_column = 0;
            next += kRows * kGroups;
        }
    };
    float sums[kTokens][kRows] = {};
    int output = first, column = 0;
    auto use = [&](int i) {
        const int at = column + mine;
        if (at < pieces) {
#pragma unroll
            for (int t = 0; t < kTokens; ++t) {
                const P value = rows[t * pieces + at];
#pragma unroll
                for (int r = 0; r < kRows; ++r) {
                    const P factors = reinterpret_cast<const P&>(now[r][i]);
#pragma unroll
                    for (int j = 0; j < P::kSize; ++j) {
                        sums[t][r] += to_float(value.at[j]) * to_float(factors.at[j]);
                    }
                }
            }
        }
        column += kStride;
        if (column < pieces) return;
#pragma unroll
        for (int t = 0; t < kTokens; ++t) {
#pragma unroll
            for (int r = 0; r < kRows; ++r) {
                const float sum = warp_sum(sums[t][r]);
                const int own = output + r * kGroups;
                if (lane == 0 && own < end) {
                    parts[((own - begin) * kTokens + t) * kSplit + part] = sum;
                }
                sums[t][r] = 0.0f;
            }
        }
        column = 0;
        output += kRows * kGroups;
    };

#pragma unroll
    for (int i = 0; i < kAhead; ++i) fetch_next(i);
    input.prepare(spare, pieces);
    wait_for_inputs();
    input.template make<kTokens>(rows, pieces);
    __syncthreads();
    const int steps = (pieces + kStride - 1) / kStride;  // of an output
    const int together = (end - first + kRows * kGroups - 1) / (kRows * kGroups);
    for (int left = together * steps; left > 0; left -= kAhead) {
        // not before all is fetched: blocks that wait would take the room of some that read
        if (left <= kAhead) let_next_start();
#pragma unroll
        for (int i = 0; i < kAhead; ++i) {
            if (i >= left) break;
            use(i);
            fetch_next(i);
        }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < (end - begin) * kTokens; i += kProductThreads) {
        const int own = begin + i / kTokens, token = i % kTokens;
        float sum = bias == nullptr ? 0.0f : to_float(bias[own]);
#pragma unroll
        for (int p = 0; p < kSplit; ++p) sum += parts[i * kSplit + p];
        out[static_cast<int64_t>(token) * outputs + own] = from_float<T>(sum);
    }
}

template <int kTokens, typename T, typename Input>
void product_of(Input input, const T* weight, const T* bias, T* out, int inputs, int outputs,
                int device, cudaStream_t stream) {
    const int64_t at_once = int64_t{processors(device)} * kAtOnce;
    const int64_t waves = (outputs + at_once * kMostOutputs - 1) / (at_once * kMostOutputs);
    const int64_t blocks = std::min<int64_t>(waves * at_once, outputs);
    const int64_t most = (outputs + blocks - 1) / blocks;
    const int64_t shared = int64_t{kTokens + Input::kSpare} * inputs * sizeof(T) +
                           most * kTokens * kSplit * sizeof(float);
    TVM_FFI_ICHECK(shared <= kMostShared) << "rows of " << inputs << " numbers";
    auto kernel = product_kernel<T, Input, kTokens>;
    allow_shared(kernel, static_cast<int>(shared));
    launch_with(static_cast<int>(shared), "product", kernel, blocks, kProductThreads, stream, input,
                weight, bias, out, inputs, outputs);
}
