// All layers of a decoder for one token, as one kernel: the kernel, without what launches it.
//
// A decode step of one token is reading the weights, once. Kernel after kernel, the memory idles
// while one ends and the next begins, longer than some of them take. Here every multiprocessor
// holds one block from the first layer to the last. A few of its warps do nothing but have weights
// copied to rings of shared memory, one for each of the others, always as far ahead as there is
// room, over the borders of products and layers: which come next never depends on what is computed.
//
// What blocks need of each other they hand over in global memory, each number with a stamp beside
// it, in one access; who waits for a number looks until its stamp is there. So there is no barrier
// of all blocks, and no number is fetched again after its arrival is known. A buffer may be
// overwritten in the next layer, without more ado: who writes there has seen results of all who
// read it.
//
// A product's tiles (some outputs, all inputs) are dealt out to blocks, and a tile's chunks (some
// of the inputs) to their warps; sums meet in shared memory and are added in one order, so results
// repeat. Numbers are rounded where tensors between separate kernels would be. One loop runs
// through all products, so that their code is fetched once.
//
// Sources: "Look Ma, No Bubbles!" (Spector et al. 2025) for one kernel as the way to a batch of
// one; NCCL's protocol LL for numbers that carry their flag.
#pragma once
#include <algorithm>
#include <type_traits>

#include "bulk.cuh"
#include "marlin.cuh"
#include "rows.cuh"

namespace mega {

constexpr int kWarps = 16;
constexpr int kThreads = kWarps * kWarp;      // that compute; some warps more fetch
constexpr int kFetchers = 4;                  // as many as take no registers from the others
constexpr int kFetched = kWarps / kFetchers;  // warps that one of them fetches for
constexpr int kAllThreads = kThreads + kFetchers * kWarp;
constexpr int kAtOnce = 2;       // pairs of words that a thread waits for
constexpr int kPositions = 2;    // of which a thread has keys in flight
constexpr int kMostSplits = 16;  // of a head's positions
constexpr int kShort = 3072;     // numbers that are few for a row
constexpr float kLow = -1e30f;   // less than any score

// A number handed over, below its stamp.
using Word = uint64_t;

// Where a word of an input row lies in it. All blocks look at it at the same time, and the lines of
// the second cache answer one look after the other: a short row takes more lines than it would
// fill, with four words in each.
__host__ __device__ inline int spread(int word, int numbers) {
    return numbers <= kShort ? word / 4 * 16 + word % 4 : word;
}

// The numbers of a word; a bfloat16 is a float's upper half.
template <typename T>
__device__ inline void numbers_of(uint32_t word, float (&two)[2]) {
    if constexpr (std::is_same_v<T, __nv_bfloat16>) {
        two[0] = __uint_as_float(word << 16), two[1] = __uint_as_float(word & 0xffff0000u);
    } else {
        two[0] = to_float(reinterpret_cast<const T(&)[2]>(word)[0]);
        two[1] = to_float(reinterpret_cast<const T(&)[2]>(word)[1]);
    }
}

template <typename T>
__device__ inline void numbers_of(const uint4& words, float (&eight)[8]) {
    const uint32_t four[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        float two[2];
        numbers_of<T>(four[i], two);
        eight[2 * i] = two[0], eight[2 * i + 1] = two[1];
    }
}

template <typename T>
__device__ inline void numbers_of(uint2 words, float (&four)[4]) {
    float two[2][2];
    numbers_of<T>(words.x, two[0]);
    numbers_of<T>(words.y, two[1]);
#pragma unroll
    for (int i = 0; i < 4; ++i) four[i] = two[i / 2][i % 2];
}

struct Matrix {
    const uint4* weights;
    const uint4* groups;  // of four-bit weights; see marlin::Product
    const void* bias;     // or nullptr
};

// One layer's tensors; all (outputs, inputs). kernel/megakernel.py writes this.
struct Layer {
    Matrix qkv, o, gate_up, down;
    const void *attention_norm, *mlp_norm;  // (hidden,)
    const void* head_norm;                  // (heads + kv_heads, dim) or nullptr
    int64_t window;                         // positions that a token sees at most; 0: all
};

// Where a layer's keys and values are, (positions, kv_heads, dim) each.
struct Pool {
    void *keys, *values;
};

// Where things are in a block's shared memory, in bytes, behind those whose sizes are constant.
struct Places {
    int layers, pools;
    int own;    // of the residual stream, what the block adds to
    int norm;   // its weights
    int area;   // an input row, as the form of the weights wants it; or what attention needs
    int raw;    // a row that is not normalised yet
    int parts;  // what the form of the weights keeps of an input row's parts
    int sums;   // behind any row: whoever is late may add sums while the next row comes
    int end;
};

template <typename T>
struct Step {
    Places at;
    const Layer* layers;
    const Pool* pools;                                      // of each layer
    int num_layers, hidden, inner, heads, kv_heads, group;  // group: inputs that share a scale
    float eps, head_eps;
    const T* x;                  // (hidden,)
    const T *cosine, *sine;      // (dim / 2,)
    const int32_t *pages, *end;  // the row's page table, and how many positions it has now
    int page_size;
    T* out;  // (hidden,)
    // What blocks hand over: two numbers a word, but one float of parts. stream, middle: the
    // residual stream after and within a layer, spread.
    Word *stream, *qkv, *parts, *attended, *middle, *active;
    uint32_t* launches;  // before this one
    int* done;           // blocks: 0 before and after
};

// A warp's next chunk to fetch, and of which matrix.
struct Fetch {
    int layer, product, tile, chunk;
    int inputs, outputs, group;
};

// What is kept of a part of an input row whose numbers are multiples of a unit.
struct alignas(8) Part {
    float unit, sum;  // of the numbers, in units
};

// Weights in 16 bits, (outputs, inputs) as they were read.
template <typename T>
struct Dense {
    static constexpr int kOutputs = 2;  // of a tile
    static constexpr int kChunk = 512;  // inputs that a warp multiplies at a time; the last: fewer
    static constexpr int kStages = 4;   // chunks of a warp on their way
    static constexpr int kRow = kChunk / 8;  // 16-byte pieces
    static constexpr int kSlot = kOutputs * kRow;
    static constexpr int kBytes = 2;  // of a number of an input row
    static constexpr int kPart = 0;   // inputs that share a unit; 0: rows stay as they are

