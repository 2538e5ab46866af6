// Products with weights of four bits on tensor cores: the kernels, without what launches them.
//
// Source: Frantar et al. 2024 (MARLIN) for the idea: weights lie in memory as the registers of a
// warp want them, fetches are under way while others are used, codes become numbers by bit
// operations, and work is shared evenly among the multiprocessors, whatever the shape. Here weights
// are the left side of a tensor core's product, so that 8 tokens waste nothing, and scales multiply
// float32 sums: the operands are codes less zeros, small whole numbers, and no weight is rounded.
//
// A warp multiplies a strip of 32 outputs, chunk after chunk of 128 inputs, which warps share in
// shared memory.
//
// Few tokens: a block holds all inputs, its warps take turns with a strip's chunks, and their sums
// meet in the end. Weights come to shared memory some chunks ahead, to each thread its own.
//
// More tokens: a block's warps have a strip each, side by side: a tile. Weights go to registers
// directly, one chunk ahead. The chunks of all tiles, one tile after the other, are dealt out to
// the blocks in runs of equal length; a tile whose chunks fell to several blocks is added up by the
// one that comes last, in the order of the inputs, so that results repeat.
//
// More than 16 tokens, where there are products of warpgroups: they read inputs from shared memory
// and go on while the next weights are unpacked, so that neither waits for the other. Weights come
// to shared memory some chunks ahead. The blocks of a cluster share a tile's chunks; in the end
// each adds up some of the sums, which it reads where the others have them, in the order of the
// inputs.
//
// What the hardware does is tensor_core.cuh's and warpgroup.cuh's; tests put an emulation in their
// place.
#pragma once
#include "warpgroup.cuh"

namespace marlin {

constexpr int kStrip = 32;                 // outputs of a warp
constexpr int kInputs = 128;               // of a chunk
constexpr int kSteps = 4;                  // of a chunk: 32 inputs each
constexpr int kUnit = kSteps * kWarp;      // 16-byte pieces of a strip's chunk
constexpr int kPieces = kInputs * 2 / 16;  // 16-byte pieces of a token's inputs
constexpr int kUnpackThreads = 128;

// Few tokens: how many at most, and how a block works on them.
template <int kScaled>
struct Few {
    static constexpr int kTokens = 8;
    static constexpr int kWarps = 8, kThreads = kWarps * kWarp;
    static constexpr int kBlocks = 2;  // on a multiprocessor
    static constexpr int kStages = 3;  // chunks of a warp on their way
    static constexpr int kChunk = (kSteps + kInputs / kScaled) * kWarp;  // pieces, with its groups
    static constexpr int kSums = kThreads * 8;  // there is room for them twice
    static constexpr int bytes(int tokens, int inputs) {
        return tokens * inputs * 2 + kWarps * kStages * kChunk * 16 + 2 * kSums * 4;
    }
};

// More tokens: how a block works on a tile.
template <int kTokens>
struct Tile {
    static constexpr int kAcross = 4;                      // strips, and warps
    static constexpr int kBlocks = kTokens <= 32 ? 3 : 2;  // on a multiprocessor
    static constexpr int kThreads = kAcross * kWarp;
    static constexpr int kOutputs = kAcross * kStrip;
    static constexpr int kSums = kTokens * kOutputs;
    // Inputs of some chunks in shared memory: piece p of token i is at p ^ 4 * (i % 2) of its row.
    static constexpr int kStages = 4;
    static constexpr int kStage = kTokens * kPieces;  // 16-byte pieces
    static constexpr int kBytes = kStages * kStage * 16 + 16;
};

// The fewest have tiles of warps on every GPU: blocks of warpgroups fill a multiprocessor, so none
// begins while the kernel before it still runs, which costs more than they gain. Which kernels are
// in a GPU's code, and which are launched there, follow from this alone.
__host__ __device__ constexpr bool in_tiles(int tokens, bool warpgroups) {
    return tokens <= 16 || !warpgroups;
}

// More than 16 tokens, by warpgroups: how a block works on a tile.
template <int kTokens, int kWide, int kScaled>
struct Wide {
    static constexpr int kAcross = kWide;  // strips, and warps
    static constexpr int kThreads = kAcross * kWarp;
    static constexpr int kOutputs = kAcross * kStrip;
    static constexpr int kBlocks = kTokens <= 32 ? 16 / kAcross : 1;  // on a multiprocessor
    static constexpr int kSharers = 8;                                // of a tile, at most
    // A chunk's inputs in shared memory: piece q of token i is at kTokens * q + i. Two chunks are
    // used, one comes.
    static constexpr int kStages = 3;
    static constexpr int kStage = kPieces * kTokens;
    // A strip's chunks, with their groups, to each thread its own: one is used, the others come.
    static constexpr int kDeep = kTokens <= 32 ? 4 : 3;
    static constexpr int kChunk = (kSteps + kInputs / kScaled) * kWarp;
    static constexpr int kLine = kOutputs + 4;  // a token's sums, so that banks take turns
    static constexpr int kRings = (kStages * kStage + kAcross * kDeep * kChunk) * 16;
    static constexpr int kBytes = kRings > kTokens * kLine * 4 ? kRings : kTokens * kLine * 4;
};

template <typename T>
struct Product {
    const T* x;            // (tokens, inputs), rows `stride` apart
    const uint4* weights;  // as kernel/marlin.py arranges them
    const uint4* groups;   // likewise: the bits of a float16 scale, not 0, and above them a zero
    const T* bias;         // (outputs,) or nullptr
    T* out;                // (tokens, outputs)
    float* parts;          // (blocks, 2, kSums): of tiles that are not done
    int* arrived;          // of each tile, how many of its parts are there: 0 before and after
    int64_t stride;
    int tokens, inputs, outputs;
    int shared;      // runs of kScaled inputs that share a zero and a scale
    int each, more;  // items of a block; the first `more` blocks have another one

