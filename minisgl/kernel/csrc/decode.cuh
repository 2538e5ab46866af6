// Attention of a decode step, one new position a row, over keys that lie on pages: the kernel,
// without what launches it.
//
// Such a step reads keys and values once and computes little with them, so what counts is that
// memory is read at its full rate from the first moment to the last. The tiles of 16 keys of all
// rows, one after the other, are cut into equal shares; a block attends to one of them for some of
// the key heads. One of its warps has tiles copied, of all these heads at once, always as far ahead
// as there is room, over the borders of rows; each other warp attends for one key head. Rows that
// lie in several shares leave parts, which whoever is the last to leave one merges.
//
// Older keys are written by nobody in this step, so the first of them come while the kernel ahead,
// which stores the newest, still runs. That may have begun before the ones ahead of it ended, as
// this one may: where rows end, their pages and their older keys must be there when the model
// begins, and some kernel between that and the first layer must start late, as the lookup of
// embeddings does.
//
// Scores are (keys x dim) (dim x heads), the result is (dim x keys) (keys x heads): the few query
// heads of a key head are the narrow side of a tensor core's product, and a head's highest score
// and its numbers are in the same threads.
//
// Sources: Dao 2023 (FlashAttention-2), sec. 3; Dao et al. 2023 (Flash-Decoding); Osama et al. 2023
// (Stream-K); Milakov and Gimelshein 2018 (online softmax).
#pragma once
#include <cmath>
#include <type_traits>

#include "boxes.cuh"
#include "tensor_core.cuh"

namespace decode {

constexpr int kKeys = 16;       // of a tile
constexpr int kMostGroup = 8;   // query heads of a key head
constexpr int kMostHeads = 8;   // key heads of a block
constexpr int kLeastTiles = 2;  // of a share, on average at least, for every share costs a part
constexpr int kMostStages = 8;
constexpr int kRing = 128 << 10;  // bytes of tiles, at most: the kernels around this need some, too
constexpr int kBox = kKeys * 128;  // bytes: a tile's keys, 64 numbers of them

template <typename T>
struct Step {
    TensorMap keys, values;       // (positions, kv_heads * dim), in boxes of kKeys rows
    const T* q;                   // (rows, query heads, dim)
    const int32_t *pages, *ends;  // (rows, width); (rows,), each of at least 1
    T* out;                       // (rows, query heads, dim)
    float *parts, *sums;          // (2 * shares, query heads, dim); (2 * shares, query heads)
    int* arrived;                 // (shares, kv_heads), zeros before and after
    int64_t stride, width;        // of q's rows; of the pages'
    int rows, group, kv_heads, page_size;
    int heads;    // key heads of a block
    int stages;   // tiles that are there or on their way
    int window;   // newest positions that are seen; 0: all
    int shares;   // at most, of a key head
    float scale;  // of scores, to base 2
};

// Where things are in a block's shared memory, in bytes: the ring of tiles, each of them keys and
// values of all of the block's heads; whether they are there; whether there is room for them; how
// many tiles precede each row, and where each row ends.
struct Places {
    int tile, full, empty, first, ends, end;

    __host__ __device__ Places(int heads, int dim, int stages, int rows) {
        tile = 2 * heads * (dim / 64) * kBox;
        full = stages * tile;
        empty = full + stages * 8;
        first = empty + stages * 8;
        ends = first + (rows + 1) * 4;
        end = ends + rows * 4;
    }
};

// Of a block: the tiles of its share, one after the other, and the rows that they are of.
template <typename T>
struct Share {
    __device__ Share(const Step<T>& s, const int* first_tiles, const int* row_ends, int number)
        : step(s), first(first_tiles), ends(row_ends), share(number) {
        every = first[step.rows];
        shares = min(step.shares, (every + kLeastTiles - 1) / kLeastTiles);
        if (share >= shares) return;
        begin = static_cast<int>(int64_t{every} * share / shares);
        stop = static_cast<int>(int64_t{every} * (share + 1) / shares);
        int high = step.rows;
        while (high - row > 1) {
            const int middle = (row + high) / 2;
            (first[middle] <= begin ? row : high) = middle;
        }
    }

