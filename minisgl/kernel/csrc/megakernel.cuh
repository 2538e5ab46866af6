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

#include "bulk.cuh"
#include "marlin.cuh"
#include "rows.cuh"

namespace mega {

constexpr int kWarps = 16;
constexpr int kThreads = kWarps * kWarp;      // that compute; some warps more fetch
constexpr int kFetchers = 4;                  // as many as take no registers from the others
constexpr int kFetched = kWarps / kFetchers;  // warps that one of them fetches for
constexpr int kAllThreads = kThreads + kFetchers * kWarp;
constexpr int kAtOnce = 2;              // pairs of words that a thread waits for
constexpr int kHeads = 16;              // of queries that share a key head, at most
constexpr int kTile = 8;                // positions whose scores a warp computes
constexpr int kBatch = kWarps * kTile;  // positions that a block attends to at a time
constexpr int kFewest = 64;             // positions that are worth a block
constexpr int kMostSplits = 16;         // of a head's positions
constexpr int kMergers = 8;             // threads that add up a number of the splits
constexpr float kLow = -1e30f;          // less than any score

// A number handed over, below its stamp.
using Word = uint64_t;

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
    int own;     // of the residual stream, what the block adds to
    int norm;    // its weights
    int area;    // an input row; or what attention needs
    int inputs;  // the row's sums, if the form of the weights asks for them
    int sums;    // behind any row: whoever is late may add sums while the next row comes
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
    // What blocks hand over: two numbers a word, but one float of parts.
    Word *stream, *qkv, *parts, *attended, *middle, *active;
    uint32_t* launches;  // before this one
    int* done;           // blocks: 0 before and after
};

// A warp's next chunk to fetch, and of which matrix.
struct Fetch {
    int layer, product, tile, chunk;
    int inputs, outputs, group;
};

// Weights in 16 bits, (outputs, inputs) as they were read. A tensor core's product of two outputs:
// a row of the left side is an eighth of an output's inputs, a column of the right the eighth of
// the token's; of all sums those are wanted in which both are the same eighth.
template <typename T>
struct Dense {
    static constexpr int kOutputs = 2;  // of a tile
    static constexpr int kChunk = 512;  // inputs that a warp multiplies at a time; the last: fewer
    static constexpr int kStages = 4;   // chunks of a warp on their way
    static constexpr int kRow = kChunk / 8;  // 16-byte pieces
    static constexpr int kSlot = kOutputs * kRow;
    static constexpr int kSummed = 0;

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

    float sums[4];  // eighth g of output 0 with two of the token's, then of output 1

    __device__ void clear() {
#pragma unroll
        for (int r = 0; r < 4; ++r) sums[r] = 0.0f;
    }

    // x: the chunk's inputs, so many pieces of them.
    __device__ void add(const uint4* slot, const uint4* x, int pieces, const float*) {
        const int lane = threadIdx.x % kWarp;
#pragma unroll
        for (int i = 0; i < kRow / kWarp; ++i) {
            const int at = lane + i * kWarp;
            uint4 number = {0, 0, 0, 0}, first = number, second = number;
            if (at < pieces) number = x[at], first = slot[at], second = slot[kRow + at];
            const uint32_t low[4] = {first.x, second.x, first.y, second.y};
            const uint32_t high[4] = {first.z, second.z, first.w, second.w};
            const uint32_t right[4] = {number.x, number.y, number.z, number.w};
            multiply_add<T>(sums, low, right);
            multiply_add<T>(sums, high, right + 2);
        }
    }

    // use(output of the tile, sum), each once in a warp.
    template <typename Use>
    __device__ void each(Use use) const {
        // lane g * 4 + g / 2 has eighth g; neighbours go on with one output each
        const int lane = threadIdx.x % kWarp;
        const bool odd = lane / 4 % 2;
        float sum = odd ? sums[3] : sums[0];
        sum += __shfl_xor_sync(0xffffffffu, odd ? sums[1] : sums[2], 4);
        sum += __shfl_xor_sync(0xffffffffu, sum, 9);
        sum += __shfl_xor_sync(0xffffffffu, sum, 18);
        if (lane == 0 || lane == 4) use(lane / 4, sum);
    }
};