    __device__ int first_item(int block) const { return block * each + min(block, more); }
    __device__ int block_of(int item) const {
        const int long_ones = more * (each + 1);
        return item < long_ones ? item / (each + 1) : more + (item - long_ones) / each;
    }
    // This thread's first piece of a strip's chunk, and its four zeros and scales of a part of it.
    __device__ const uint4* unit(int strip, int chunk) const {
        const int64_t at = static_cast<int64_t>(strip) * (inputs / kInputs) + chunk;
        return weights + at * kUnit + threadIdx.x % kWarp;
    }
    __device__ const uint4* group(int strip, int part) const {
        const int row = shared > 1 ? part / shared : part;
        const int64_t at = static_cast<int64_t>(row) * (outputs / kStrip) + strip;
        return groups + at * 8 + threadIdx.x % kWarp / 4;
    }
    __device__ void write(int token, int output, float sum) const {
        if (bias != nullptr) sum += to_float(bias[output]);
        out[static_cast<int64_t>(token) * outputs + output] = from_float<T>(sum);
    }
    // Four outputs from this one on.
    __device__ void write(int token, int output, float4 sums) const {
        if (bias != nullptr) {
            sums.x += to_float(bias[output]), sums.y += to_float(bias[output + 1]);
            sums.z += to_float(bias[output + 2]), sums.w += to_float(bias[output + 3]);
        }
        *reinterpret_cast<uint2*>(out + static_cast<int64_t>(token) * outputs + output) = {
            pair<T>(sums.x, sums.y), pair<T>(sums.z, sums.w)};
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

// A warp's sums: a strip's outputs for 8 * kTiles tokens, in units of the scales that came last.
template <int kTiles>
struct Sums {
    float of[2][kTiles][4];
    float scales[4];

    __device__ void clear() {
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
            for (int r = 0; r < 4; ++r) of[0][tile][r] = of[1][tile][r] = 0.0f;
        }
#pragma unroll
        for (int r = 0; r < 4; ++r) scales[r] = 1.0f;
    }

    __device__ void change(const float (&to)[4]) {
        float factors[4];
#pragma unroll
        for (int r = 0; r < 4; ++r) factors[r] = __fdividef(scales[r], to[r]);
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
            for (int r = 0; r < 8; ++r) of[r / 4][tile][r % 4] *= factors[r / 2];
        }
#pragma unroll
        for (int r = 0; r < 4; ++r) scales[r] = to[r];
    }