    // The first position of a row's tile.
    __device__ int position(int of, int tile) const {
        const int lowest = step.window > 0 ? max(ends[of] - step.window, 0) / kKeys : 0;
        return (lowest + tile - first[of]) * kKeys;
    }

    const Step<T>& step;
    const int *const first, *const ends;
    const int share;
    int every, shares, begin = 0, stop = 0, row = 0;  // row: that the first tile is of
};

// By one thread: have the share's tiles copied. A row's last one has the newest key, which the
// kernel ahead stores.
template <typename T>
__device__ inline void fetch(const Share<T>& of, const Places& at, unsigned char* shared,
                             int first_box, int boxes) {
    const Step<T>& step = of.step;
    Arrival* const full = reinterpret_cast<Arrival*>(shared + at.full);
    Arrival* const empty = reinterpret_cast<Arrival*>(shared + at.empty);
    auto location = [&](int row, int tile) {
        const int position = of.position(row, tile), page = position / step.page_size;
        return step.pages[row * step.width + page] * step.page_size + position -
               page * step.page_size;
    };
    int row = of.row, stage = 0, turn = 1, next = of.begin < of.stop ? location(row, of.begin) : 0;
    bool waited = false;
    for (int tile = of.begin; tile < of.stop; ++tile) {
        const int here = next;
        const bool last = tile + 1 == of.first[row + 1];
        if (last && !waited) {
            wait_for_inputs();
            waited = true;
        }
        if (tile + 1 < of.stop) next = location(last ? row + 1 : row, tile + 1);
        wait_for(empty + stage, turn);
        expect(full + stage, at.tile);
        unsigned char* const to = shared + stage * at.tile;
        copy_row_of_boxes(to, step.keys, first_box, here, full + stage);
        copy_row_of_boxes(to + boxes * kBox, step.values, first_box, here, full + stage);
        if (last) ++row;
        if (++stage == step.stages) stage = 0, turn ^= 1;
    }
}

// A warp: attends for one key head to a share's tiles.
template <typename T, int kDim>
class Worker {
  public:
    // place: of its head among the block's.
    __device__ Worker(const Share<T>& of, const Places& places, unsigned char* shared, int head,
                      int place)
        : of_(of),
          step_(of.step),
          at_(places),
          shared_(shared),
          lane_(threadIdx.x % kWarp),
          head_(head),
          place_(place) {}

    __device__ void run() {
        wait_for_inputs();
        Arrival* const full = reinterpret_cast<Arrival*>(shared_ + at_.full);
        Arrival* const empty = reinterpret_cast<Arrival*>(shared_ + at_.empty);
        row_ = of_.row;
        int stage = 0, turn = 0, last = of_.begin;  // the tile behind the row's last one
        for (int tile = of_.begin; tile < of_.stop; ++tile) {
            if (tile == last) {
                if (tile > of_.begin) ++row_;
                last = of_.first[row_ + 1];
                begin_row();
            }
            wait_for(full + stage, turn);
            const bool ends = tile == last - 1;
            if (ends || (step_.window > 0 && tile == of_.first[row_])) {
                look_at_tile<true>(stage, of_.position(row_, tile));
            } else {
                look_at_tile<false>(stage, 0);
            }
            __syncwarp();
            if (lane_ == 0) release(empty + stage);
            if (ends || tile == of_.stop - 1) end_row(tile + 1);
            if (++stage == step_.stages) stage = 0, turn ^= 1;
        }
    }

  private:
    const Share<T>& of_;
    const Step<T>& step_;
    const Places& at_;
    unsigned char* const shared_;
    const int lane_, head_, place_;
    int row_;
    uint32_t q_[kDim / 16][2];
    float best_[2], total_[2];  // of heads 2 (lane % 4) and the next; total: of this lane's keys
    float sums_[kDim / 16][4];  // numbers lane / 4 and + 8 of those heads

