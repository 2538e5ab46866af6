// Products with weights of four bits on tensor cores: the kernels, without what launches them.
//
// Source: Frantar et al. 2024 (MARLIN) for the idea: weights lie in memory as the registers of a
// warp want them, several fetches are under way while one is used, codes become numbers by bit
// operations, and work is shared evenly among the multiprocessors, whatever the shape. Here weights
// are the left side of a tensor core's product, so that 8 tokens waste nothing, and a group's scale
// multiplies its float32 sum: the operands are codes less zeros, small whole numbers, and no weight
// is rounded.
//
// A tile is 64 outputs for kTokens tokens. It takes its inputs in chunks of 128. The chunks of all
// tiles, one tile after the other, are dealt out to the blocks in runs of equal length; a tile
// whose chunks fell to several blocks is added up by the one that comes last, in the order of the
// inputs, so that results repeat.
//
// What the hardware does is tensor_core.cuh's; tests put an emulation in its place.
#pragma once
#include "tensor_core.cuh"

namespace marlin {

constexpr int kThreads = 256;
constexpr int kOutputs = 64;  // of a tile
constexpr int kInputs = 128;  // of a chunk
constexpr int kAcross = 4;    // warps beside each other, of 16 outputs each
constexpr int kHalves = 2;    // warps that share a chunk's inputs
constexpr int kPairs = 2;     // of products, of 16 inputs each, that a warp does with a chunk
constexpr int kPieces = kInputs * 2 / 16;  // 16-byte pieces of a token's inputs
constexpr int kStride = kOutputs + 4;      // of sums: no two lanes write to one bank
constexpr int kRoom = 99 * 1024;  // bytes of shared memory that every GPU of 8.x and later has
constexpr int kMostStages = 8;

// A chunk in shared memory. kScaled: inputs that share a zero and a scale, 32 or 64; a larger group
// is treated as several.
template <int kTokens, int kScaled>
struct Stage {
    static constexpr int kGroups = kInputs / kScaled;
    uint4 weights[kThreads];          // 16 outputs x 64 inputs a warp, one word for 16 x 16 a lane
    uint4 inputs[kTokens * kPieces];  // piece p of token i is at place p ^ (i % 8) of its row
    uint32_t groups[kGroups][kOutputs];  // a scale, and above it a zero
};

template <int kTokens, int kScaled>
struct Shared {
    using S = Stage<kTokens, kScaled>;
    static constexpr int kSums = kTokens * kStride * 4;
    static constexpr int kFit = (kRoom - kSums - 16) / static_cast<int>(sizeof(S));
    static constexpr int kStages = kFit < kMostStages ? kFit : kMostStages;
    static_assert(kStages >= 3, "no fetch would be under way");
    static constexpr int kBytes = kStages * static_cast<int>(sizeof(S)) + kSums + 16;
};

template <typename T>
struct Product {
    const T* x;            // (tokens, inputs), rows `stride` apart
    const uint4* weights;  // as kernel/marlin.py arranges them
    const uint32_t*
        groups;     // (groups, outputs): the bits of a float16 scale, and above them a zero
    const T* bias;  // (outputs,) or nullptr
    T* out;         // (tokens, outputs)
    float* parts;   // (blocks, 2, kTokens, 64): sums of tiles that are not done
    int* arrived;   // of each tile, how many of its parts are there: 0 before and after
    int64_t stride;
    int tokens, inputs, outputs;
    int group;  // inputs that share a zero and a scale
};

// Where in the work a block is.
struct Place {
    int chunk, token_tile, output_tile;

    __device__ Place(int item, int chunks, int token_tiles)
        : chunk(item % chunks),
          token_tile(item / chunks % token_tiles),
          output_tile(item / chunks / token_tiles) {}