    // Add a chunk's products. codes(step), groups(part): this thread's 16 bytes of weights, and of
    // zeros and scales. inputs(tile, step): piece 4 * step + lane % 4 of token 8 * tile + lane / 4.
    // used(step), used_group(part): called when those are used.
    template <typename T, int kScaled, typename Codes, typename Groups, typename Inputs,
              typename Used, typename UsedGroup>
    __device__ void add(Codes codes, Groups groups, Inputs inputs, Used used,
                        UsedGroup used_group) {
        constexpr int kTogether = kTiles < 4 ? kTiles : 4;  // tiles whose products take turns
        uint32_t zeros[4];
#pragma unroll
        for (int step = 0; step < kSteps; ++step) {
            if (step % (kScaled / 32) == 0) {
                const uint4 group = groups(step / (kScaled / 32));
                const uint32_t rows[4] = {group.x, group.y, group.z, group.w};
                float now[4];
#pragma unroll
                for (int r = 0; r < 4; ++r) {
                    now[r] = scale_of(rows[r]);
                    zeros[r] = zero_of<T>(rows[r]);
                }
                used_group(step / (kScaled / 32));
                change(now);
            }
            const uint4 packed = codes(step);
            uint32_t left[2][2][4];
            decode<T>(left[0][0], packed.x, zeros);
            decode<T>(left[0][1], packed.y, zeros);
            decode<T>(left[1][0], packed.z, zeros + 2);
            decode<T>(left[1][1], packed.w, zeros + 2);
            used(step);
#pragma unroll
            for (int some = 0; some < kTiles; some += kTogether) {
                uint32_t right[kTogether][4];
#pragma unroll
                for (int i = 0; i < kTogether; ++i) {
                    const uint4 four = inputs(some + i, step);
                    right[i][0] = four.x, right[i][1] = four.y;
                    right[i][2] = four.z, right[i][3] = four.w;
                }
                // sums that wait for each other are as far apart as can be
#pragma unroll
                for (int half = 0; half < 2; ++half) {
#pragma unroll
                    for (int i = 0; i < kTogether; ++i) {
#pragma unroll
                        for (int m = 0; m < 2; ++m) {
                            multiply_add<T>(of[m][some + i], left[m][half], right[i] + 2 * half);
                        }
                    }
                }
            }
        }
    }

    // use(sum, place among its thread's, token, output of the strip), for each.
    template <typename Use>
    __device__ void each(Use use) {
        const int lane = threadIdx.x % kWarp;
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
            for (int r = 0; r < 8; ++r) {
                use(of[r / 4][tile][r % 4], tile * 8 + r, tile * 8 + lane % 4 * 2 + r % 2,
                    r / 2 * 8 + lane / 4);
            }
        }
    }
};