    // By one thread.
    __device__ static void fetch(const Matrix& of, const Fetch& next, uint4* slot, Arrival* at) {
        const int first = next.chunk * kChunk, bytes = min(kChunk, next.inputs - first) * 2;
        const int64_t row = static_cast<int64_t>(next.tile) * kOutputs;
        const uint4* const from = of.weights + (row * next.inputs + first) / 8;
        expect(at, kOutputs * bytes);
#pragma unroll
        for (int i = 0; i < kOutputs; ++i) {
            copy_bulk(slot + i * kRow, from + i * (next.inputs / 8), bytes, at);
        }
    }

    // Four numbers of an input row, the p-th four.
    __device__ static void keep(int p, uint2 numbers, uint4* row, Part*) {
        reinterpret_cast<uint2*>(row)[p] = numbers;
    }

    float sums[kOutputs];

    __device__ void clear() { sums[0] = sums[1] = 0.0f; }

    // A chunk's products. row: so many inputs.
    __device__ void add(const uint4* slot, const uint4* row, const Part*, int chunk, int all) {
        constexpr int kTurns = kRow / kWarp;
        const uint4* const x = row + chunk * kRow;
        const int pieces = all / 8 - chunk * kRow;
        uint4 inputs[kTurns], own[kTurns][kOutputs];  // all under way at once
#pragma unroll
        for (int i = 0; i < kTurns; ++i) {
            const int at = threadIdx.x % kWarp + i * kWarp, there = min(at, pieces - 1);
            inputs[i] = at < pieces ? x[at] : uint4{0, 0, 0, 0};
#pragma unroll
            for (int output = 0; output < kOutputs; ++output) {
                own[i][output] = slot[output * kRow + there];
            }
        }
#pragma unroll
        for (int i = 0; i < kTurns; ++i) {
            float eight[8];
            numbers_of<T>(inputs[i], eight);
#pragma unroll
            for (int output = 0; output < kOutputs; ++output) {
                float weights[8];
                numbers_of<T>(own[i][output], weights);
#pragma unroll
                for (int j = 0; j < 8; ++j) sums[output] += eight[j] * weights[j];
            }
        }
    }

    // use(output of the tile, sum), each once in a warp.
    template <typename Use>
    __device__ void each(Use use) const {
        // each half of the warp goes on with one of them
        const int half = threadIdx.x % kWarp / (kWarp / 2);
        float sum = half ? sums[1] : sums[0];
        sum += __shfl_xor_sync(0xffffffffu, half ? sums[0] : sums[1], kWarp / 2);
#pragma unroll
        for (int other = kWarp / 4; other > 0; other /= 2) {
            sum += __shfl_xor_sync(0xffffffffu, sum, other);
        }
        if (threadIdx.x % (kWarp / 2) == 0) use(half, sum);
    }
};

// Weights of four bits, as kernel/marlin.py arranges them, times whole numbers: a word's eight
// codes are two registers of bytes, so that two instructions make them the left side of a tensor
// core's product. An input row's numbers are fixed point, with a unit for each part of it, in three
// digits of eight bits: the first columns of the right side. So sums of a part are exact. What a
// number loses is at most 2^-22 of the largest of its part; a bfloat16 of at least 2^-14 of it
// loses nothing.
template <typename T, int kScaled>
struct FourBits {
    static constexpr int kOutputs = marlin::kStrip;
    static constexpr int kChunk = marlin::kInputs;
    static constexpr int kParts = kChunk / kScaled;  // of a chunk, with zeros and scales each
    static constexpr int kStages = kParts > 1 ? 3 : 4;
    static constexpr int kSlot = marlin::kUnit + kParts * 8;
    static constexpr int kDigits = 3;
    static constexpr int kBytes = kDigits;  // as above
    static constexpr int kPart = kScaled;   // inputs that share a zero and a scale

    // By one thread.
    __device__ static void fetch(const Matrix& of, const Fetch& next, uint4* slot, Arrival* at) {
        const int64_t unit = static_cast<int64_t>(next.tile) * (next.inputs / kChunk) + next.chunk;
        expect(at, kSlot * 16);
        copy_bulk(slot, of.weights + unit * marlin::kUnit, marlin::kUnit * 16, at);
        const int together = next.group / kScaled;  // parts that share zeros and scales
#pragma unroll
        for (int i = 0; i < kParts; ++i) {
            const int part = next.chunk * kParts + i;
            const int64_t above = together == 1 ? part : part / together;
            copy_bulk(slot + marlin::kUnit + i * 8,
                      of.groups + (above * (next.outputs / kOutputs) + next.tile) * 8, 128, at);
        }
    }

