// Products with weights of four bits on tensor cores: the kernels, without what launches them.
//
// Source: Frantar et al. 2024 (MARLIN) for the idea: weights lie in memory as the registers of a
// warp want them, fetches are under way while others are used, codes become numbers by bit
// operations, and work is shared evenly among the multiprocessors, whatever the shape. Here weights
// are the left side of a tensor core's product, so that 8 tokens waste nothing, and a group's scale
// multiplies its float32 sum: the operands are codes less zeros, small whole numbers, and no weight
// is rounded.
//
// A tile is 128 outputs, 32 a warp, for kTokens tokens. It takes its inputs in chunks of 128. The
// chunks of all tiles, one tile after the other, are dealt out to the blocks in runs of equal
// length; a tile whose chunks fell to several blocks is added up by the one that comes last, in the
// order of the inputs, so that results repeat. Weights go from memory to the second cache some
// chunks ahead, and from there to registers one chunk ahead; inputs, which warps share, go through
// shared memory.
//
// What the hardware does is tensor_core.cuh's; tests put an emulation in its place.
#pragma once
#include "tensor_core.cuh"

namespace marlin {

constexpr int kThreads = 128;
constexpr int kStrip = 32;                           // outputs of a warp
constexpr int kOutputs = kThreads / kWarp * kStrip;  // of a tile
constexpr int kInputs = 128;                         // of a chunk
constexpr int kSteps = 4;                            // of a chunk: 32 inputs each
constexpr int kUnit = kSteps * kWarp;                // 16-byte pieces of a strip's chunk
constexpr int kPieces = kInputs * 2 / 16;            // 16-byte pieces of a token's inputs

// Inputs of some chunks in shared memory: piece p of token i is at place p ^ 4 * (i % 2) of its
// row.
template <int kTokens>
struct Shared {
    static constexpr int kStages = 4;
    static constexpr int kStage = kTokens * kPieces;  // 16-byte pieces
    static constexpr int kBytes = kStages * kStage * 16 + 16;
};

// Blocks that a multiprocessor is meant to hold, with registers left for a kernel that follows.
constexpr int blocks_for(int tokens) {
    return tokens <= 8 ? 4 : tokens <= 16 ? 3 : 2;
}

template <typename T>
struct Product {
    const T* x;            // (tokens, inputs), rows `stride` apart
    const uint4* weights;  // as kernel/marlin.py arranges them
    const uint4* groups;   // likewise: the bits of a float16 scale, and above them a zero
    const T* bias;         // (outputs,) or nullptr
    T* out;                // (tokens, outputs)
    float* parts;          // (blocks, 2, kTokens * kOutputs): sums of tiles that are not done
    int* arrived;          // of each tile, how many of its parts are there: 0 before and after
    int64_t stride;
    int tokens, inputs, outputs;
    int group;       // inputs that share a zero and a scale
    int each, more;  // items of a block; the first `more` blocks have another one
    int ahead;       // chunks that weights are in the second cache before they are used