// What a block does for few tokens: strip after strip, gridDim.x apart. shared: Few::bytes of it.
template <typename T, int kScaled>
__device__ inline void multiply_few(const Product<T>& p, uint4* shared) {
    using Of = Few<kScaled>;
    constexpr int kSize = Of::kChunk, kParts = kInputs / kScaled;
    const unsigned thread = threadIdx.x, lane = thread % kWarp, warp = thread / kWarp;
    const unsigned g = lane / 4, t = lane % 4;
    const int chunks = p.inputs / kInputs, strips = p.outputs / kStrip, row = chunks * kPieces;
    uint4* const inputs = shared + Of::kWarps * Of::kStages * kSize;
    float* const sums = reinterpret_cast<float*>(inputs + p.tokens * row);

    // weights may be fetched while the kernel that makes the inputs still runs
    uint4* const ring = shared + warp * Of::kStages * kSize + lane;
    int strip = blockIdx.x, chunk = warp;  // that is fetched next
    const uint4* unit = p.unit(strip, chunk);
    auto fetch_next = [&](int stage) {
        if (chunk < chunks && strip < strips) {
            uint4* const to = ring + stage * kSize;
#pragma unroll
            for (int step = 0; step < kSteps; ++step) {
                copy_async(to + step * kWarp, unit + step * kWarp);
            }
#pragma unroll
            for (int part = 0; part < kParts; ++part) {
                copy_async(to + (kSteps + part) * kWarp, p.group(strip, chunk * kParts + part));
            }
            unit += Of::kWarps * kUnit;
            chunk += Of::kWarps;
            if (chunk >= chunks) {
                strip += gridDim.x;
                chunk = warp;
                unit = p.unit(strip, chunk);
            }
        }
        end_copy_group();  // an empty one counts, too
    };
#pragma unroll
    for (int stage = 0; stage < Of::kStages; ++stage) fetch_next(stage);
    wait_for_inputs();
    for (int token = 0; token < p.tokens; ++token) {
        const T* const from = p.x + token * p.stride;
        for (int piece = thread; piece < row; piece += Of::kThreads) {
            copy_async(inputs + token * row + (piece ^ token % 2 * 4), from + piece * 8);
        }
    }
    end_copy_group();
    wait_for_copies<0>();
    __syncthreads();

    const bool used = g < static_cast<unsigned>(p.tokens);
    const uint4* const mine = inputs + (used ? g : 0) * row + t;
    Sums<1> total;
    int stage = 0, turn = 0;
    for (int current = blockIdx.x; current < strips; current += gridDim.x) {
        total.clear();
#pragma unroll 1
        for (int own = warp; own < chunks; own += Of::kWarps) {
            wait_for_copies<Of::kStages - 1>();
            const uint4* const from = mine + own * kPieces;
            const uint4* const weights = ring + stage * kSize;
            total.template add<T, kScaled>(
                [&](int step) { return weights[step * kWarp]; },
                [&](int part) { return weights[(kSteps + part) * kWarp]; },
                [&](int, int step) { return used ? from[(step ^ g % 2) * 4] : uint4{0, 0, 0, 0}; },
                [](int) {}, [](int) {});
            fetch_next(stage);
            if (++stage == Of::kStages) stage = 0;
        }
        if (strip >= strips) let_next_start();  // all is under way
        float* const to = sums + turn * Of::kSums;
        turn ^= 1;  // whoever is late still adds up the last ones
        total.each([&](float sum, int place, int, int) {
            to[(warp * 8 + place) * kWarp + lane] = sum * total.scales[place / 2];
        });
        __syncthreads();
        // thread i adds up what lane i % 32 of each warp has at place i / 32
        float sum = 0.0f;
#pragma unroll
        for (int i = 0; i < Of::kWarps; ++i) sum += to[(i * 8 + warp) * kWarp + lane];
        const int token = t * 2 + warp % 2;
        if (token < p.tokens) p.write(token, current * kStrip + warp / 2 * 8 + g, sum);
    }
}