    // See Dense; with the threads that have the others of its part. Digits lie [pair of fours,
    // digit, which of the two].
    __device__ static void keep(int p, uint2 numbers, uint4* row, Part* parts) {
        constexpr int kLanes = kScaled / 4;
        float x[4];
        numbers_of<T>(numbers, x);
        uint32_t peak = 0;
#pragma unroll
        for (int j = 0; j < 4; ++j) peak = max(peak, __float_as_uint(x[j]) & 0x7fffffffu);
        // a float's exponent, 127 more than it stands for; numbers become less than 2^22
        const uint32_t exponent = max(max_of_lanes<kLanes>(peak) >> 23, 22u);
        const float units_in_one = __uint_as_float((275u - exponent) << 23);
        int sum = 0;
        uint32_t digits[4];  // each 128 more than it stands for
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const int whole = __float2int_rn(x[j] * units_in_one);
            sum += whole;
            digits[j] = static_cast<uint32_t>(whole) + 0x808080u;
        }
        // in the order of a word's codes: 0, 2, 1, 3
        const uint32_t even = __byte_perm(digits[0], digits[2], 0x5140);
        const uint32_t odd = __byte_perm(digits[1], digits[3], 0x5140);
        const uint32_t high = __byte_perm(__byte_perm(digits[0], digits[2], 0x0062),
                                          __byte_perm(digits[1], digits[3], 0x0062), 0x5410);
        uint32_t* const to = reinterpret_cast<uint32_t*>(row) + p / 2 * (2 * kDigits) + p % 2;
        to[0] = high ^ 0x80808080u;
        to[2] = __byte_perm(even, odd, 0x7632) ^ 0x80808080u;
        to[4] = __byte_perm(even, odd, 0x5410) ^ 0x80808080u;
        sum = sum_of_lanes<kLanes>(sum);
        // an infinite number, or none, makes none of all that it is multiplied for
        const uint32_t unit = exponent < 255u ? (exponent - 21u) << 23 : 0x7fffffffu;
        if (p % kLanes == 0) parts[p / kLanes] = {__uint_as_float(unit), static_cast<float>(sum)};
    }

    // Of outputs g, g + 8 and so on: lane t = 0 has what the first two digits give, t = 1 what the
    // last one does. The others' are not used.
    float sums[4];

    __device__ void clear() {
#pragma unroll
        for (int r = 0; r < 4; ++r) sums[r] = 0.0f;
    }

    __device__ void add(const uint4* slot, const uint4* row, const Part* parts, int chunk, int) {
        const int lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
        const uint2* const x = reinterpret_cast<const uint2*>(row) +
                               (chunk * (kChunk / 8) + t) * kDigits + min(g, kDigits - 1);
        const int over = t == 0 ? 256 : 1, beside = t == 0 ? 1 : 0;
#pragma unroll
        for (int part = 0; part < kParts; ++part) {
            int now[2][2][4] = {};  // two chains each, for each of their links takes its time
#pragma unroll
            for (int i = 0; i < kScaled / 32; ++i) {
                const int step = part * (kScaled / 32) + i;
                const uint2 digits = x[step * 4 * kDigits];
                const uint4 packed = slot[step * kWarp + lane];
                const uint32_t words[4] = {packed.x, packed.y, packed.z, packed.w};
#pragma unroll
                for (int m = 0; m < 2; ++m) {
                    uint32_t left[4];  // of rows g + 8 sixteen times the codes
#pragma unroll
                    for (int r = 0; r < 4; ++r) {
                        left[r] = words[2 * m + r / 2] & (r % 2 ? 0xf0f0f0f0u : 0x0f0f0f0fu);
                    }
                    multiply_add(now[m][i % 2], left, digits);
                }
            }
            const Part of = parts[chunk * kParts + part];
            const uint4 group = slot[marlin::kUnit + part * 8 + g];
            const uint32_t rows[4] = {group.x, group.y, group.z, group.w};
#pragma unroll
            for (int r = 0; r < 4; ++r) {
                const auto& of_rows = now[r / 2];
                const int first = of_rows[0][r % 2 * 2] + of_rows[1][r % 2 * 2];
                const int second = of_rows[0][r % 2 * 2 + 1] + of_rows[1][r % 2 * 2 + 1];
                float sum = static_cast<float>(first * over + second * beside);
                sum *= static_cast<float>(over) * (r % 2 ? 0.0625f : 1.0f);
                if (t == 0) sum -= static_cast<float>(rows[r] >> 16) * of.sum;
                sums[r] += marlin::scale_of(rows[r]) * of.unit * sum;
            }
        }
    }

    template <typename Use>
    __device__ void each(Use use) const {
        const int g = threadIdx.x % kWarp / 4, t = threadIdx.x % 4;
#pragma unroll
        for (int m = 0; m < 2; ++m) {
            const float own = t % 2 ? sums[2 * m + 1] : sums[2 * m];
            const float other = t % 2 ? sums[2 * m] : sums[2 * m + 1];
            const float sum = own + __shfl_xor_sync(0xffffffffu, other, 1);
            if (t < 2) use(m * 16 + t * 8 + g, sum);
        }
    }
};

struct alignas(16) Eight {
    float at[8];
};

__device__ inline bool is_new(Word word, uint32_t stamp) {
    return word >> 32 == stamp;
}

// So many pairs of words, once all carry the stamp. All are looked at together, and those that do
// not carry it again, but one after the other: looks that find nothing delay those that would.
// from(i): where a pair is.
template <int kCount, typename From>
__device__ inline void take(Word (&pairs)[kCount][2], uint32_t stamp, int count, From from) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
        if (i < count) look_at_two(from(i), pairs[i]);
    }
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
        if (i >= count) break;
        while (!is_new(pairs[i][0], stamp) || !is_new(pairs[i][1], stamp)) {
            look_at_two(from(i), pairs[i]);
        }
    }
}

__device__ inline float float_of(Word word) {
    return __uint_as_float(static_cast<uint32_t>(word));
}

enum { kQkv, kO, kGateUp, kDown, kProducts };

// A block's part of a product: tiles that lie one after the other; of gates and ups as many tiles
// of gates, each of them followed by its tile of ups.
struct Product {
    int inputs, outputs, first, count, chunks;
    uint32_t share;  // 2^20 / chunks, rounded up

    // Chunks are counted through all tiles. Dividing by a product is right for numbers below
    // 2^20 / chunks of fewer than 4096 tiles: shared memory does not hold a row and sums for more.
    __device__ int chunks_of_all() const { return count * chunks; }
    __device__ int tile_of(int number) const {
        return static_cast<int>(static_cast<uint32_t>(number) * share >> 20);
    }
};