    __device__ int first_item(int block) const { return block * each + min(block, more); }
    __device__ int block_of(int item) const {
        const int long_ones = more * (each + 1);
        return item < long_ones ? item / (each + 1) : more + (item - long_ones) / each;
    }
};

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
__device__ inline void decode(uint32_t (&out)[4], uint32_t word, const uint32_t* zeros) {
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

// A warp's way through the items of its block: a chunk of its strip each.
struct Cursor {
    const uint4 *weights, *groups;
    int item, chunk, strip;
    int chunks, token_tiles, strips;

    template <typename T>
    __device__ Cursor(const Product<T>& p, int first, int token_tiles_)
        : item(first),
          chunk(first % (p.inputs / kInputs)),
          chunks(p.inputs / kInputs),
          token_tiles(token_tiles_),
          strips(p.outputs / kStrip) {
        weights = p.weights;
        groups = p.groups;
        find();
    }

    __device__ void find() {
        const int warp = threadIdx.x / kWarp;
        strip = item / chunks / token_tiles * (kOutputs / kStrip) + warp;
    }
    // Whether there is such a strip: the last tile may have fewer.
    __device__ bool there() const { return strip < strips; }
    __device__ const uint4* unit() const {
        return weights + (static_cast<int64_t>(strip) * chunks + chunk) * kUnit;
    }
    __device__ void advance() {
        ++item;
        if (++chunk < chunks) return;
        chunk = 0;
        find();
    }
};

// What a block does. shared: Shared<kTokens>::kBytes. kScaled: inputs that share a zero and a
// scale, 32 or 128; a larger group is treated as several.
template <typename T, int kTokens, int kScaled>
__device__ inline void multiply(const Product<T>& p, uint4* shared) {
    using Room = Shared<kTokens>;
    constexpr int kTiles = kTokens / 8;  // of a product's right side
    constexpr int kSlots = kInputs / kScaled;
    constexpr int kStages = Room::kStages;
    volatile int* const is_last = reinterpret_cast<int*>(shared + kStages * Room::kStage);

    const int thread = threadIdx.x, lane = thread % kWarp, warp = thread / kWarp;
    const int g = lane / 4, t = lane % 4;
    const int chunks = p.inputs / kInputs, token_tiles = (p.tokens + kTokens - 1) / kTokens;
    const int block = blockIdx.x, first = p.first_item(block), last = p.first_item(block + 1);

    uint4 ring[kSteps], groups[kSlots];
    auto fetch_group = [&](const Cursor& of, int slot) {
        const int row = (of.chunk * kInputs + slot * kScaled) / p.group;
        groups[slot] =
            load_once(p.groups + (static_cast<int64_t>(row) * of.strips + of.strip) * 8 + g);
    };
    auto warm = [&](const Cursor& of) {
        constexpr int kPerLine = 8;
        if (of.there() && lane < kUnit / kPerLine) fetch_ahead(of.unit() + lane * kPerLine);
    };

    // weights may be fetched while the kernel that makes the inputs still runs
    Cursor next(p, first, token_tiles);
    if (next.there()) {
#pragma unroll
        for (int step = 0; step < kSteps; ++step) {
            ring[step] = load_once(next.unit() + step * kWarp + lane);
        }
#pragma unroll
        for (int slot = 0; slot < kSlots; ++slot) fetch_group(next, slot);
    }
    Cursor at = next;
    next.advance();
    Cursor far = next;
    for (int i = 0; i < p.ahead && far.item < last; ++i) {
        warm(far);
        far.advance();
    }
    wait_for_inputs();

    int entering = first, entering_chunk = at.chunk;  // the item whose inputs are fetched next
    auto fetch_inputs = [&] {
        uint4* const stage = shared + (entering - first) % kStages * Room::kStage;
        const int token_tile = entering / chunks % token_tiles;
#pragma unroll
        for (int i = thread; i < kTokens * kPieces; i += kThreads) {
            const int token = i / kPieces, piece = i % kPieces;
            const int row = token_tile * kTokens + token;
            const bool there = row < p.tokens;
            const T* from =
                p.x + (there ? row * p.stride : 0) + entering_chunk * kInputs + piece * 8;
            copy_async(stage + token * kPieces + (piece ^ token % 2 * 4), from, there);
        }
        ++entering;
        if (++entering_chunk == chunks) entering_chunk = 0;
    };
#pragma unroll
    for (int i = 0; i < kStages - 1; ++i) {
        if (entering < last) fetch_inputs();
        end_copy_group();
    }

    float total[2][kTiles][4] = {};
    for (int i = 0; at.item < last; ++i) {
        wait_for_copies<kStages - 2>();
        __syncthreads();  // everybody's copies of this chunk are there, and the last chunk is used
        if (entering < last) fetch_inputs();
        end_copy_group();  // an empty one counts, too
        if (far.item < last) {
            warm(far);
            far.advance();
        }
        if (next.item + 1 >= last) let_next_start();  // what is left is under way

        if (at.there()) {
            const bool more = next.item < last && next.there();
            const uint4* const following = next.unit() + lane;
            const uint4* const stage = shared + i % kStages * Room::kStage;
            float scales[4];
            uint32_t zeros[4];
            float part[2][kTiles][4];  // of one group
#pragma unroll
            for (int step = 0; step < kSteps; ++step) {
                if (step % (kScaled / 32) == 0) {
                    const int slot = step / (kScaled / 32);
                    const uint32_t of[4] = {groups[slot].x, groups[slot].y, groups[slot].z,
                                            groups[slot].w};
#pragma unroll
                    for (int r = 0; r < 4; ++r) {
                        scales[r] = scale_of(of[r]);
                        zeros[r] = zero_of<T>(of[r]);
                    }
                    if (more) fetch_group(next, slot);
#pragma unroll
                    for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
                        for (int r = 0; r < 4; ++r) part[0][tile][r] = part[1][tile][r] = 0.0f;
                    }
                }
                uint32_t left[2][2][4];
                const uint4 packed = ring[step];
                if (more) ring[step] = load_once(following + step * kWarp);
                decode<T>(left[0][0], packed.x, zeros);
                decode<T>(left[0][1], packed.y, zeros);
                decode<T>(left[1][0], packed.z, zeros + 2);
                decode<T>(left[1][1], packed.w, zeros + 2);
#pragma unroll
                for (int tile = 0; tile < kTiles; ++tile) {
                    const int token = tile * 8 + g, piece = step * 4 + t;
                    const uint4 of = stage[token * kPieces + (piece ^ token % 2 * 4)];
                    const uint32_t right[4] = {of.x, of.y, of.z, of.w};
#pragma unroll
                    for (int m = 0; m < 2; ++m) {
                        multiply_add<T>(part[m][tile], left[m][0], right);
                        multiply_add<T>(part[m][tile], left[m][1], right + 2);
                    }
                }
                if ((step + 1) % (kScaled / 32) == 0) {
#pragma unroll
                    for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
                        for (int r = 0; r < 8; ++r) {
                            total[r / 4][tile][r % 4] += part[r / 4][tile][r % 4] * scales[r / 2];
                        }
                    }
                }
            }
        } else if (next.item < last && next.there()) {
#pragma unroll
            for (int step = 0; step < kSteps; ++step) {
                ring[step] = load_once(next.unit() + step * kWarp + lane);
            }
#pragma unroll
            for (int slot = 0; slot < kSlots; ++slot) fetch_group(next, slot);
        }

        if (at.chunk == chunks - 1 || at.item == last - 1) {
            const int number = at.item / chunks, token_tile = number % token_tiles;
            const int b0 = p.block_of(number * chunks);
            const int b1 = p.block_of((number + 1) * chunks - 1);
            auto each_sum = [&](auto use) {  // a sum's place among its thread's, its token and row
#pragma unroll
                for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
                    for (int r = 0; r < 8; ++r) {
                        const int token = token_tile * kTokens + tile * 8 + 2 * t + r % 2;
                        if (at.there() && token < p.tokens) {
                            use(total[r / 4][tile][r % 4], tile * 8 + r, token, r / 2 * 8 + g);
                        }
                    }
                }
            };
            // a block has two tiles that are not its own at most: its first and its last; those
            // that follow a tile's first block begin with it
            auto part_of = [&](int b) {
                const bool second = b == b0 && p.first_item(b) < number * chunks;
                return p.parts + (static_cast<int64_t>(b) * 2 + second) * (kTokens * kOutputs) +
                       thread;
            };
            bool finish = true;
            if (b0 != b1) {
                float* const mine = part_of(block);
                each_sum([&](float& sum, int place, int, int) { mine[place * kThreads] = sum; });
                __threadfence();
                __syncthreads();
                if (thread == 0) *is_last = atomicAdd(p.arrived + number, 1) == b1 - b0;
                __syncthreads();
                finish = *is_last;
                if (finish) {
                    __threadfence();
                    if (thread == 0) p.arrived[number] = 0;
                    each_sum([](float& sum, int, int, int) { sum = 0.0f; });
#pragma unroll(kTiles == 1 ? 4 : 1)
                    for (int b = b0; b <= b1; ++b) {
                        const float* const part = part_of(b);
                        each_sum([&](float& sum, int place, int, int) {
                            sum += __ldcg(part + place * kThreads);
                        });
                    }
                }
            }
            if (finish) {
                each_sum([&](float& sum, int, int token, int row) {
                    const int output = at.strip * kStrip + row;
                    const float bias = p.bias == nullptr ? 0.0f : to_float(p.bias[output]);
                    p.out[static_cast<int64_t>(token) * p.outputs + output] =
                        from_float<T>(sum + bias);
                });
            }
#pragma unroll
            for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
                for (int r = 0; r < 4; ++r) total[0][tile][r] = total[1][tile][r] = 0.0f;
            }
        }
        at.advance();
        next.advance();
    }
}