    __device__ void advance(int chunks, int token_tiles) {
        if (++chunk < chunks) return;
        chunk = 0;
        if (++token_tile < token_tiles) return;
        token_tile = 0;
        ++output_tile;
    }
};

// The first of `work` items that fall to a block, and the block that an item falls to.
__device__ inline int first_item(int block, int blocks, int work) {
    return static_cast<int>(static_cast<int64_t>(block) * work / blocks);
}
__device__ inline int block_of(int item, int blocks, int work) {
    return static_cast<int>(((static_cast<int64_t>(item) + 1) * blocks - 1) / work);
}

// Numbers whose lowest bits are a code: 1024 + code in float16, 128 + code in bfloat16.
template <typename T>
struct Magic;
template <>
struct Magic<__half> {
    static constexpr uint32_t kBoth = 0x64006400;
};
template <>
struct Magic<__nv_bfloat16> {
    static constexpr uint32_t kBoth = 0x43004300;
};

// The eight codes of a word, less their zeros, as the left side of a product. zeros: of row g, g
// + 8.
template <typename T>
__device__ inline void decode(uint32_t (&out)[4], uint32_t word, const uint32_t (&zeros)[2]) {
#pragma unroll
    for (int r = 0; r < 4; ++r) {
        out[r] = subtract<T>(((word >> (4 * r)) & 0x000f000fu) | Magic<T>::kBoth, zeros[r % 2]);
    }
}

template <typename T>
__device__ inline uint32_t zero_of(uint32_t group) {
    const uint32_t zero = group >> 16;
    return zero | zero << 16 | Magic<T>::kBoth;
}

__device__ inline float scale_of(uint32_t group) {
    return half_bits(group & 0xffffu);
}

// What a block does. shared: Shared<kTokens, kScaled>::kBytes.
template <typename T, int kTokens, int kScaled>
__device__ inline void multiply(const Product<T>& p, uint4* shared) {
    using Room = Shared<kTokens, kScaled>;
    using S = typename Room::S;
    constexpr int kStages = Room::kStages;
    constexpr int kTiles = kTokens / 8;  // of a product's right side
    S* const stages = reinterpret_cast<S*>(shared);
    float* const sums = reinterpret_cast<float*>(stages + kStages);
    volatile int* const is_last = reinterpret_cast<int*>(sums + kTokens * kStride);

    const int thread = threadIdx.x, lane = thread % kWarp, warp = thread / kWarp;
    const int across = warp % kAcross, half = warp / kAcross;
    const int row = across * 16 + lane / 4;  // of the tile's outputs: it has this one and row + 8
    const int chunks = p.inputs / kInputs, token_tiles = (p.tokens + kTokens - 1) / kTokens;
    const int work = chunks * token_tiles * (p.outputs / kOutputs);
    const int blocks = gridDim.x, block = blockIdx.x;
    const int first = first_item(block, blocks, work);
    const int count = first_item(block + 1, blocks, work) - first;

    Place at(first, chunks, token_tiles), ahead = at;
    auto fetch_weights = [&](S& stage, const Place& of) {
        const int64_t tile = static_cast<int64_t>(of.output_tile) * chunks + of.chunk;
        copy_async(&stage.weights[thread], p.weights + tile * kThreads + thread, true);
        constexpr int kPer = kOutputs * 4 / 16;  // pieces of a group
        if (thread < S::kGroups * kPer) {
            const int slot = thread / kPer, piece = thread % kPer;
            const int group = (of.chunk * kInputs + slot * kScaled) / p.group;
            const uint32_t* from = p.groups + static_cast<int64_t>(group) * p.outputs +
                                   of.output_tile * kOutputs + piece * 4;
            copy_async(&stage.groups[slot][piece * 4], from, true);
        }
    };
    auto fetch_inputs = [&](S& stage, const Place& of) {
#pragma unroll
        for (int i = thread; i < kTokens * kPieces; i += kThreads) {
            const int token = i / kPieces, piece = i % kPieces;
            const int row_of_x = of.token_tile * kTokens + token;
            const bool there = row_of_x < p.tokens;
            const T* from =
                p.x + (there ? row_of_x * p.stride : 0) + of.chunk * kInputs + piece * 8;
            copy_async(&stage.inputs[token * kPieces + (piece ^ (token % 8))], from, there);
        }
    };

    // weights may be fetched while the kernel that makes the inputs still runs
#pragma unroll
    for (int i = 0; i < kStages - 1; ++i) {
        if (i >= count) break;
        fetch_weights(stages[i], ahead);
        ahead.advance(chunks, token_tiles);
    }
    wait_for_inputs();
    ahead = at;
#pragma unroll
    for (int i = 0; i < kStages - 1; ++i) {
        if (i < count) {
            fetch_inputs(stages[i], ahead);
            ahead.advance(chunks, token_tiles);
        }
        end_copy_group();
    }

    float total[kTiles][4] = {};
    for (int i = 0; i < count; ++i) {
        wait_for_copies<kStages - 2>();
        __syncthreads();  // everybody's copies of this chunk are there, and the last chunk is used
        if (i + kStages - 1 < count) {
            S& next = stages[(i + kStages - 1) % kStages];
            fetch_weights(next, ahead);
            fetch_inputs(next, ahead);
            ahead.advance(chunks, token_tiles);
        }
        end_copy_group();                                // an empty one counts, too
        if (i + kStages - 1 == count) let_next_start();  // all is fetched

        const S& stage = stages[i % kStages];
        const uint4 packed = stage.weights[thread];
        const uint32_t words[2 * kPairs] = {packed.x, packed.y, packed.z, packed.w};
        float scales[2];
        uint32_t zeros[2];
        float part[kTiles][4];  // of one group
#pragma unroll
        for (int pair = 0; pair < kPairs; ++pair) {
            if (pair % (kScaled / 32) == 0) {
                const int slot = (half * 64 + pair * 32) / kScaled;
#pragma unroll
                for (int r = 0; r < 2; ++r) {
                    const uint32_t group = stage.groups[slot][row + 8 * r];
                    scales[r] = scale_of(group);
                    zeros[r] = zero_of<T>(group);
                }
#pragma unroll
                for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
                    for (int r = 0; r < 4; ++r) part[tile][r] = 0.0f;
                }
            }
            uint32_t left[2][4];
            decode<T>(left[0], words[2 * pair], zeros);
            decode<T>(left[1], words[2 * pair + 1], zeros);
#pragma unroll
            for (int tile = 0; tile < kTiles; ++tile) {
                // 8 tokens x 32 inputs: lane i names the place of token i % 8, inputs 8 * (i / 8)
                // on
                const int token = tile * 8 + lane % 8;
                const int piece = half * 8 + pair * 4 + lane / 8;
                uint32_t right[4];
                load_blocks(right, &stage.inputs[token * kPieces + (piece ^ (token % 8))]);
                multiply_add<T>(part[tile], left[0], right);
                multiply_add<T>(part[tile], left[1], right + 2);
            }
            if ((pair + 1) % (kScaled / 32) == 0) {
#pragma unroll
                for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
                    for (int r = 0; r < 4; ++r) total[tile][r] += part[tile][r] * scales[r / 2];
                }
            }
        }