// A block's shared memory.
template <typename T, typename Form, int kDim>
struct Shared {
    static constexpr int kSlots = kWarps * Form::kStages;
    static constexpr int kArrivals = kSlots * Form::kSlot * 16;
    static constexpr int kFreed = kArrivals + kSlots * 8;
    static constexpr int kProductsAt = kFreed + kSlots * 8;
    static constexpr int kScratch = kProductsAt + kProducts * sizeof(Product);
    static constexpr int kBehind = (kScratch + kWarps * 4 + 15) / 16 * 16;

    const Step<T>& s;

    // Of each warp kStages chunks; whether they are there; whether there is room for them.
    __device__ uint4* ring() const { return place<uint4>(0); }
    __device__ Arrival* arrivals() const { return place<Arrival>(kArrivals); }
    __device__ Arrival* freed() const { return place<Arrival>(kFreed); }
    __device__ Product* products() const { return place<Product>(kProductsAt); }
    __device__ float* scratch() const { return place<float>(kScratch); }  // a number of each warp
    __device__ Layer* layers() const { return place<Layer>(s.at.layers); }
    __device__ Pool* pools() const { return place<Pool>(s.at.pools); }
    __device__ float* own() const { return place<float>(s.at.own); }
    __device__ uint4* norm() const { return place<uint4>(s.at.norm); }
    __device__ uint4* area() const { return place<uint4>(s.at.area); }
    __device__ uint2* raw() const { return place<uint2>(s.at.raw); }
    __device__ Part* parts() const { return place<Part>(s.at.parts); }
    __device__ float* sums() const { return place<float>(s.at.sums); }

    static Places places(const Step<T>& s, int blocks) {
        auto outputs = [&](int all) {  // of a block at most
            return (all / Form::kOutputs + blocks - 1) / blocks * Form::kOutputs;
        };
        const int each = s.heads / s.kv_heads, wide = s.heads * kDim;
        const int widest = std::max({s.hidden, s.inner, wide});
        const int products = std::max(
            {outputs(wide + 2 * s.kv_heads * kDim), outputs(s.hidden), 2 * outputs(s.inner)});
        const int attention = (each * kDim + kDim + kWarps * each * (kDim + 2)) * 4;
        Places at;
        at.layers = kBehind;
        at.pools = at.layers + s.num_layers * static_cast<int>(sizeof(Layer));
        at.own = at.pools + s.num_layers * static_cast<int>(sizeof(Pool));
        at.norm = at.own + (outputs(s.hidden) * 4 + 15) / 16 * 16;
        at.area = at.norm + s.hidden * 2;
        at.raw = at.area + (Form::kPart > 0 ? s.hidden * Form::kBytes : 0);
        at.parts = std::max(at.area + widest * Form::kBytes, at.raw + s.hidden * 2);
        at.sums = at.parts;
        if constexpr (Form::kPart > 0) {
            at.sums += widest / Form::kPart * static_cast<int>(sizeof(Part));
        }
        at.end = std::max(
            {at.sums + products * kWarps * 4, at.area + attention, at.area + 3 * kThreads * 4});
        return at;
    }

  private:
    template <typename P>
    __device__ P* place(int bytes) const {
        return reinterpret_cast<P*>(reinterpret_cast<char*>(dynamic_shared()) + bytes);
    }
};

// All threads of a block: what its warps need before they go their ways.
template <typename T, typename Form, int kDim>
__device__ void prepare_block(const Step<T>& s, Shared<T, Form, kDim> at) {
    auto product = [](int inputs, int outputs, int together) -> Product {
        const int64_t sets = outputs / Form::kOutputs / together;
        const int first = static_cast<int>(sets * blockIdx.x / gridDim.x);
        const int end = static_cast<int>(sets * (blockIdx.x + 1) / gridDim.x);
        const int chunks = (inputs + Form::kChunk - 1) / Form::kChunk;
        const auto share = static_cast<uint32_t>(((1 << 20) + chunks - 1) / chunks);
        return {inputs, outputs, first, (end - first) * together, chunks, share};
    };
    auto copy = [&](const void* from, void* to, int bytes) {
        for (int i = threadIdx.x; i < bytes / 8; i += blockDim.x) {
            static_cast<uint64_t*>(to)[i] = static_cast<const uint64_t*>(from)[i];
        }
    };
    for (int i = threadIdx.x; i < 2 * at.kSlots; i += blockDim.x) prepare(at.arrivals() + i);
    if (threadIdx.x == 0) {
        const int wide = s.heads * kDim;
        at.products()[kQkv] = product(s.hidden, wide + 2 * s.kv_heads * kDim, 1);
        at.products()[kO] = product(wide, s.hidden, 1);
        at.products()[kGateUp] = product(s.hidden, 2 * s.inner, 2);
        at.products()[kDown] = product(s.inner, s.hidden, 1);
    }
    copy(s.layers, at.layers(), s.num_layers * static_cast<int>(sizeof(Layer)));
    copy(s.pools, at.pools(), s.num_layers * static_cast<int>(sizeof(Pool)));
    __syncthreads();
}

// A warp that fetches, each of its first lanes for another warp. Nobody writes weights, so it need
// not wait for anything but room.
template <typename T, typename Form, int kDim>
class Fetcher {
  public:
    __device__ Fetcher(const Step<T>& step, Shared<T, Form, kDim> shared)
        : s(step), at(shared), lane(threadIdx.x % kWarp) {
        warp = (threadIdx.x - kThreads) / kWarp * kFetched + lane;
    }

    __device__ void run() {
        next = {lane < kFetched ? 0 : s.num_layers, kQkv};
        number = warp;
        if (lane < kFetched) settle();
        int slot = warp * Form::kStages, left = Form::kStages, phase = 1;
        while (any_of_warp(next.layer < s.num_layers)) {
            const bool room = next.layer < s.num_layers && is_over(at.freed() + slot, phase);
            if (room) {
                const Matrix& of = (&at.layers()[next.layer].qkv)[next.product];
                Form::fetch(of, next, at.ring() + slot * Form::kSlot, at.arrivals() + slot);
                number += kWarps;
                settle();
                ++slot;
                if (--left == 0) slot = warp * Form::kStages, left = Form::kStages, phase ^= 1;
            }
            if (!any_of_warp(room)) doze();
        }
    }