    // The head's keys of a tile, or its values: boxes of 64 numbers.
    __device__ unsigned char* boxes(int stage, int values) const {
        return shared_ + stage * at_.tile + (values * step_.heads + place_) * (kDim / 64) * kBox;
    }
    // 16 bytes of a key, from a number on.
    __device__ static const unsigned char* piece(const unsigned char* boxes, int key, int number) {
        return boxes + number / 64 * kBox + key * 128 + (number % 64 / 8 ^ key % 8) * 16;
    }

    // The row's queries, and nothing seen yet.
    __device__ void begin_row() {
        const int head = lane_ / 4, group = step_.group;
        const T* const own =
            step_.q + row_ * step_.stride + (head_ * group + head) * kDim + lane_ % 4 * 2;
#pragma unroll
        for (int i = 0; i < kDim / 8; ++i) {
            const bool there = head < group;
            q_[i / 2][i % 2] = there ? *reinterpret_cast<const uint32_t*>(own + i * 8) : 0;
            sums_[i / 2][i % 2] = sums_[i / 2][i % 2 + 2] = 0.0f;
        }
        for (int i = 0; i < 2; ++i) best_[i] = -INFINITY, total_[i] = 0.0f;
    }

    // Values behind a row's end become zeros, for a masked position has weight 0, and 0 * NaN is
    // NaN.
    __device__ void clear_behind(int stage, int keys) {
        unsigned char* const values = boxes(stage, 1);
        for (int i = lane_ + keys * 8; i < kKeys * 8; i += kWarp) {
#pragma unroll
            for (int box = 0; box < kDim / 64; ++box) {
                *reinterpret_cast<uint4*>(values + box * kBox + i * 16) = uint4{0, 0, 0, 0};
            }
        }
        show_to_products();  // and to the copies that come to this place next
        __syncwarp();
    }

    // kMasked: not all of its keys are seen; then position is the first one's.
    template <bool kMasked>
    __device__ void look_at_tile(int stage, int position) {
        if (kMasked && of_.ends[row_] - position < kKeys) {
            clear_behind(stage, of_.ends[row_] - position);
        }
        const int row = lane_ % 8, which = lane_ / 8;  // of the matrix that this lane points to
        const unsigned char *const keys = boxes(stage, 0), *const values = boxes(stage, 1);
        float scores[2][4] = {};  // two sums, so that they overlap
#pragma unroll
        for (int i = 0; i < kDim / 16; ++i) {
            uint32_t a[4];
            load_matrices(a, piece(keys, row + which % 2 * 8, i * 16 + which / 2 * 8));
            multiply_add<T>(scores[i % 2], a, q_[i]);
        }
        // keys lane / 4 (0, 1) and + 8 (2, 3)
        float x[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            x[i] = scores[0][i] + scores[1][i];
            if (kMasked) {
                const int at = position + lane_ / 4 + i / 2 * 8, end = of_.ends[row_];
                const bool seen = at < end && (step_.window == 0 || at >= end - step_.window);
                if (!seen) x[i] = -INFINITY;
            }
        }
        float shrink[2];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            float highest = fmaxf(x[i], x[i + 2]);
#pragma unroll
            for (int other = 4; other < kWarp; other *= 2) {
                highest = fmaxf(highest, __shfl_xor_sync(0xffffffffu, highest, other));
            }
            highest = fmaxf(best_[i], highest * step_.scale);
            shrink[i] = exp2_near(best_[i] - highest);
            best_[i] = highest;
            x[i] = exp2_near(x[i] * step_.scale - highest);
            x[i + 2] = exp2_near(x[i + 2] * step_.scale - highest);
            total_[i] = total_[i] * shrink[i] + (x[i] + x[i + 2]);
        }
        const uint32_t weights[2] = {turn_matrix(pair<T>(x[0], x[1])),
                                     turn_matrix(pair<T>(x[2], x[3]))};
        if (any_of_warp(shrink[0] != 1.0f || shrink[1] != 1.0f)) {
#pragma unroll
            for (int i = 0; i < kDim / 16; ++i) {
#pragma unroll
                for (int j = 0; j < 4; ++j) sums_[i][j] *= shrink[j % 2];
            }
        }
#pragma unroll
        for (int i = 0; i < kDim / 16; ++i) {
            uint32_t a[4];
            load_turned_matrices(a, piece(values, row + which / 2 * 8, i * 16 + which % 2 * 8));
            multiply_add<T>(sums_[i], a, weights);
        }
    }