// Weights of four bits, as kernel/marlin.py arranges them: the left side, the token fills all
// columns of the right. What is multiplied is a code and the number that its bits lie over, at
// once; that number and the zero, times the sum of the inputs, are taken off in float32.
template <typename T, int kShared>
struct FourBits {
    static constexpr int kScaled = kShared;
    static constexpr int kOutputs = marlin::kStrip;
    static constexpr int kChunk = marlin::kInputs;
    static constexpr int kParts = kChunk / kScaled;  // of a chunk, with zeros and scales each
    static constexpr int kStages = kParts > 1 ? 3 : 4;
    static constexpr int kSlot = marlin::kUnit + kParts * 8;
    static constexpr int kSummed = 32;  // inputs whose sums are asked for

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

    float sums[4];  // outputs g, g + 8 and so on

    __device__ void clear() {
#pragma unroll
        for (int r = 0; r < 4; ++r) sums[r] = 0.0f;
    }

    // inputs: their sums.
    __device__ void add(const uint4* slot, const uint4* x, int, const float* inputs) {
        const int lane = threadIdx.x % kWarp;
#pragma unroll
        for (int part = 0; part < kParts; ++part) {
            float now[2][2][4] = {}, all = 0.0f;
#pragma unroll
            for (int i = 0; i < kScaled / 32; ++i) {
                const int step = part * (kScaled / 32) + i;
                all += inputs[step];
                const uint4 four = x[step * 4 + lane % 4], packed = slot[step * kWarp + lane];
                const uint32_t right[4] = {four.x, four.y, four.z, four.w};
                const uint32_t words[4] = {packed.x, packed.y, packed.z, packed.w};
#pragma unroll
                for (int w = 0; w < 4; ++w) {
                    uint32_t left[4];
#pragma unroll
                    for (int r = 0; r < 4; ++r) {
                        left[r] = two_codes(words[w] >> (4 * r), marlin::Magic<T>::kBoth);
                    }
                    multiply_add<T>(now[w / 2][w % 2], left, right + w % 2 * 2);
                }
            }
            const uint4 group = slot[marlin::kUnit + part * 8 + lane / 4];
            const uint32_t rows[4] = {group.x, group.y, group.z, group.w};
#pragma unroll
            for (int r = 0; r < 4; ++r) {
                const float zero = kOver + static_cast<float>(rows[r] >> 16);
                const float sum = now[r / 2][0][r % 2 * 2] + now[r / 2][1][r % 2 * 2];
                sums[r] += marlin::scale_of(rows[r]) * (sum - zero * all);
            }
        }
    }

    template <typename Use>
    __device__ void each(Use use) const {
        const int g = threadIdx.x % kWarp / 4, t = threadIdx.x % 4;
#pragma unroll
        for (int r = 0; r < 4; ++r) {
            if (t == r) use(r * 8 + g, sums[r]);
        }
    }

  private:
    static constexpr float kOver = marlin::Magic<T>::kBoth == 0x64006400 ? 1024.0f : 128.0f;
};

// What attention needs in shared memory, in bytes; rows are apart so that banks take turns.
template <int kDim>
struct Attention {
    static constexpr int kQuery = kDim * 2 + 64;     // of a row of queries
    static constexpr int kValue = kDim * 2 + 16;     // of a position's values
    static constexpr int kWeight = kBatch * 2 + 16;  // of a head's weights
    static constexpr int kWeights = kHeads * kQuery;
    static constexpr int kPeaks = kWeights + kHeads * kWeight;    // (kHeads, kWarps) floats
    static constexpr int kNewest = kPeaks + kHeads * kWarps * 4;  // key, value
    static constexpr int kValues = kNewest + 2 * kDim * 2;
    static constexpr int kBytes = kValues + kBatch * kValue;
};