  private:
    // From a chunk that may not exist to the next of the lane's warp that does.
    __device__ void settle() {
        while (number >= at.products()[next.product].chunks_of_all()) {
            number = warp;
            if (++next.product == kProducts) {
                next.product = 0;
                if (++next.layer == s.num_layers) return;
            }
        }
        const Product& p = at.products()[next.product];
        const int tile = p.tile_of(number);
        next.chunk = number - tile * p.chunks;
        next.inputs = p.inputs, next.outputs = p.outputs, next.group = s.group;
        next.tile = p.first + tile;
        if (next.product == kGateUp) {
            next.tile = p.first + tile / 2 + tile % 2 * (s.inner / Form::kOutputs);
        }
    }

    const Step<T>& s;
    const Shared<T, Form, kDim> at;
    int lane, warp;
    Fetch next;
    int number;  // of the chunk that comes next, in its product
};

// All other warps: one block's part of a step.
template <typename T, typename Form, int kDim>
class Block {
  public:
    __device__ Block(const Step<T>& step, Shared<T, Form, kDim> shared) : s(step), at(shared) {
        const int lane = threadIdx.x % kWarp;
        warp = threadIdx.x / kWarp;
        slot = warp * Form::kStages;
        head = static_cast<int>(blockIdx.x) % s.kv_heads;
        split = static_cast<int>(blockIdx.x) / s.kv_heads;
        each = s.heads / s.kv_heads;
        wait_for_inputs();
        end = *s.end;
        stamp = *s.launches * (s.num_layers + 1) + 1;
        if (lane < kDim / 4) {
            cosine = reinterpret_cast<const uint32_t*>(s.cosine)[lane];
            sine = reinterpret_cast<const uint32_t*>(s.sine)[lane];
        }
    }

    __device__ void run() {
        const Product last = at.products()[kDown];
        for (int i = threadIdx.x; i < last.count * Form::kOutputs / 2; i += kThreads) {
            const int pair_at = last.first * Form::kOutputs / 2 + i;
            const uint32_t two = reinterpret_cast<const uint32_t*>(s.x)[pair_at];
            float numbers[2];
            numbers_of<T>(two, numbers);
            at.own()[2 * i] = numbers[0], at.own()[2 * i + 1] = numbers[1];
            hand_over(s.stream + spread(pair_at, s.hidden), two, stamp);
        }
#pragma unroll 1
        for (layer = 0; layer < s.num_layers; ++layer, ++stamp) {
#pragma unroll 1
            for (int of = 0; of < kProducts; ++of) {
                if (of == kO) attend(at.layers()[layer], at.pools()[layer]);
                const Product p = at.products()[of];
                if (p.count == 0) continue;
                row(of, p);
                multiply(p);
                hand_over_results(of, p);
            }
        }
        // who comes last knows that nobody will ask for the number of launches any more
        if (threadIdx.x == 0 && arrive(s.done) == static_cast<int>(gridDim.x) - 1) {
            *s.done = 0;
            ++*s.launches;
        }
    }

  private:
    __device__ static void meet() { sync_first(kThreads); }

    // Wait for a product's input row, and normalise it if that is due.
    __device__ void row(int of, const Product& product) {
        const Layer& weights = at.layers()[layer];
        const int pairs = product.inputs / 4;
        const bool normed = of == kQkv || of == kGateUp;
        const Word* const from = of == kQkv      ? s.stream
                                 : of == kO      ? s.attended
                                 : of == kGateUp ? s.middle
                                                 : s.active;
        if (normed) {
            const void* const norm = of == kQkv ? weights.attention_norm : weights.mlp_norm;
            for (int i = threadIdx.x; i < pairs / 2; i += kThreads) {
                copy_async(at.norm() + i, static_cast<const uint4*>(norm) + i);
            }
            end_copy_group();
        }
        float squares = 0.0f;
#pragma unroll 1
        for (int base = threadIdx.x; base < pairs; base += kAtOnce * kThreads) {
            Word two[kAtOnce][2];
            const int count = min(kAtOnce, ceiling(pairs - base, kThreads));
            take(two, stamp, count, [&](int i) {
                const int word = 2 * (base + i * kThreads);
                return from + spread(word, product.inputs);
            });
#pragma unroll
            for (int i = 0; i < kAtOnce; ++i) {
                const int p = base + i * kThreads;
                if (p >= pairs) break;
                const uint2 four = {static_cast<uint32_t>(two[i][0]),
                                    static_cast<uint32_t>(two[i][1])};
                if (!normed) {
                    Form::keep(p, four, at.area(), at.parts());
                    continue;
                }
                at.raw()[p] = four;
                float x[4];
                numbers_of<T>(four, x);
                squares += x[0] * x[0] + x[1] * x[1] + x[2] * x[2] + x[3] * x[3];
            }
        }
        if (normed) {
            wait_for_copies<0>();
            squares = warp_sum(squares);
            if (threadIdx.x % kWarp == 0) at.scratch()[warp] = squares;
            meet();
            float all = 0.0f;
#pragma unroll
            for (int i = 0; i < kWarps / 8; ++i) {
                const Eight some = reinterpret_cast<const Eight*>(at.scratch())[i];
#pragma unroll
                for (int j = 0; j < 8; ++j) all += some.at[j];
            }
            const float scale = norm_scale(all, 4 * pairs, s.eps);
#pragma unroll 1
            for (int p = threadIdx.x; p < pairs; p += kThreads) {
                float x[4], w[4];
                numbers_of<T>(at.raw()[p], x);
                numbers_of<T>(reinterpret_cast<const uint2*>(at.norm())[p], w);
                const uint2 four = {pair<T>(x[0] * scale * w[0], x[1] * scale * w[1]),
                                    pair<T>(x[2] * scale * w[2], x[3] * scale * w[3])};
                Form::keep(p, four, at.area(), at.parts());
            }
        }
        meet();
    }