    // The row's last tile of this share was looked at, all before `end`.
    __device__ void end_row(int end) {
        float factor[2], logarithm[2];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
#pragma unroll
            for (int other = 4; other < kWarp; other *= 2) {
                total_[i] += __shfl_xor_sync(0xffffffffu, total_[i], other);
            }
            factor[i] = 1.0f / total_[i];
            logarithm[i] = best_[i] + log2f(total_[i]);
        }
        const int group = step_.group, first = of_.first[row_], last = of_.first[row_ + 1];
        const int column = lane_ % 4 * 2, heads = step_.kv_heads * group;
        if (of_.begin <= first && end == last) {
            const int head = lane_ / 4;
            T* const out = step_.out +
                           (static_cast<int64_t>(row_) * heads + head_ * group + head) * kDim +
                           column;
#pragma unroll
            for (int i = 0; i < kDim / 8; ++i) {
                const float* const two = sums_[i / 2] + i % 2 * 2;
                const uint32_t both = turn_matrix(pair<T>(two[0] * factor[0], two[1] * factor[1]));
                if (head < group) *reinterpret_cast<uint32_t*>(out + i * 8) = both;
            }
            return;
        }
        const int64_t line =
            static_cast<int64_t>(2 * of_.share + (of_.begin <= first)) * heads + head_ * group;
#pragma unroll
        for (int j = 0; j < 2; ++j) {
            if (column + j >= group) continue;
            float* const to = step_.parts + (line + column + j) * kDim + lane_ / 4;
#pragma unroll
            for (int i = 0; i < kDim / 16; ++i) {
                to[i * 16] = sums_[i][j] * factor[j];
                to[i * 16 + 8] = sums_[i][j + 2] * factor[j];
            }
            if (lane_ / 4 == 0) step_.sums[line + column + j] = logarithm[j];
        }
        __syncwarp();
        const int shares = of_.shares, every = of_.every;
        const int from = static_cast<int>(((first + 1ll) * shares - 1) / every);
        const int to = static_cast<int>((static_cast<int64_t>(last) * shares - 1) / every);
        int* const sign = step_.arrived + from * step_.kv_heads + head_;
        int before = 0;
        if (lane_ == 0) before = arrive(sign);
        before = from_lane(before, 0);
        __syncwarp();  // what that lane has seen, all have
        if (before < to - from) return;
        if (lane_ == 0) *sign = 0;
        if (group <= 2) {
            merge<2, 8>(from, to, 0);
        } else {
            for (int i = 0; i < group; i += 4) merge<4, 4>(from, to, i);
        }
    }

    // The parts of a row that shares `from` to `to` have left, of some query heads. Waiting for
    // numbers is what takes time here, so many are asked for before one is used.
    template <int kHeads, int kAtOnce>
    __device__ void merge(int from, int to, int first) {
        constexpr int kOwn = kDim / kWarp;  // numbers of a lane
        using Own = std::conditional_t<kOwn == 4, float4, float2>;
        const int group = step_.group, heads = step_.kv_heads * group;
        float best[kHeads], total[kHeads], sums[kHeads][kOwn];
#pragma unroll
        for (int i = 0; i < kHeads; ++i) {
            best[i] = -INFINITY, total[i] = 0.0f;
            for (int j = 0; j < kOwn; ++j) sums[i][j] = 0.0f;
        }
        for (int begin = from; begin <= to; begin += kAtOnce) {
            Own parts[kHeads][kAtOnce];
            float logarithms[kHeads][kAtOnce];
#pragma unroll
            for (int k = 0; k < kHeads * kAtOnce; ++k) {
                const int i = k / kAtOnce, at = k % kAtOnce;
                const int share = min(begin + at, to), head = min(first + i, group - 1);
                const int64_t line = static_cast<int64_t>(2 * share + (share == from)) * heads +
                                     head_ * group + head;
                logarithms[i][at] = __ldcg(step_.sums + line);
                parts[i][at] =
                    __ldcg(reinterpret_cast<const Own*>(step_.parts + line * kDim) + lane_);
            }
#pragma unroll
            for (int i = 0; i < kHeads; ++i) {
                float highest = best[i];
#pragma unroll
                for (int at = 0; at < kAtOnce; ++at) highest = fmaxf(highest, logarithms[i][at]);
                const float shrink = exp2_near(best[i] - highest);
                best[i] = highest, total[i] *= shrink;
#pragma unroll
                for (int j = 0; j < kOwn; ++j) sums[i][j] *= shrink;
#pragma unroll
                for (int at = 0; at < kAtOnce; ++at) {
                    const bool there = begin + at <= to;
                    const float weight = there ? exp2_near(logarithms[i][at] - highest) : 0.0f;
                    total[i] += weight;
                    const Own& part = parts[i][at];
                    sums[i][0] += part.x * weight, sums[i][1] += part.y * weight;
                    if constexpr (kOwn == 4) {
                        sums[i][2] += part.z * weight, sums[i][3] += part.w * weight;
                    }
                }
            }
        }
#pragma unroll
        for (int i = 0; i < kHeads; ++i) {
            if (first + i >= group) continue;
            const int64_t line = static_cast<int64_t>(row_) * heads + head_ * group + first + i;
            T* const out = step_.out + line * kDim + lane_ * kOwn;
#pragma unroll
            for (int j = 0; j < kOwn; j += 2) {
                *reinterpret_cast<uint32_t*>(out + j) =
                    pair<T>(sums[i][j] / total[i], sums[i][j + 1] / total[i]);
            }
        }
    }
};

