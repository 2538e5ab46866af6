// Products of some to some tens of tokens on tensor cores: the kernel, without what launches it.
//
// Such a product is too small to fill a GPU for long: beginning and ending take it as long as
// computing. So a block is one tile of it, about as many tiles as there are multiprocessors, and
// weights come to shared memory while the kernel that makes the inputs still runs. One warp has
// boxes of both copied, some chunks of 64 inputs ahead; a warpgroup multiplies 64 tokens with them.
// Where there are few outputs, `parts` blocks of a cluster share a tile's inputs; in the end each
// adds up some of its sums, which it reads where the others have them, in the order of the inputs.
//
// Source: NVIDIA CUTLASS's warp-specialised kernels for the idea of warps that fetch and others
// that multiply.
#pragma once
#include <algorithm>

#include "boxes.cuh"
#include "outputs.cuh"

namespace many {

constexpr int kTokens = 64;  // of a tile
constexpr int kInputs = 64;  // of a chunk
constexpr int kRow = 128;    // bytes of them
constexpr int kWarps = 4;    // that multiply; one more fetches
constexpr int kThreads = (kWarps + 1) * kWarp;
constexpr int kMostParts = 4;     // of a tile
constexpr int kRoom = 110 << 10;  // bytes of shared memory: two blocks fit a multiprocessor
constexpr int kMostStages = 8;

// kTokens x kOutputs products are a block's.
template <int kOutputs>
struct Tile {
    static constexpr int kStage = (kTokens + kOutputs) * kRow;  // bytes: tokens, then weights
    static constexpr int kStages = std::min(kMostStages, kRoom / kStage);
    static constexpr int kLine = kOutputs + 8;  // a token's sums, so that banks take turns
    static constexpr int kRing = std::max(kStages * kStage, kTokens * kLine * 4);
    static constexpr int kBytes = kRing + 2 * kStages * 8;
};

template <typename T>
struct Product {
    TensorMap x;        // (tokens, inputs), in boxes of kTokens rows
    TensorMap weights;  // (outputs, inputs), in boxes of kOutputs rows; gated: (2 outputs, inputs),
                        // gates first, in boxes of half as many
    const T* bias;      // as many, or nullptr
    T* out;             // (tokens, outputs)
    int tokens, chunks, outputs;
    int high;   // tiles above one another
    int parts;  // of a tile's inputs, each a block's
    bool gated;
};

// What a block does. shared: Tile::kBytes.
template <typename T, int kOutputs>
__device__ inline void multiply(const Product<T>& p, unsigned char* shared) {
    using Of = Tile<kOutputs>;
    constexpr int kStages = Of::kStages;
    const int thread = threadIdx.x, lane = thread % kWarp;
    const int warp = static_cast<int>(uniform(thread / kWarp));
    const int tile = blockIdx.x / p.parts, part = blockIdx.x % p.parts;  // a cluster's are its tile
    const int above = tile % p.high * kTokens, across = tile / p.high;
    const int first = p.chunks * part / p.parts, last = p.chunks * (part + 1) / p.parts;
    Arrival* const full = reinterpret_cast<Arrival*>(shared + Of::kRing);
    Arrival* const empty = full + kStages;

    if (thread == 0) {
        for (int i = 0; i < kStages; ++i) {
            prepare(full + i);
            prepare(empty + i, kWarps);
        }
    }
    __syncthreads();

    float sums[kOutputs / 8][4];
    if (warp == kWarps) {
        if (lane == 0) {
            const int halves = p.gated ? 2 : 1, units = kOutputs / halves;  // rows of weights
            auto fetch_weights = [&](int chunk, int stage) {
                unsigned char* const to = shared + stage * Of::kStage + kTokens * kRow;
                expect(full + stage, Of::kStage);
                for (int i = 0; i < halves; ++i) {
                    copy_box(to + i * units * kRow, p.weights, chunk * kInputs,
                             across * units + i * p.outputs, full + stage);
                }
            };
            auto fetch_tokens = [&](int chunk, int stage) {
                copy_box(shared + stage * Of::kStage, p.x, chunk * kInputs, above, full + stage);
            };
            // weights may be fetched while the kernel that makes the inputs still runs
            let_next_start();
            const int ahead = min(first + kStages, last);
            for (int chunk = first; chunk < ahead; ++chunk) fetch_weights(chunk, chunk - first);
            wait_for_inputs();
            for (int chunk = first; chunk < ahead; ++chunk) fetch_tokens(chunk, chunk - first);
            int stage = 0, turn = 0;
            for (int chunk = ahead; chunk < last; ++chunk) {
                wait_for(empty + stage, turn);
                fetch_weights(chunk, stage);
                fetch_tokens(chunk, stage);
                if (++stage == kStages) stage = 0, turn ^= 1;
            }
        }
        __syncwarp();
    } else {
#pragma unroll
        for (int i = 0; i < kOutputs / 2; ++i) sums[i / 4][i % 4] = 0.0f;
        const uint32_t tokens = boxes_side(shared), weights = boxes_side(shared + kTokens * kRow);
        int stage = 0, turn = 0, used = 0;
        for (int chunk = first; chunk < last; ++chunk) {
            wait_for(full + stage, turn);
            const uint32_t at = uniform(stage * (Of::kStage / 16));
            begin_products();
#pragma unroll
            for (int step = 0; step < kInputs / 16; ++step) {
                multiply_boxes<T>(sums, tokens + at + step * kBoxStep,
                                  weights + at + step * kBoxStep);
            }
            end_products();
            wait_for_products<1>();
            if (chunk > first) {  // the chunk before is used
                if (lane == 0) release(empty + used);
                if (++used == kStages) used = 0;
            }
            if (++stage == kStages) stage = 0, turn ^= 1;
        }
        wait_for_products<0>();
        settle(sums);
    }

    __syncthreads();  // nobody needs the chunks any more
    float* const lines = reinterpret_cast<float*>(shared);
    if (warp < kWarps) {
        float* const line = lines + (warp * 16 + lane / 4) * Of::kLine + lane % 4 * 2;
#pragma unroll
        for (int i = 0; i < kOutputs / 8; ++i) {
            *reinterpret_cast<float2*>(line + i * 8) = {sums[i][0], sums[i][1]};
            *reinterpret_cast<float2*>(line + 8 * Of::kLine + i * 8) = {sums[i][2], sums[i][3]};
        }
    }
    if (p.parts > 1) {
        cluster_barrier();
    } else {
        __syncthreads();
    }
    auto sum_at = [&](const float* at) {
        if (p.parts == 1) return *reinterpret_cast<const float4*>(at);
        float4 each[kMostParts], sum = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
        for (int i = 0; i < kMostParts; ++i) {
            if (i < p.parts) each[i] = read_from(i, at);
        }
#pragma unroll
        for (int i = 0; i < kMostParts; ++i) {
            if (i < p.parts) sum = plus(sum, each[i]);
        }
        return sum;
    };
    const int tokens = min(p.tokens - above, kTokens), fours = kOutputs / (p.gated ? 8 : 4);
    for (int i = part * kThreads + thread; i < tokens * fours; i += p.parts * kThreads) {
        const int token = i / fours, mine = i % fours * 4, output = across * (fours * 4) + mine;
        if (output >= p.outputs) continue;
        const float* const line = lines + token * Of::kLine;
        float4 sum = biased(sum_at(line + mine), p.bias, output);
        if (p.gated) {
            const float4 up =
                biased(sum_at(line + kOutputs / 2 + mine), p.bias, p.outputs + output);
            sum = gate_of<T>(sum, up);
        }
        write_four(p.out + static_cast<int64_t>(above + token) * p.outputs + output, sum);
    }
    if (p.parts > 1) cluster_barrier();  // the others may still read this block's
}

}  // namespace many