    // This block's tiles times the row: each warp's sums.
    __device__ void multiply(const Product& p) {
        const int outputs = p.count * Form::kOutputs, all = p.chunks_of_all();
        int tile = p.tile_of(warp), chunk = warp - tile * p.chunks;
        int begin = chunk;  // a tile's first chunk of this warp
        Form form;
        form.clear();
#pragma unroll 1
        for (int number = warp; number < all;) {
            wait_for(at.arrivals() + slot, phase);
            form.add(at.ring() + slot * Form::kSlot, at.area(), at.parts(), chunk, p.inputs);
            __syncwarp();  // everybody has read it
            if (threadIdx.x % kWarp == 0) release(at.freed() + slot);
            if (++slot == (warp + 1) * Form::kStages) slot = warp * Form::kStages, phase ^= 1;
            number += kWarps, chunk += kWarps;
            if (chunk < p.chunks) continue;
            float* const to = at.sums() + begin * outputs + tile * Form::kOutputs;
            form.each([&](int i, float sum) { to[i] = sum; });
            form.clear();
            tile = p.tile_of(number);
            begin = chunk = number - tile * p.chunks;
        }
        meet();
    }

    // What the warps have of an output of this block, added up; rounded.
    __device__ float total(const Product& p, int output, float bias) const {
        const int outputs = p.count * Form::kOutputs, parts = min(p.chunks, kWarps);
        const float* const from = at.sums() + output;
        float sum = 0.0f;
#pragma unroll 4
        for (int i = 0; i < parts; ++i) sum += from[i * outputs];
        return to_float(from_float<T>(sum + bias));
    }

    // Of gates and ups, silu(gate) * up; what is for the residual stream, with what that is so far.
    __device__ void hand_over_results(int of, const Product& p) {
        const T* const bias = static_cast<const T*>((&at.layers()[layer].qkv)[of].bias);
        const int gated = of == kGateUp ? 1 : 0;  // then neighbours are a gate and its up
        const bool grows = of == kO || of == kDown, ends = of == kDown && layer + 1 == s.num_layers;
        const int outputs = p.count * Form::kOutputs, first = p.first * Form::kOutputs;
        Word* const to = of == kQkv      ? s.qkv
                         : of == kO      ? s.middle
                         : of == kGateUp ? s.active
                                         : s.stream;
#pragma unroll 1
        for (int base = threadIdx.x / kWarp * kWarp; base < outputs; base += kThreads) {
            const int i = base + threadIdx.x % kWarp, output = i >> gated, up = i & gated;
            const int number_of = first + output + up * s.inner;
            float number = 0.0f;
            if (i < outputs) {
                number = total(p,
                               ((output / Form::kOutputs << gated) + up) * Form::kOutputs +
                                   output % Form::kOutputs,
                               bias == nullptr ? 0.0f : to_float(bias[number_of]));
                if (grows) number = at.own()[i] = to_float(from_float<T>(at.own()[i] + number));
            }
            if (gated) {
                const float other = __shfl_xor_sync(0xffffffffu, number, 1);
                number = __fdividef(number, 1.0f + __expf(-number)) * other;
            }
            const float other = __shfl_xor_sync(0xffffffffu, number, 1 << gated);
            if (i >= outputs || i % (2 << gated) != 0) continue;
            const uint32_t two = pair<T>(number, other);
            const int word = (first + output) / 2;
            if (ends) {
                reinterpret_cast<uint32_t*>(s.out)[word] = two;
            } else {
                const int lies = of == kQkv ? word : spread(word, gated ? s.inner : s.hidden);
                hand_over(to + lies, two, stamp + (of == kDown));
            }
        }
    }