        const bool ends_tile = at.chunk == chunks - 1;
        if (ends_tile || i == count - 1) {
            // the halves' sums meet in shared memory
#pragma unroll
            for (int turn = kHalves - 1; turn >= 0; --turn) {
                if (half == turn) {
#pragma unroll
                    for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
                        for (int r = 0; r < 4; ++r) {
                            const int token = tile * 8 + lane % 4 * 2 + r % 2;
                            float& sum = sums[token * kStride + row + r / 2 * 8];
                            sum = turn == kHalves - 1 ? total[tile][r] : sum + total[tile][r];
                            total[tile][r] = 0.0f;
                        }
                    }
                }
                __syncthreads();
            }
            const int tile_number = at.output_tile * token_tiles + at.token_tile;
            const int b0 = block_of(tile_number * chunks, blocks, work);
            const int b1 = block_of((tile_number + 1) * chunks - 1, blocks, work);
            constexpr int kSize = kTokens * kOutputs;
            // a block has two tiles that are not its own at most: its first and its last
            auto part_of = [&](int b) {
                const int begun = first_item(b, blocks, work) / chunks;
                return p.parts + (static_cast<int64_t>(b) * 2 + (begun != tile_number)) * kSize;
            };
            bool finish = true;
            if (b0 != b1) {
                float* const mine = part_of(block);
                for (int e = thread; e < kSize; e += kThreads) {
                    mine[e] = sums[e / kOutputs * kStride + e % kOutputs];
                }
                __threadfence();
                __syncthreads();
                if (thread == 0) *is_last = atomicAdd(p.arrived + tile_number, 1) == b1 - b0;
                __syncthreads();
                finish = *is_last;
                if (finish) {
                    __threadfence();
                    if (thread == 0) p.arrived[tile_number] = 0;
                    for (int e = thread; e < kSize; e += kThreads) {
                        float sum = 0.0f;
                        for (int b = b0; b <= b1; ++b) sum += __ldcg(part_of(b) + e);
                        sums[e / kOutputs * kStride + e % kOutputs] = sum;
                    }
                    __syncthreads();
                }
            }
            if (finish) {
                const int output = at.output_tile * kOutputs;
                for (int e = thread; e < kSize / 2; e += kThreads) {
                    const int token = at.token_tile * kTokens + e / (kOutputs / 2);
                    if (token >= p.tokens) break;
                    const int column = e % (kOutputs / 2) * 2;
                    const float* sum = sums + e / (kOutputs / 2) * kStride + column;
                    float low = sum[0], high = sum[1];
                    if (p.bias != nullptr) {
                        low += to_float(p.bias[output + column]);
                        high += to_float(p.bias[output + column + 1]);
                    }
                    T* to = p.out + static_cast<int64_t>(token) * p.outputs + output + column;
                    *reinterpret_cast<uint32_t*>(to) = pair<T>(low, high);
                }
            }
            __syncthreads();  // before the next tile's sums
        }
        at.advance(chunks, token_tiles);
    }
}

