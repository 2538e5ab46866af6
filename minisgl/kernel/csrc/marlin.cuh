// Products with weights of four bits on tensor cores: the kernels, without what launches them.
//
// Source: Frantar et al. 2024 (MARLIN) for the idea: weights lie in memory as the registers of a
// warp want them, fetches are under way while others are used, codes become numbers by bit
// operations, and work is shared evenly among the multiprocessors, whatever the shape. Here weights
// are the left side of a tensor core's product, so that 8 tokens waste nothing, and a group's scale
// multiplies its float32 sum: the operands are codes less zeros, small whole numbers, and no weight
// is rounded.
//
// A tile is kTokens tokens and 32 outputs for each of kAcross warps. It takes its inputs in spans
// of kSplit chunks of 128, one chunk a warp: few tokens spread a tile's inputs over the warps of a
// block, many share them among its warps. The spans of all tiles, one tile after the other, are
// dealt out to the blocks in runs of equal length; a tile whose spans fell to several blocks is
// added up by the one that comes last, in the order of the inputs, so that results repeat. Weights
// go from memory to the second cache some spans ahead, and from there to registers one span ahead;
// inputs, which warps share, go through shared memory.
//
// What the hardware does is tensor_core.cuh's; tests put an emulation in its place.
#pragma once
#include "tensor_core.cuh"

namespace marlin {

constexpr int kStrip = 32;                 // outputs of a warp
constexpr int kInputs = 128;               // of a chunk
constexpr int kSteps = 4;                  // of a chunk: 32 inputs each
constexpr int kUnit = kSteps * kWarp;      // 16-byte pieces of a strip's chunk
constexpr int kPieces = kInputs * 2 / 16;  // 16-byte pieces of a token's inputs
constexpr int kUnpackThreads = 128;

// How a block works on a tile.
template <int kTokens>
struct Tile {
    static constexpr int kAcross = kTokens <= 8 ? 1 : kTokens <= 16 ? 2 : 4;  // strips
    static constexpr int kSplit = kTokens <= 8 ? 8 : kTokens <= 16 ? 4 : 1;   // chunks at a time
    static constexpr int kBlocks = kTokens == 32 ? 3 : 2;                     // on a multiprocessor
    static constexpr int kThreads = kAcross * kSplit * kWarp;
    static constexpr int kOutputs = kAcross * kStrip;
    static constexpr int kSums = kTokens * kOutputs;
    // Inputs of some spans in shared memory: piece p of token i is at p ^ 4 * (i % 2) of its row.
    static constexpr int kStages = 4;
    static constexpr int kRow = kSplit * kPieces;  // 16-byte pieces
    static constexpr int kStage = kTokens * kRow;
    // ... and behind them the sums of all warps but the first of each strip.
    static constexpr int kBytes = kStages * kStage * 16 + (kSplit - 1) * kSums * 4 + 16;
};

template <typename T>
struct Product {
    const T* x;            // (tokens, inputs), rows `stride` apart
    const uint4* weights;  // as kernel/marlin.py arranges them
    const uint4* groups;   // likewise: the bits of a float16 scale, and above them a zero
    const T* bias;         // (outputs,) or nullptr
    T* out;                // (tokens, outputs)
    float* parts;          // (blocks, 2, kSums): of tiles that are not done
    int* arrived;          // of each tile, how many of its parts are there: 0 before and after
    int64_t stride;
    int tokens, inputs, outputs;
    int shared;      // runs of kScaled inputs that share a zero and a scale
    int grain;       // items that stay together
    int each, more;  // grains of a block; the first `more` blocks have another one
    int ahead;       // spans that are brought to the second cache before inputs are there