    // Attention of a key head's queries to some of its positions.
    __device__ void attend(const Layer& weights, const Pool& pool) {
        if (weights.window != window) share_out(static_cast<int>(weights.window));
        meet();  // sums of the product before this are used
        if (begin >= stop) return;
        const int lane = threadIdx.x % kWarp, piece = lane % kLanes;
        const int mine = begin + first_position();

        float* const q = reinterpret_cast<float*>(at.area());              // (each, kDim)
        uint4* const newest = at.area() + each * (kDim / 4);               // key, value
        float* const found = reinterpret_cast<float*>(newest + kDim / 4);  // (warps, each, kDim)
        float* const peaks = found + kWarps * each * kDim;                 // (warps, each)
        float* const totals = peaks + kWarps * each;

        const uint4* const keys = static_cast<const uint4*>(pool.keys);
        const uint4* const values = static_cast<const uint4*>(pool.values);
        uint4 k[kPositions], v[kPositions];
        auto fetch = [&](int from) {
#pragma unroll
            for (int i = 0; i < kPositions; ++i) {
                const int position = from + i * kPass + mine;
                k[i] = v[i] = {0, 0, 0, 0};
                if (position < stop && position < end - 1) {
                    const int64_t row = from == 0 ? rows[i] : row_of(position);
                    k[i] = load_once(keys + row * kLanes + piece);
                    v[i] = load_once(values + row * kLanes + piece);
                }
            }
        };
        fetch(0);
        for (int row = warp; row < each + (stop == end ? 2 : 0); row += kWarps) {
            turned(weights, pool, row, q, newest);
        }
        meet();
#pragma unroll 1
        for (int from = 0; begin + from < stop; from += kBatch) {
#pragma unroll
            for (int i = 0; i < kPositions; ++i) {
                if (stop == end && from + i * kPass + mine == end - 1) {  // who has it there
                    k[i] = newest[piece], v[i] = newest[kLanes + piece];
                }
            }
#pragma unroll 1
            for (int h = 0; h < each; ++h) {
                float scores[kPositions], peak = kLow;
                const Eight query = *reinterpret_cast<Eight*>(q + h * kDim + piece * 8);
#pragma unroll
                for (int i = 0; i < kPositions; ++i) {
                    float own_key[8], score = 0.0f;
                    numbers_of<T>(k[i], own_key);
#pragma unroll
                    for (int j = 0; j < 8; ++j) score += query.at[j] * own_key[j];
#pragma unroll
                    for (int other = 1; other < kLanes; other *= 2) {
                        score += __shfl_xor_sync(0xffffffffu, score, other);
                    }
                    scores[i] = from + i * kPass + mine < stop ? score : 2 * kLow;
                    peak = fmaxf(peak, scores[i]);
                }
#pragma unroll
                for (int other = kLanes; other < kWarp; other *= 2) {
                    peak = fmaxf(peak, __shfl_xor_sync(0xffffffffu, peak, other));
                }
                const int of = warp * each + h;
                const bool first = from == 0;
                const float before = first ? kLow : peaks[of];
                peak = fmaxf(peak, before);
                float weight = 0.0f, sums[8] = {};
#pragma unroll
                for (int i = 0; i < kPositions; ++i) {
                    float value[8];
                    numbers_of<T>(v[i], value);
                    const float p = exp2_near(scores[i] - peak);
                    weight += p;
#pragma unroll
                    for (int j = 0; j < 8; ++j) sums[j] += p * value[j];
                }
#pragma unroll
                for (int other = kLanes; other < kWarp; other *= 2) {
                    weight += __shfl_xor_sync(0xffffffffu, weight, other);
#pragma unroll
                    for (int j = 0; j < 8; ++j) {
                        sums[j] += __shfl_xor_sync(0xffffffffu, sums[j], other);
                    }
                }
                const float kept = first ? 0.0f : exp2_near(before - peak);
                const float old = first ? 0.0f : totals[of];
                __syncwarp();  // all have read what is replaced now
                if (lane < kLanes) {
                    Eight* const to = reinterpret_cast<Eight*>(found + of * kDim + piece * 8);
                    Eight now = *to;
#pragma unroll
                    for (int j = 0; j < 8; ++j) {
                        now.at[j] = (first ? 0.0f : now.at[j] * kept) + sums[j];
                    }
                    *to = now;
                }
                if (lane == 0) peaks[of] = peak, totals[of] = old * kept + weight;
                __syncwarp();
            }
            if (begin + from + kBatch < stop) fetch(from + kBatch);
        }
        meet();
        merge(found, peaks, totals);
        meet();  // the row of the next product comes to the same memory
    }

    // A query head of a key head (row: which one), or after those its key and its value: as they
    // come from the product, normalised and turned. Keys and values are stored, too.
    __device__ void turned(const Layer& weights, const Pool& pool, int row, float* q,
                           uint4* newest) {
        constexpr int kHalf = kDim / 4;  // words
        const int lane = threadIdx.x % kWarp;
        const bool is_query = row < each;
        const bool is_value = row > each;
        const int number =
            is_query ? head * each + row : s.heads + (is_value ? s.kv_heads : 0) + head;
        const bool used = lane < kHalf;
        float low[2] = {}, high[2] = {};
        uint32_t factors[2] = {};
        if (used && !is_value && weights.head_norm != nullptr) {
            const auto weight = static_cast<const uint32_t*>(weights.head_norm);
            factors[0] = weight[number * (kDim / 2) + lane];
            factors[1] = weight[number * (kDim / 2) + lane + kHalf];
        }
        if (used) {
            const Word* const from = s.qkv + number * (kDim / 2) + lane;
            Word a = look_at(from), b = look_at(from + kHalf);
            while (!is_new(a, stamp) || !is_new(b, stamp)) {
                a = look_at(from), b = look_at(from + kHalf);
            }
            numbers_of<T>(static_cast<uint32_t>(a), low);
            numbers_of<T>(static_cast<uint32_t>(b), high);
        }
        if (!is_value) {
            if (weights.head_norm != nullptr) {
                float squares = low[0] * low[0] + high[0] * high[0];
                squares += low[1] * low[1] + high[1] * high[1];
                const float scale = norm_scale(warp_sum(squares), kDim, s.head_eps);
                float w[2];
                numbers_of<T>(factors[0], w);
                const uint32_t a = pair<T>(low[0] * scale * w[0], low[1] * scale * w[1]);
                numbers_of<T>(factors[1], w);
                const uint32_t b = pair<T>(high[0] * scale * w[0], high[1] * scale * w[1]);
                numbers_of<T>(a, low);
                numbers_of<T>(b, high);
            }
            float c[2], n[2];
            numbers_of<T>(cosine, c);
            numbers_of<T>(sine, n);
#pragma unroll
            for (int j = 0; j < 2; ++j) {
                const float a = low[j], b = high[j];
                low[j] = a * c[j] - b * n[j];
                high[j] = b * c[j] + a * n[j];
            }
        }
        if (!used) return;
        const uint32_t a = pair<T>(low[0], low[1]), b = pair<T>(high[0], high[1]);
        if (is_query) {
            const float factor = 1.4426950408889634f * rsqrtf(static_cast<float>(kDim));
            numbers_of<T>(a, low);
            numbers_of<T>(b, high);
            float* const to = q + row * kDim + lane * 2;
            to[0] = low[0] * factor, to[1] = low[1] * factor;
            to[kDim / 2] = high[0] * factor, to[kDim / 2 + 1] = high[1] * factor;
            return;
        }
        uint32_t* const kept =
            reinterpret_cast<uint32_t*>(newest) + (is_value ? kDim / 2 : 0) + lane;
        kept[0] = a, kept[kHalf] = b;
        const int64_t where = int64_t{newest_row} * (kDim / 2);
        uint32_t* const to =
            static_cast<uint32_t*>(is_value ? pool.values : pool.keys) + where + lane;
        to[0] = a, to[kHalf] = b;
    }