struct alignas(16) Eight {
    float at[8];
};

// Two words, once both carry the stamp.
__device__ inline void take(const Word* from, uint32_t stamp, Word (&two)[2]) {
    while (two[0] >> 32 != stamp || two[1] >> 32 != stamp) look_at_two(from, two);
}

template <typename T>
__device__ inline void numbers_of(Word word, float (&two)[2]) {
    const auto both = static_cast<uint32_t>(word);
    two[0] = to_float(reinterpret_cast<const T(&)[2]>(both)[0]);
    two[1] = to_float(reinterpret_cast<const T(&)[2]>(both)[1]);
}

template <typename T>
__device__ inline void numbers_of(uint2 words, float (&four)[4]) {
    float two[2][2];
    numbers_of<T>(words.x, two[0]);
    numbers_of<T>(words.y, two[1]);
#pragma unroll
    for (int i = 0; i < 4; ++i) four[i] = two[i / 2][i % 2];
}

__device__ inline float float_of(Word word) {
    return __uint_as_float(static_cast<uint32_t>(word));
}

enum { kQkv, kO, kGateUp, kDown, kProducts };

// A block's part of a product: tiles that lie one after the other; of gates and ups as many tiles
// of gates, each of them followed by its tile of ups.
struct Product {
    int inputs, outputs, first, count, chunks;
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
    __device__ float* inputs() const { return place<float>(s.at.inputs); }
    __device__ float* sums() const { return place<float>(s.at.sums); }

    static Places places(const Step<T>& s, int blocks) {
        auto outputs = [&](int all) {  // of a block at most
            return (all / Form::kOutputs + blocks - 1) / blocks * Form::kOutputs;
        };
        const int wide = s.heads * kDim;
        const int widest = std::max({s.hidden, s.inner, wide});
        const int products = std::max(
            {outputs(wide + 2 * s.kv_heads * kDim), outputs(s.hidden), 2 * outputs(s.inner)});
        Places at;
        at.layers = kBehind;
        at.pools = at.layers + s.num_layers * static_cast<int>(sizeof(Layer));
        at.own = at.pools + s.num_layers * static_cast<int>(sizeof(Pool));
        at.norm = at.own + (outputs(s.hidden) * 4 + 15) / 16 * 16;
        at.area = at.norm + s.hidden * 2;
        at.inputs = at.area + widest * 2;
        at.sums = at.inputs + (Form::kSummed ? widest / Form::kSummed * 4 : 0);
        at.end = std::max(at.sums + products * kWarps * 4, at.area + Attention<kDim>::kBytes);
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
        return {inputs, outputs, first, (end - first) * together,
                (inputs + Form::kChunk - 1) / Form::kChunk};
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
        next = {lane < kFetched ? 0 : s.num_layers, kQkv, 0, warp};
        tile = 0;
        if (lane < kFetched) settle();
        int slot = warp * Form::kStages, left = Form::kStages, phase = 1;
        while (any_of_warp(next.layer < s.num_layers)) {
            const bool room = next.layer < s.num_layers && is_over(at.freed() + slot, phase);
            if (room) {
                const Matrix& of = (&at.layers()[next.layer].qkv)[next.product];
                Form::fetch(of, next, at.ring() + slot * Form::kSlot, at.arrivals() + slot);
                next.chunk += kWarps;
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
        while (true) {
            const Product& p = at.products()[next.product];
            for (; tile < p.count && next.chunk >= p.chunks; ++tile) next.chunk -= p.chunks;
            if (tile < p.count) break;
            tile = 0, next.chunk = warp;
            if (++next.product == kProducts) {
                next.product = 0;
                if (++next.layer == s.num_layers) return;
            }
        }
        const Product& p = at.products()[next.product];
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
    int tile;  // of this block's, that it is in
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
            hand_over(s.stream + pair_at, two, stamp);
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
        uint2* const to = reinterpret_cast<uint2*>(at.area());
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
#pragma unroll
            for (int i = 0; i < kAtOnce; ++i) {
                const int p = base + i * kThreads;
                if (p < pairs) look_at_two(from + 2 * p, two[i]);
            }
#pragma unroll
            for (int i = 0; i < kAtOnce; ++i) {
                const int p = base + i * kThreads;
                if (p >= pairs) break;
                take(from + 2 * p, stamp, two[i]);
                to[p] = {static_cast<uint32_t>(two[i][0]), static_cast<uint32_t>(two[i][1])};
                float x[4];
                numbers_of<T>(to[p], x);
                squares += x[0] * x[0] + x[1] * x[1] + x[2] * x[2] + x[3] * x[3];
            }
        }
        float scale = 1.0f;
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
            scale = norm_scale(all, 4 * pairs, s.eps);
        }
        if (normed || Form::kSummed > 0) {
#pragma unroll 1
            for (int p = threadIdx.x; p < pairs; p += kThreads) {
                if (normed) {
                    float x[4], w[4];
                    numbers_of<T>(to[p], x);
                    numbers_of<T>(reinterpret_cast<const uint2*>(at.norm())[p], w);
                    to[p] = {pair<T>(x[0] * scale * w[0], x[1] * scale * w[1]),
                             pair<T>(x[2] * scale * w[2], x[3] * scale * w[3])};
                }
                summed(p, to[p]);
            }
        }
        meet();
    }