// What a block does for more tokens: first to last item, a tile's chunk each. shared: Tile::kBytes.
template <typename T, int kTokens, int kScaled>
__device__ inline void multiply(const Product<T>& p, uint4* shared) {
    using Of = Tile<kTokens>;
    constexpr int kAcross = Of::kAcross, kThreads = Of::kThreads, kStages = Of::kStages;
    constexpr int kParts = kInputs / kScaled;
    volatile int* const is_last = reinterpret_cast<int*>(shared + kStages * Of::kStage);

    const unsigned thread = threadIdx.x, lane = thread % kWarp, g = lane / 4, t = lane % 4;
    const int chunks = p.inputs / kInputs, strips = p.outputs / kStrip;
    const int token_tiles = (p.tokens + kTokens - 1) / kTokens;
    const int block = blockIdx.x, first = p.first_item(block), last = p.first_item(block + 1);

    // the item that is used, and the one whose weights are fetched
    int item = first, chunk = first % chunks, token_tile = first / chunks % token_tiles;
    int strip = first / chunks / token_tiles * kAcross + static_cast<int>(thread / kWarp);
    int next = first, next_chunk = chunk, next_tile = token_tile, next_strip = strip;
    const uint4* unit = p.unit(strip, chunk);
    auto advance = [&] {
        ++next;
        unit += kUnit;
        if (++next_chunk < chunks) return;
        next_chunk = 0;
        if (++next_tile == token_tiles) {
            next_tile = 0;
            next_strip += kAcross;
        }
        unit = p.unit(next_strip, 0);
    };

    // weights may be fetched while the kernel that makes the inputs still runs
    uint4 codes[kSteps], groups[kParts];
    auto fetch_codes = [&](int step) { codes[step] = load_once(unit + step * kWarp); };
    auto fetch_groups = [&](int part) {
        groups[part] = load_once(p.group(next_strip, next_chunk * kParts + part));
    };
    auto fetch = [&] {
        if (next >= last || next_strip >= strips) return;
#pragma unroll
        for (int step = 0; step < kSteps; ++step) fetch_codes(step);
#pragma unroll
        for (int part = 0; part < kParts; ++part) fetch_groups(part);
    };
    fetch();
    advance();
    wait_for_inputs();

    // this thread's part in the copies of inputs: some rows, one piece of each
    constexpr int kRows = kThreads / kPieces;
    const int my_row = thread / kPieces, my_piece = thread % kPieces;
    const int my_place = my_row * kPieces + (my_piece ^ my_row % 2 * 4);
    int entering = first, entering_chunk = chunk, above = token_tile * kTokens + my_row;
    const T* from = p.x + above * p.stride + chunk * kInputs + my_piece * 8;
    auto fetch_inputs = [&] {
        uint4* const to =
            shared + static_cast<unsigned>(entering - first) % kStages * Of::kStage + my_place;
        // what is there of tokens that do not exist goes into sums that nobody asks for
#pragma unroll
        for (int i = 0; i < kTokens / kRows; ++i) {
            if (above + i * kRows < p.tokens) {
                copy_async(to + i * kThreads, from + i * kRows * p.stride);
            }
        }
        ++entering;
        from += kInputs;
        if (++entering_chunk < chunks) return;
        entering_chunk = 0;
        above += kTokens;
        if (above - my_row >= p.tokens) above = my_row;
        from = p.x + above * p.stride + my_piece * 8;
    };
#pragma unroll 1
    for (int i = 0; i < kStages - 1; ++i) {
        if (entering < last) fetch_inputs();
        end_copy_group();
    }

    Sums<kTokens / 8> total;
    total.clear();
#pragma unroll 1
    for (unsigned i = 0; item < last; ++i) {
        wait_for_copies<kStages - 2>();
        __syncthreads();  // everybody's copies of this chunk are there, and the last chunk is used
        if (entering < last) fetch_inputs();
        end_copy_group();  // an empty one counts, too

        if (strip < strips) {
            const bool more = next < last && next_strip < strips;
            const uint4* const stage = shared + i % kStages * Of::kStage + g * kPieces + t;
            total.template add<T, kScaled>(
                [&](int step) { return codes[step]; }, [&](int part) { return groups[part]; },
                [&](int tile, int step) { return stage[tile * 8 * kPieces + (step ^ g % 2) * 4]; },
                [&](int step) {
                    if (more) fetch_codes(step);
                },
                [&](int part) {
                    if (more) fetch_groups(part);
                });
        } else {
            fetch();
        }
        advance();
        if (next >= last) let_next_start();  // all is under way
        ++item;
        if (++chunk < chunks && item < last) continue;

        const int number = (item - 1) / chunks;
        const int b0 = p.block_of(number * chunks), b1 = p.block_of((number + 1) * chunks - 1);
        const int above = token_tile * kTokens, tokens = strip < strips ? p.tokens - above : 0;
        // a block has two tiles that are not its own at most: its first and its last; those that
        // follow a tile's first block begin with it
        auto part_of = [&](int b) {
            const bool second = b == b0 && p.first_item(b) < number * chunks;
            return p.parts + (static_cast<int64_t>(b) * 2 + second) * Of::kSums + thread;
        };
        total.each([&](float& sum, int place, int, int) { sum *= total.scales[place % 8 / 2]; });
        bool finish = true;
        if (b0 != b1) {
            float* const to = part_of(block);
            total.each([&](float sum, int place, int token, int) {
                if (token < tokens) to[place * kThreads] = sum;
            });
            __syncthreads();
            if (thread == 0) *is_last = arrive(p.arrived + number) == b1 - b0;
            __syncthreads();
            finish = *is_last;
            if (finish) {
                if (thread == 0) p.arrived[number] = 0;
                total.each([](float& sum, int, int, int) { sum = 0.0f; });
#pragma unroll 1
                for (int b = b0; b <= b1; ++b) {
                    const float* const other = part_of(b);
                    total.each([&](float& sum, int place, int token, int) {
                        if (token < tokens) sum += __ldcg(other + place * kThreads);
                    });
                }
            }
        }
        if (finish) {
            total.each([&](float sum, int, int token, int row) {
                if (token < tokens) p.write(above + token, strip * kStrip + row, sum);
            });
        }
        total.clear();
        chunk = 0;
        if (++token_tile == token_tiles) {
            token_tile = 0;
            strip += kAcross;
        }
    }
}