// The weights as numbers, each rounded once: out (outputs, inputs). A warp makes 16 outputs x 64
// inputs.
template <typename T>
__device__ inline void unpack(const uint4* weights, const uint32_t* groups, T* out, int inputs,
                              int outputs, int group) {
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    const int chunks = inputs / kInputs, chunk = blockIdx.x % chunks, tile = blockIdx.x / chunks;
    const int row = tile * kOutputs + warp % kAcross * 16 + lane / 4;
    const int column = chunk * kInputs + warp / kAcross * 64 + lane % 4 * 2;
    const uint4 packed = weights[static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x];
    const uint32_t words[4] = {packed.x, packed.y, packed.z, packed.w};
#pragma unroll
    for (int step = 0; step < 4; ++step) {
#pragma unroll
        for (int r = 0; r < 4; ++r) {
            const int output = row + r % 2 * 8, input = column + step * 16 + r / 2 * 8;
            const uint32_t of = groups[static_cast<int64_t>(input / group) * outputs + output];
            const float zero = static_cast<float>(of >> 16), scale = scale_of(of);
            const uint32_t codes = words[step] >> (4 * r);
            const float low = (static_cast<float>(codes & 15u) - zero) * scale;
            const float high = (static_cast<float>(codes >> 16 & 15u) - zero) * scale;
            T* to = out + static_cast<int64_t>(output) * inputs + input;
            *reinterpret_cast<uint32_t*>(to) = pair<T>(low, high);
        }
    }
}

}  // namespace marlin