// The weights as numbers, each rounded once: out (outputs, inputs). A warp makes 32 outputs x 128
// inputs.
template <typename T>
__device__ inline void unpack(const uint4* weights, const uint4* groups, T* out, int inputs,
                              int outputs, int group) {
    const int lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
    const int64_t unit =
        static_cast<int64_t>(blockIdx.x) * (kThreads / kWarp) + threadIdx.x / kWarp;
    const int chunks = inputs / kInputs, strips = outputs / kStrip;
    if (unit >= static_cast<int64_t>(chunks) * strips) return;
    const int chunk = static_cast<int>(unit % chunks), strip = static_cast<int>(unit / chunks);
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
        const uint4 packed = load_once(weights + unit * kUnit + step * kWarp + lane);
        const uint32_t words[4] = {packed.x, packed.y, packed.z, packed.w};
        const int input = chunk * kInputs + step * 32;
        const uint4 four =
            load_once(groups + (static_cast<int64_t>(input / group) * strips + strip) * 8 + g);
        const uint32_t of[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
        for (int r = 0; r < 4; ++r) {
            const float zero = static_cast<float>(of[r] >> 16), scale = scale_of(of[r]);
            uint32_t eight[4];
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const uint32_t codes = words[r / 2 * 2 + j / 2] >> (8 * (j % 2) + 4 * (r % 2));
                eight[j] = pair<T>((static_cast<float>(codes & 15u) - zero) * scale,
                                   (static_cast<float>(codes >> 16 & 15u) - zero) * scale);
            }
            T* const row = out + static_cast<int64_t>(strip * kStrip + r * 8 + g) * inputs;
            *reinterpret_cast<uint4*>(row + input + t * 8) = {eight[0], eight[1], eight[2],
                                                              eight[3]};
        }
    }
}

}  // namespace marlin