    // What the warps found becomes what the block found, and what the splits of a head found the
    // head's result. Splits share the heads out.
    __device__ void merge(const float* found, const float* peaks, const float* weights) {
#pragma unroll 1
        for (int i = threadIdx.x; i < each * kDim; i += kThreads) {
            const int h = i / kDim, at_dim = i % kDim;
            float peak = kLow, weight = 0.0f, sum = 0.0f;
#pragma unroll 4
            for (int w = 0; w < kWarps; ++w) peak = fmaxf(peak, peaks[w * each + h]);
#pragma unroll 4
            for (int w = 0; w < kWarps; ++w) {
                const float factor = exp2_near(peaks[w * each + h] - peak);
                weight += weights[w * each + h] * factor;
                sum += found[(w * each + h) * kDim + at_dim] * factor;
            }
            if (splits == 1) {
                attended(head * each + h, at_dim, sum / weight);
                continue;
            }
            Word* const to = part(head * each + h, split);
            hand_over(to + 2 + at_dim, __float_as_uint(sum), stamp);
            if (at_dim == 0) {
                hand_over(to, __float_as_uint(peak), stamp);
                hand_over(to + 1, __float_as_uint(weight), stamp);
            }
        }
        if (splits == 1) return;
        constexpr int kTurns = kThreads / kDim;  // groups of threads share the splits out
        const int turn = threadIdx.x / kDim, at_dim = threadIdx.x % kDim;
        float* const gathered = reinterpret_cast<float*>(at.area());
#pragma unroll 1
        for (int h = split; h < each; h += splits) {
            float peak = kLow, weight = 0.0f, sum = 0.0f;
#pragma unroll 1
            for (int first = turn; first < splits; first += kAtOnce * kTurns) {
                Word about[kAtOnce][2], number[kAtOnce];
#pragma unroll
                for (int i = 0; i < kAtOnce; ++i) {
                    if (first + i * kTurns >= splits) break;
                    const Word* const from = part(head * each + h, first + i * kTurns);
                    look_at_two(from, about[i]);
                    number[i] = look_at(from + 2 + at_dim);
                }
#pragma unroll
                for (int i = 0; i < kAtOnce; ++i) {
                    if (first + i * kTurns >= splits) break;
                    const Word* const from = part(head * each + h, first + i * kTurns);
                    while (!is_new(about[i][0], stamp) || !is_new(about[i][1], stamp) ||
                           !is_new(number[i], stamp)) {
                        look_at_two(from, about[i]);
                        number[i] = look_at(from + 2 + at_dim);
                    }
                    add(peak, weight, sum, float_of(about[i][0]), float_of(about[i][1]),
                        float_of(number[i]));
                }
            }
            meet();  // what was in the area is used
            gathered[threadIdx.x] = peak;
            gathered[kThreads + threadIdx.x] = weight;
            gathered[2 * kThreads + threadIdx.x] = sum;
            meet();
            if (turn > 0) continue;
            for (int i = threadIdx.x + kDim; i < kThreads; i += kDim) {
                add(peak, weight, sum, gathered[i], gathered[kThreads + i],
                    gathered[2 * kThreads + i]);
            }
            attended(head * each + h, at_dim, sum / weight);
        }
    }

    // Two parts of a softmax's sum become one.
    __device__ static void add(float& peak, float& weight, float& sum, float peak_b, float weight_b,
                               float sum_b) {
        const float high = fmaxf(peak, peak_b), a = exp2_near(peak - high),
                    b = exp2_near(peak_b - high);
        peak = high, weight = weight * a + weight_b * b, sum = sum * a + sum_b * b;
    }

    __device__ Word* part(int head, int split) const {
        return s.parts + (static_cast<int64_t>(head) * kMostSplits + split) * (kDim + 2);
    }
    __device__ void attended(int head, int at_dim, float number) const {
        const float other = __shfl_xor_sync(0xffffffffu, number, 1);
        if (at_dim % 2 == 0) {
            const int word = spread((head * kDim + at_dim) / 2, s.heads * kDim);
            hand_over(s.attended + word, pair<T>(number, other), stamp);
        }
    }

    // Which positions this block attends to: a key head's are split where they are many.
    __device__ void share_out(int newest_seen) {
        window = newest_seen;
        const int start = window > 0 && end > window ? end - window : 0, seen = end - start;
        const int blocks = static_cast<int>(gridDim.x) / s.kv_heads;
        const int wanted = min(min(ceiling(seen, kBatch), blocks), kMostSplits);
        const int length = ceiling(seen, wanted);
        splits = ceiling(seen, length);
        begin = start + split * length;
        stop = split < splits ? min(end, begin + length) : begin;
#pragma unroll
        for (int i = 0; i < kPositions; ++i) {
            const int position = begin + i * kPass + first_position();
            if (position < stop) rows[i] = row_of(position);
        }
        newest_row = row_of(end - 1);
    }
    __device__ int first_position() const {
        return warp * (kWarp / kLanes) + threadIdx.x % kWarp / kLanes;
    }
    // Where a position's keys and values are, in heads of the pool.
    __device__ int row_of(int position) const {
        const int page = s.pages[position / s.page_size];
        return (page * s.page_size + position % s.page_size) * s.kv_heads + head;
    }
    __device__ static int ceiling(int a, int b) { return (a + b - 1) / b; }

    static constexpr int kLanes = kDim / 8;          // that share a position
    static constexpr int kPass = kThreads / kLanes;  // positions that the block looks at
    static constexpr int kBatch = kPass * kPositions;

    const Step<T>& s;
    const Shared<T, Form, kDim> at;
    int warp, slot, phase = 0, layer = 0, end = 0;
    uint32_t stamp = 0, cosine = 0, sine = 0;
    // attention: a key head, how many query heads it has, and the positions that are this block's
    int head, each, split, splits = 1, window = -1, begin = 0, stop = 0;
    int rows[kPositions] = {}, newest_row = 0;
};

}  // namespace mega