    __device__ int first_item(int block) const { return (block * each + min(block, more)) * grain; }
    __device__ int block_of(int item) const {
        const int at = item / grain, long_ones = more * (each + 1);
        return at < long_ones ? at / (each + 1) : more + (at - long_ones) / each;
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
        out[r] = subtract<T>(two_codes(word >> (4 * r), Magic<T>::kBoth), zeros[r % 2]);
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
template <int kAcross, int kSplit>
struct Cursor {
    const uint4* unit;  // this lane's first piece of the chunk
    int item, span, token_tile;
    int chunk, strip;  // of this warp; there need not be such ones
    int chunks, strips, spans, token_tiles;

    template <typename T>
    __device__ Cursor(const Product<T>& p, int first, int token_tiles_)
        : item(first),
          chunks(p.inputs / kInputs),
          strips(p.outputs / kStrip),
          spans((chunks + kSplit - 1) / kSplit),
          token_tiles(token_tiles_) {
        const int warp = threadIdx.x / kWarp;
        span = first % spans;
        token_tile = first / spans % token_tiles;
        strip = first / spans / token_tiles * kAcross + warp % kAcross;
        chunk = span * kSplit + warp / kAcross;
        unit = p.weights + (static_cast<int64_t>(strip) * chunks + chunk) * kUnit +
               threadIdx.x % kWarp;
    }

    __device__ bool there() const { return strip < strips && (kSplit == 1 || chunk < chunks); }

    __device__ void advance() {
        ++item;
        unit += kSplit * kUnit;
        chunk += kSplit;
        if (++span < spans) return;
        int moves = -spans * kSplit;  // back to the beginning of the strip
        chunk += moves;
        span = 0;
        if (++token_tile == token_tiles) {
            token_tile = 0;
            strip += kAcross;
            moves += kAcross * chunks;
        }
        unit += static_cast<int64_t>(moves) * kUnit;
    }
};

// What a block does. shared: Tile<kTokens>::kBytes. kScaled: inputs that share a zero and a scale,
// 32 or 128; a larger group is treated as several.
template <typename T, int kTokens, int kScaled>
__device__ inline void multiply(const Product<T>& p, uint4* shared) {
    using Of = Tile<kTokens>;
    constexpr int kAcross = Of::kAcross, kSplit = Of::kSplit;
    constexpr int kTiles = kTokens / 8;                 // of a product's right side
    constexpr int kTogether = kTiles < 4 ? kTiles : 4;  // tiles whose products take turns
    constexpr int kSlots = kInputs / kScaled;
    constexpr int kPerLine = 8;  // 16-byte pieces that come from memory together
    constexpr int kStages = Of::kStages, kThreads = Of::kThreads;
    constexpr int kStrips = kAcross * kWarp;  // threads that have a tile's sums in the end
    float* const sums = reinterpret_cast<float*>(shared + kStages * Of::kStage);
    volatile int* const is_last = reinterpret_cast<int*>(sums + (kSplit - 1) * Of::kSums);

    const unsigned thread = threadIdx.x, lane = thread % kWarp, g = lane / 4, t = lane % 4;
    const unsigned part = thread / kStrips, mine = thread % kStrips;
    const int token_tiles = (p.tokens + kTokens - 1) / kTokens;
    const int block = blockIdx.x, first = p.first_item(block), last = p.first_item(block + 1);

    uint4 ring[kSteps], groups[kSlots];
    using Way = Cursor<kAcross, kSplit>;
    auto fetch_group = [&](const Way& of, int slot) {
        int row = of.chunk * kSlots + slot;
        if (p.shared > 1) row /= p.shared;
        const int64_t strip = static_cast<int64_t>(row) * of.strips + of.strip;
        groups[slot] = load_once(p.groups + strip * 8 + g);
    };
    auto fetch_unit = [&](const Way& of) {
#pragma unroll
        for (int step = 0; step < kSteps; ++step) ring[step] = load_once(of.unit + step * kWarp);
#pragma unroll
        for (int slot = 0; slot < kSlots; ++slot) fetch_group(of, slot);
    };

    // weights may be fetched while the kernel that makes the inputs still runs
    Way next(p, first, token_tiles);
    if (next.there()) fetch_unit(next);
    Way at = next, entering = next;  // what is multiplied, whose inputs are fetched next
    next.advance();
    Way far = next;
#pragma unroll 1
    for (int i = 0; i < p.ahead && far.item < last; ++i) {
        if (far.there() && lane < kUnit / kPerLine) {
            fetch_ahead(far.unit + lane * (kPerLine - 1));
        }
        far.advance();
    }
    wait_for_inputs();

    // this thread's part in the copies of inputs: some rows, one piece of each
    constexpr int kRows = kThreads / Of::kRow;
    const int my_row = thread / Of::kRow, my_piece = thread % Of::kRow;
    const int my_place = my_row * Of::kRow + (my_piece ^ my_row % 2 * 4);
    int my_input = entering.span * kSplit * kInputs + my_piece * 8;
    const T* from = p.x + (entering.token_tile * kTokens + my_row) * p.stride + my_input;
    unsigned turn = 0;  // of the stages
    auto fetch_inputs = [&] {
        uint4* const stage = shared + turn++ % kStages * Of::kStage + my_place;
        const int above = entering.token_tile * kTokens + my_row;
#pragma unroll
        for (int i = 0; i < kTokens / kRows; ++i) {
            const bool there = above + i * kRows < p.tokens && (kSplit == 1 || my_input < p.inputs);
            copy_async(stage + i * kThreads, there ? from + i * kRows * p.stride : p.x, there);
        }
        ++entering.item;
        from += kSplit * kInputs;
        my_input += kSplit * kInputs;
        if (++entering.span < entering.spans) return;
        const int back = entering.spans * kSplit * kInputs;
        entering.span = 0;
        my_input -= back;
        from -= back;
        if (++entering.token_tile < token_tiles) {
            from += kTokens * p.stride;
        } else {
            from -= (token_tiles - 1) * kTokens * p.stride;
            entering.token_tile = 0;
        }
    };
#pragma unroll 1
    for (int i = 0; i < kStages - 1; ++i) {
        if (entering.item < last) fetch_inputs();
        end_copy_group();
    }

    float total[2][kTiles][4] = {};
#pragma unroll 1
    for (unsigned i = 0; at.item < last; ++i) {
        wait_for_copies<kStages - 2>();
        __syncthreads();  // everybody's copies of this chunk are there, and the last chunk is used
        if (entering.item < last) fetch_inputs();
        end_copy_group();                             // an empty one counts, too
        if (next.item + 1 >= last) let_next_start();  // what is left is under way

        if (at.there()) {
            const bool more = next.item < last && next.there();
            const uint4* const stage =
                shared + i % kStages * Of::kStage + g * Of::kRow + part * kPieces + t;
            float scales[4];
            uint32_t zeros[4];
            float sum[2][kTiles][4];  // of one group
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
                        for (int r = 0; r < 4; ++r) sum[0][tile][r] = sum[1][tile][r] = 0.0f;
                    }
                }
                uint32_t left[2][2][4];
                decode<T>(left[0][0], ring[step].x, zeros);
                decode<T>(left[0][1], ring[step].y, zeros);
                decode<T>(left[1][0], ring[step].z, zeros + 2);
                decode<T>(left[1][1], ring[step].w, zeros + 2);
                if (more) ring[step] = load_once(next.unit + step * kWarp);
#pragma unroll
                for (int some = 0; some < kTiles; some += kTogether) {
                    uint32_t right[kTogether][4];
#pragma unroll
                    for (int i = 0; i < kTogether; ++i) {
                        const uint4 of = stage[(some + i) * 8 * Of::kRow + (step ^ g % 2) * 4];
                        right[i][0] = of.x, right[i][1] = of.y, right[i][2] = of.z;
                        right[i][3] = of.w;
                    }
                    // sums that wait for each other are as far apart as can be
#pragma unroll
                    for (int half = 0; half < 2; ++half) {
#pragma unroll
                        for (int i = 0; i < kTogether; ++i) {
#pragma unroll
                            for (int m = 0; m < 2; ++m) {
                                multiply_add<T>(sum[m][some + i], left[m][half],
                                                right[i] + 2 * half);
                            }
                        }
                    }
                }
                if ((step + 1) % (kScaled / 32) == 0) {
#pragma unroll
                    for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
                        for (int r = 0; r < 8; ++r) {
                            total[r / 4][tile][r % 4] += sum[r / 4][tile][r % 4] * scales[r / 2];
                        }
                    }
                }
            }
        } else if (next.item < last && next.there()) {
            fetch_unit(next);
        }