    // The sums of inputs that lie together, whose pairs are with threads that do.
    __device__ void summed(int p, uint2 numbers) {
        if constexpr (Form::kSummed > 0) {
            float x[4];
            numbers_of<T>(numbers, x);
            float sum = x[0] + x[1] + x[2] + x[3];
#pragma unroll
            for (int other = 1; other < Form::kSummed / 4; other *= 2) {
                sum += __shfl_xor_sync(0xffffffffu, sum, other);
            }
            if (p % (Form::kSummed / 4) == 0) at.inputs()[p / (Form::kSummed / 4)] = sum;
        }
    }

    // This block's tiles times the row: each warp's sums.
    __device__ void multiply(const Product& p) {
        const int outputs = p.count * Form::kOutputs;
        float* to = at.sums();
        int left = p.count, chunk = warp;
        for (; chunk >= p.chunks && left > 0; chunk -= p.chunks) --left, to += Form::kOutputs;
        int begin = chunk;  // a tile's first chunk of this warp
        Form form;
        form.clear();
#pragma unroll 1
        while (left > 0) {
            wait_for(at.arrivals() + slot, phase);
            const int first = chunk * Form::kChunk;
            form.add(at.ring() + slot * Form::kSlot, at.area() + first / 8, (p.inputs - first) / 8,
                     at.inputs() + first / 32);
            __syncwarp();  // everybody has read it
            if (threadIdx.x % kWarp == 0) release(at.freed() + slot);
            if (++slot == (warp + 1) * Form::kStages) slot = warp * Form::kStages, phase ^= 1;
            chunk += kWarps;
            if (chunk < p.chunks) continue;
            form.each([&](int i, float sum) { to[begin * outputs + i] = sum; });
            form.clear();
            for (; chunk >= p.chunks && left > 0; chunk -= p.chunks) --left, to += Form::kOutputs;
            begin = chunk;
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
            if (ends) {
                reinterpret_cast<uint32_t*>(s.out)[(first + output) / 2] = two;
            } else {
                hand_over(to + (first + output) / 2, two, stamp + (of == kDown));
            }
        }
    }