// The same by warpgroups: a tile's chunks, as many as fall to this block of its cluster, and then
// some of its sums. shared: Wide::kBytes.
template <typename T, int kTokens, int kAcross, int kScaled>
__device__ inline void multiply_wide(const Product<T>& p, uint4* shared) {
    using Of = Wide<kTokens, kAcross, kScaled>;
    constexpr int kThreads = Of::kThreads, kDeep = Of::kDeep, kParts = kInputs / kScaled;

    const int thread = threadIdx.x, lane = thread % kWarp, warp = thread / kWarp;
    const int sharers = cluster_blocks(), rank = cluster_rank(), tile = blockIdx.x / sharers;
    const int token_tiles = (p.tokens + kTokens - 1) / kTokens, strips = p.outputs / kStrip;
    const int above = tile % token_tiles * kTokens, tokens = min(p.tokens - above, kTokens);
    const int across = tile / token_tiles * kAcross;
    const int strip = min(across + warp, strips - 1);  // who has none repeats the last
    const int first = p.first_item(rank), last = p.first_item(rank + 1);

    uint4* const ring = shared + Of::kStages * Of::kStage + warp * kDeep * Of::kChunk + lane;
    const uint4* unit = p.unit(strip, first);
    int entering = first, free = 0;
    auto fetch_weights = [&] {
        if (entering < last) {
            uint4* const to = ring + free * Of::kChunk;
#pragma unroll
            for (int step = 0; step < kSteps; ++step) {
                copy_async(to + step * kWarp, unit + step * kWarp);
            }
#pragma unroll
            for (int part = 0; part < kParts; ++part) {
                copy_async(to + (kSteps + part) * kWarp, p.group(strip, entering * kParts + part));
            }
            unit += kUnit;
            ++entering;
            if (++free == kDeep) free = 0;
        }
        end_copy_group();  // an empty one counts, too
    };
    // A warp takes 32 inputs of 8 tokens, a piece each lane, from where they lie to where products
    // look for them: of 8 t + 4 s + 2 c + h, an input's number, lane t of a product has 2 t + h in
    // row c of step s, as weights lie in registers; that is word t of piece 2 s + c.
    constexpr int kRows = kThreads / kPieces, kTurns = (kTokens + kRows - 1) / kRows;
    const int my_row = warp / kSteps * 8 + lane / 4, my_step = warp % kSteps;
    const T* from =
        p.x + (above + my_row) * p.stride + first * kInputs + my_step * 32 + lane % 4 * 8;
    uint4 coming[kTurns];
    auto fetch_inputs = [&] {
#pragma unroll
        for (int i = 0; i < kTurns; ++i) {
            const T* const row = from + i * kRows * p.stride;
            if (my_row + i * kRows < tokens)
                coming[i] = __ldcg(reinterpret_cast<const uint4*>(row));
        }
        from += kInputs;
    };
    uint32_t* const my_word =
        reinterpret_cast<uint32_t*>(shared + my_step * 4 * kTokens + my_row) + lane % 4;
    auto store_inputs = [&](int stage) {
        uint32_t* const to = my_word + stage * Of::kStage * 4;
        // what is there of tokens that do not exist goes into sums that nobody asks for
#pragma unroll
        for (int i = 0; i < kTurns; ++i) {
            if (my_row + i * kRows < tokens) {
                uint32_t* const row = to + i * kRows * 4;
                write_for_products(row, coming[i].x);
                write_for_products(row + kTokens * 4, coming[i].y);
                write_for_products(row + kTokens * 8, coming[i].z);
                write_for_products(row + kTokens * 12, coming[i].w);
            }
        }
    };

    // weights may be fetched while the kernel that makes the inputs still runs
#pragma unroll
    for (int i = 0; i < kDeep - 1; ++i) fetch_weights();
    wait_for_inputs();
    fetch_inputs();

    int chunk = first, storing = 0, stage = 0, place = 0;
    auto store_next = [&](bool more) {
        store_inputs(storing);  // where products of three chunks ago are done
        show_to_products();
        __syncthreads();  // everybody's inputs of the next chunk are there
        if (++storing == Of::kStages) storing = 0;
        if (more) {
            fetch_inputs();
        } else {
            let_next_start();  // all is under way
        }
    };
    store_next(first + 1 < last);

    Sums<kTokens / 8> total;
    total.clear();
    const uint4* codes = nullptr;
    uint64_t right = 0;
    auto enter = [&] {
        right = right_side(shared + stage * Of::kStage, kTokens);
        if (++stage == Of::kStages) stage = 0;
        wait_for_copies<kDeep - 2>();
        fetch_weights();  // where the last chunk's were
        codes = ring + place * Of::kChunk;
        if (++place == kDeep) place = 0;
    };

    // 32 inputs at a time: while they are multiplied, the next are unpacked
    uint32_t left[2][2][2][4], zeros[4];
    auto prepare = [&](int step) {
        const bool fresh = step % (kScaled / 32) == 0;
        float scales[4];
        if (fresh) {
            const uint4 group = codes[(kSteps + step / (kScaled / 32)) * kWarp];
            const uint32_t rows[4] = {group.x, group.y, group.z, group.w};
#pragma unroll
            for (int r = 0; r < 4; ++r) {
                scales[r] = scale_of(rows[r]);
                zeros[r] = zero_of<T>(rows[r]);
            }
        }
        const uint4 packed = codes[step * kWarp];
        wait_for_products<1>();  // those of the step before the last are done
        decode<T>(left[step % 2][0][0], packed.x, zeros);
        decode<T>(left[step % 2][0][1], packed.y, zeros);
        decode<T>(left[step % 2][1][0], packed.z, zeros + 2);
        decode<T>(left[step % 2][1][1], packed.w, zeros + 2);
        if (fresh) {
            wait_for_products<0>();
            settle(total.of[0]);
            settle(total.of[1]);
            total.change(scales);
        }
    };
    enter();
    prepare(0);
    for (;;) {
#pragma unroll
        for (int step = 0; step < kSteps; ++step) {
            begin_products();
#pragma unroll
            for (int half = 0; half < 2; ++half) {
#pragma unroll
                for (int m = 0; m < 2; ++m) {
                    multiply_group<T>(total.of[m], left[step % 2][m][half],
                                      right + (step * 4 + half * 2) * kTokens);
                }
            }
            end_products();
            if (step == kSteps / 2 && chunk + 1 < last) store_next(chunk + 2 < last);
            if (step < kSteps - 1) prepare(step + 1);
        }
        if (++chunk == last) break;
        enter();
        prepare(0);
    }
    wait_for_products<0>();
    settle(total.of[0]);
    settle(total.of[1]);

    __syncthreads();  // nobody needs the chunks any more
    float* const sums = reinterpret_cast<float*>(shared);
    total.each([&](float sum, int place, int token, int row) {
        sums[token * Of::kLine + warp * kStrip + row] = sum * total.scales[place % 8 / 2];
    });
    cluster_barrier();
    constexpr int kFours = Of::kOutputs / 4;
    for (int i = rank * kThreads + thread; i < tokens * kFours; i += sharers * kThreads) {
        const int token = i / kFours, output = i % kFours * 4;
        if (across * kStrip + output >= p.outputs) continue;
        float4 parts[Of::kSharers], sum = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
        for (int b = 0; b < Of::kSharers; ++b) {
            if (b < sharers) parts[b] = read_from(b, sums + token * Of::kLine + output);
        }
#pragma unroll
        for (int b = 0; b < Of::kSharers; ++b) {
            if (b < sharers) {
                sum.x += parts[b].x, sum.y += parts[b].y;
                sum.z += parts[b].z, sum.w += parts[b].w;
            }
        }
        p.write(above + token, across * kStrip + output, sum);
    }
    cluster_barrier();  // the others may still read this block's
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