        if (at.span == at.spans - 1 || at.item == last - 1) {
            const int number = at.item / at.spans;
            const int b0 = p.block_of(number * at.spans);
            const int b1 = p.block_of((number + 1) * at.spans - 1);
            const int above = at.token_tile * kTokens + 2 * t;
            auto each_sum = [&](auto use) {  // a sum's place among its thread's, its token and row
#pragma unroll
                for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
                    for (int r = 0; r < 8; ++r) {
                        const int token = above + tile * 8 + r % 2;
                        if (at.strip < at.strips && token < p.tokens) {
                            use(total[r / 4][tile][r % 4], tile * 8 + r, token, r / 2 * 8 + g);
                        }
                    }
                }
            };
            if (kSplit > 1) {  // a strip's warps meet in shared memory
                if (part > 0) {
                    float* const to = sums + (part - 1) * Of::kSums + mine;
                    each_sum([&](float& x, int place, int, int) { to[place * kStrips] = x; });
                }
                __syncthreads();
                if (part == 0) {
                    each_sum([&](float& x, int place, int, int) {
#pragma unroll
                        for (int i = 0; i < kSplit - 1; ++i) {
                            x += sums[i * Of::kSums + place * kStrips + mine];
                        }
                    });
                }
            }
            // a block has two tiles that are not its own at most: its first and its last; those
            // that follow a tile's first block begin with it
            auto part_of = [&](int b) {
                const bool second = b == b0 && p.first_item(b) < number * at.spans;
                return p.parts + (static_cast<int64_t>(b) * 2 + second) * Of::kSums + mine;
            };
            bool finish = true;
            if (b0 != b1) {
                float* const to = part_of(block);
                if (part == 0) {
                    each_sum([&](float& x, int place, int, int) { to[place * kStrips] = x; });
                }
                __syncthreads();
                if (thread == 0) *is_last = arrive(p.arrived + number) == b1 - b0;
                __syncthreads();
                finish = *is_last;
                if (finish) {
                    if (thread == 0) p.arrived[number] = 0;
                    each_sum([](float& x, int, int, int) { x = 0.0f; });
                    if (part == 0) {
#pragma unroll(kTiles == 1 ? 4 : 1)
                        for (int b = b0; b <= b1; ++b) {
                            const float* const other = part_of(b);
                            each_sum([&](float& x, int place, int, int) {
                                x += __ldcg(other + place * kStrips);
                            });
                        }
                    }
                }
            }
            if (finish && part == 0) {
                each_sum([&](float& x, int, int token, int row) {
                    const int output = at.strip * kStrip + row;
                    const float bias = p.bias == nullptr ? 0.0f : to_float(p.bias[output]);
                    p.out[static_cast<int64_t>(token) * p.outputs + output] =
                        from_float<T>(x + bias);
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
        static_cast<int64_t>(blockIdx.x) * (kUnpackThreads / kWarp) + threadIdx.x / kWarp;
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