    // Attention of a key head's queries to some of its positions, all heads at once by tensor
    // cores. A warp computes the scores of a tile of positions and, of all positions, a few numbers
    // of the result. Weights are rounded to numbers of 16 bits, also where they are summed.
    __device__ void attend(const Layer& weights, const Pool& pool) {
        if (weights.window != window) share_out(static_cast<int>(weights.window));
        meet();  // sums of the product before this are used
        if (begin >= stop) return;
        const int lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
        const int mine = begin + warp * kTile + g;  // position
        const float factor = 1.4426950408889634f * rsqrtf(static_cast<float>(kDim));

        uint4 key[kPieces];
        auto fetch = [&](int from) {
            const int position = from + mine;
            const bool known = position < stop && position < end - 1;
            const int64_t row = from == 0 || !known ? first_row : row_of(position);
#pragma unroll
            for (int i = 0; i < kPieces; ++i) {
                const int piece = t + 4 * i;
                key[i] = {0, 0, 0, 0};
                if (known) {
                    key[i] = load_once(static_cast<const uint4*>(pool.keys) + row * kLanes + piece);
                    copy_async(value(warp * kTile + g) + piece,
                               static_cast<const uint4*>(pool.values) + row * kLanes + piece);
                } else {
                    value(warp * kTile + g)[piece] = {0, 0, 0, 0};
                }
            }
            end_copy_group();
        };
        fetch(0);
        for (int row = warp; row < each + (stop == end ? 2 : 0); row += kWarps) {
            turned(weights, pool, row);
        }
        meet();
        float found[4] = {}, total[4] = {}, peaks[2] = {kLow, kLow};  // of heads g and g + 8
#pragma unroll 1
        for (int from = 0; begin + from < stop; from += kBatch) {
            wait_for_copies<0>();
            if (stop == end && from + mine == end - 1) {  // then this block has it in shared memory
#pragma unroll
                for (int i = 0; i < kPieces; ++i) {
                    key[i] = newest()[t + 4 * i];
                    value(warp * kTile + g)[t + 4 * i] = newest()[kLanes + t + 4 * i];
                }
            }
            float scores[2][4] = {};
#pragma unroll
            for (int i = 0; i < kPieces; ++i) {
                uint4 low = {0, 0, 0, 0}, high = {0, 0, 0, 0};
                if (g < each) low = query(g)[t + 4 * i];
                if (g + 8 < each) high = query(g + 8)[t + 4 * i];
                const uint32_t left[2][4] = {{low.x, high.x, low.y, high.y},
                                             {low.z, high.z, low.w, high.w}};
                const uint32_t right[4] = {key[i].x, key[i].y, key[i].z, key[i].w};
                multiply_add<T>(scores[0], left[0], right);
                multiply_add<T>(scores[1], left[1], right + 2);
            }
            float number[2][2];
#pragma unroll
            for (int r = 0; r < 2; ++r) {
#pragma unroll
                for (int j = 0; j < 2; ++j) {
                    const int position = begin + from + warp * kTile + 2 * t + j;
                    const float score = scores[0][2 * r + j] + scores[1][2 * r + j];
                    number[r][j] = position < stop ? score * factor : 2 * kLow;
                }
                float peak = fmaxf(number[r][0], number[r][1]);
                peak = fmaxf(peak, __shfl_xor_sync(0xffffffffu, peak, 1));
                peak = fmaxf(peak, __shfl_xor_sync(0xffffffffu, peak, 2));
                if (t == 0) peaks_of(g + 8 * r)[warp] = peak;
            }
            meet();
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                const int h = g + 8 * r;
                if (h >= each) continue;
                float peak = peaks[r];
#pragma unroll
                for (int i = 0; i < kWarps / 4; ++i) {
                    const float4 four = reinterpret_cast<const float4*>(peaks_of(h))[i];
                    peak = fmaxf(peak, fmaxf(fmaxf(four.x, four.y), fmaxf(four.z, four.w)));
                }
                reinterpret_cast<uint32_t*>(weight(h))[warp * (kTile / 2) + t] =
                    pair<T>(exp2_near(number[r][0] - peak), exp2_near(number[r][1] - peak));
                const float kept = exp2_near(peaks[r] - peak);
                peaks[r] = peak;
#pragma unroll
                for (int j = 0; j < 2; ++j) found[2 * r + j] *= kept, total[2 * r + j] *= kept;
            }
            meet();
            if (warp < kDim / 8) gather(min(kBatch, stop - begin - from), found, total);
            if (begin + from + kBatch >= stop) break;
            meet();
            fetch(from + kBatch);
        }
        if (warp < kDim / 8) {
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                const int h = g + 8 * r;
                if (h >= each) continue;
                attended_by_block(head * each + h, warp * 8 + 2 * t, peaks[r], total[2 * r],
                                  found[2 * r], found[2 * r + 1]);
            }
        }
        if (splits > 1) merge();
        meet();  // the row of the next product comes to the same memory
    }

    // Of the batch's first so many positions: weights times 8 of the values' numbers, and weights.
    __device__ void gather(int positions, float (&found)[4], float (&total)[4]) {
        const int lane = threadIdx.x % kWarp;
        const uint32_t one = pair<T>(1.0f, 1.0f), ones[2] = {one, one};
#pragma unroll 1
        for (int at = 0; at < positions; at += 32) {
            uint32_t columns[4];
            load_matrices<true>(columns, value(at + lane) + warp);
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                uint32_t rows[4];
                load_matrices<false>(rows, weight(lane % 16) + at / 8 + 2 * i + lane / 16);
                multiply_add<T>(found, rows, columns + 2 * i);
                multiply_add<T>(total, rows, ones);
            }
        }
    }

    // A query head of a key head (row: which one), or after those its key and its value: as they
    // come from the product, normalised and turned. Keys and values are stored, too.
    __device__ void turned(const Layer& weights, const Pool& pool, int row) {
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
            while (a >> 32 != stamp) a = look_at(from);
            while (b >> 32 != stamp) b = look_at(from + kHalf);
            numbers_of<T>(a, low);
            numbers_of<T>(b, high);
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
            uint32_t* const to = reinterpret_cast<uint32_t*>(query(row)) + lane;
            to[0] = a, to[kHalf] = b;
            return;
        }
        uint32_t* const kept =
            reinterpret_cast<uint32_t*>(newest()) + (is_value ? kDim / 2 : 0) + lane;
        kept[0] = a, kept[kHalf] = b;
        const int64_t where = int64_t{newest_row} * (kDim / 2);
        uint32_t* const to =
            static_cast<uint32_t*>(is_value ? pool.values : pool.keys) + where + lane;
        to[0] = a, to[kHalf] = b;
    }

    // What this block found becomes the head's result, or a part of it.
    __device__ void attended_by_block(int head, int at_dim, float peak, float weight, float a,
                                      float b) const {
        if (splits == 1) {
            hand_over(s.attended + (head * kDim + at_dim) / 2, pair<T>(a / weight, b / weight),
                      stamp);
            return;
        }
        Word* const to = part(head, split);
        if (at_dim == 0) {
            hand_over(to, __float_as_uint(peak), stamp);
            hand_over(to + 1, __float_as_uint(weight), stamp);
        }
        hand_over(to + 2 + at_dim, __float_as_uint(a), stamp);
        hand_over(to + 3 + at_dim, __float_as_uint(b), stamp);
    }

    // What the splits of a head found becomes its result. Splits share the heads out; threads that
    // lie together, the splits of a head.
    __device__ void merge() {
        constexpr int kEach = kDim / 2 * kMergers;  // threads that merge a head
        static_assert(kThreads % kEach == 0 && kMostSplits <= 2 * kMergers);
        const int turn = threadIdx.x % kMergers, at_dim = threadIdx.x % kEach / kMergers * 2;
#pragma unroll 1
        for (int h = split + static_cast<int>(threadIdx.x) / kEach * splits; h < each;
             h += kThreads / kEach * splits) {
            Word about[2][2], number[2][2];
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const Word* const from = part(head * each + h, turn + i * kMergers);
                if (turn + i * kMergers < splits) {
                    look_at_two(from, about[i]);
                    look_at_two(from + 2 + at_dim, number[i]);
                }
            }
            float peak = kLow, weight = 0.0f, a = 0.0f, b = 0.0f;
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const Word* const from = part(head * each + h, turn + i * kMergers);
                if (turn + i * kMergers >= splits) break;
                take(from, stamp, about[i]);
                take(from + 2 + at_dim, stamp, number[i]);
                const float other = float_of(about[i][0]), high = fmaxf(peak, other);
                const float kept = exp2_near(peak - high), factor = exp2_near(other - high);
                weight = weight * kept + float_of(about[i][1]) * factor;
                a = a * kept + float_of(number[i][0]) * factor;
                b = b * kept + float_of(number[i][1]) * factor;
                peak = high;
            }
            float high = peak;