// By the first warp: how many tiles precede each row, and all of them; where each row ends.
template <typename T>
__device__ inline void count_tiles(const Step<T>& step, int* first, int* ends) {
    const int lane = threadIdx.x % kWarp, each = (step.rows + kWarp - 1) / kWarp;
    const int begin = min(lane * each, step.rows), end = min(begin + each, step.rows);
    int mine = 0;
    auto tiles = [&](int last) {
        const int lowest = step.window > 0 ? max(last - step.window, 0) / kKeys : 0;
        return (last + kKeys - 1) / kKeys - lowest;
    };
    for (int row = begin; row < end; ++row) {
        ends[row] = step.ends[row];
        mine += tiles(ends[row]);
    }
    int before = mine;
    for (int other = 1; other < kWarp; other *= 2) {
        const int theirs = from_lane(before, lane - other);
        if (lane >= other) before += theirs;
    }
    before -= mine;
    for (int row = begin; row < end; ++row) {
        first[row] = before;
        before += tiles(ends[row]);
    }
    if (lane == kWarp - 1) first[step.rows] = before;
}

// What a block does: step.heads warps and one more.
template <typename T, int kDim>
__device__ inline void attend(const Step<T>& step, unsigned char* shared) {
    const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = threadIdx.x % kWarp;
    const Places at(step.heads, kDim, step.stages, step.rows);
    int* const first = reinterpret_cast<int*>(shared + at.first);
    int* const ends = reinterpret_cast<int*>(shared + at.ends);
    Arrival* const full = reinterpret_cast<Arrival*>(shared + at.full);
    if (warp == 0) {
        count_tiles(step, first, ends);
    } else if (warp == 1 && lane == 0) {
        for (int i = 0; i < step.stages; ++i) {
            prepare(full + i);
            prepare(full + step.stages + i, step.heads);
        }
    }
    __syncthreads();
    let_next_start();
    const int groups = step.kv_heads / step.heads;  // of key heads
    const int head = static_cast<int>(blockIdx.x) % groups * step.heads;
    const Share<T> share(step, first, ends, static_cast<int>(blockIdx.x) / groups);
    if (warp < step.heads) {
        Worker<T, kDim>(share, at, shared, head + warp, warp).run();
    } else if (lane == 0) {
        fetch(share, at, shared, head * (kDim / 64), step.heads * (kDim / 64));
    }
}

}  // namespace decode