#pragma unroll
            for (int other = 1; other < kMergers; other *= 2) {
                high = fmaxf(high, __shfl_xor_sync(0xffffffffu, high, other));
            }
            const float factor = exp2_near(peak - high);
            weight *= factor, a *= factor, b *= factor;
#pragma unroll
            for (int other = 1; other < kMergers; other *= 2) {
                weight += __shfl_xor_sync(0xffffffffu, weight, other);
                a += __shfl_xor_sync(0xffffffffu, a, other);
                b += __shfl_xor_sync(0xffffffffu, b, other);
            }
            if (turn == 0) {
                hand_over(s.attended + ((head * each + h) * kDim + at_dim) / 2,
                          pair<T>(a / weight, b / weight), stamp);
            }
        }
    }

    __device__ Word* part(int head, int split) const {
        return s.parts + (static_cast<int64_t>(head) * kMostSplits + split) * (kDim + 2);
    }
    // Rows in shared memory, and the key and the value of the newest position.
    __device__ uint4* query(int of) const { return room(of * Attention<kDim>::kQuery); }
    __device__ uint4* weight(int of) const {
        return room(Attention<kDim>::kWeights + of * Attention<kDim>::kWeight);
    }
    __device__ float* peaks_of(int of) const {
        return reinterpret_cast<float*>(room(Attention<kDim>::kPeaks)) + of * kWarps;
    }
    __device__ uint4* newest() const { return room(Attention<kDim>::kNewest); }
    __device__ uint4* value(int position) const {
        return room(Attention<kDim>::kValues + position * Attention<kDim>::kValue);
    }
    __device__ uint4* room(int bytes) const { return at.area() + bytes / 16; }

    // Which positions this block attends to: a key head's are split where they are many.
    __device__ void share_out(int newest_seen) {
        window = newest_seen;
        const int start = window > 0 && end > window ? end - window : 0, seen = end - start;
        const int blocks = static_cast<int>(gridDim.x) / s.kv_heads;
        const int wanted = min(min(ceiling(seen, kFewest), blocks), kMostSplits);
        const int length = ceiling(seen, wanted);
        splits = ceiling(seen, length);
        begin = start + split * length;
        stop = split < splits ? min(end, begin + length) : begin;
        const int position = begin + warp * kTile + static_cast<int>(threadIdx.x) % kWarp / 4;
        if (position < stop) first_row = row_of(position);
        newest_row = row_of(end - 1);
    }
    // Where a position's keys and values are, in heads of the pool.
    __device__ int row_of(int position) const {
        const int page = s.pages[position / s.page_size];
        return (page * s.page_size + position % s.page_size) * s.kv_heads + head;
    }
    __device__ static int ceiling(int a, int b) { return (a + b - 1) / b; }

    static constexpr int kLanes = kDim / 8;     // 16-byte pieces of a head
    static constexpr int kPieces = kLanes / 4;  // of those, a thread's

    const Step<T>& s;
    const Shared<T, Form, kDim> at;
    int warp, slot, phase = 0, layer = 0, end = 0;
    uint32_t stamp = 0, cosine = 0, sine = 0;
    // attention: a key head, how many query heads it has, and the positions that are this block's
    int head, each, split, splits = 1, window = -1, begin = 0, stop = 0;
    int first_row = 0, newest_row = 0;
};

}  // namespace mega
