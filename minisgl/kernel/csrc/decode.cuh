// Attention of a decode step, one new position a row, over keys that lie on pages: the kernel,
// without what launches it.
//
// Such a step reads keys and values once and computes little with them, so what counts is that
// memory is read at its full rate from the first moment to the last. The tiles of 16 keys of all
// rows, one after the other, are cut into equal shares, for each key head. A warp has one share,
// and copies its keys some tiles ahead, over the borders of rows: while a row's queries come and
// its result goes, the next row's keys are on their way. Older keys are written by nobody in this
// step, so the first of them come while the kernel ahead, which stores the newest, still runs. Rows
// that lie in several shares leave parts, which whoever is the last to leave one merges.
//
// Scores are (keys x dim) (dim x heads), the result is (dim x keys) (keys x heads): the few query
// heads of a key head are the narrow side of a tensor core's product, and a head's highest score
// and its numbers are in the same threads.
//
// Sources: Dao 2023 (FlashAttention-2), sec. 3; Dao et al. 2023 (Flash-Decoding); Osama et al. 2023
// (Stream-K); Milakov and Gimelshein 2018 (online softmax).
#pragma once
#include <cmath>

#include "rows.cuh"
#include "tensor_core.cuh"

namespace decode {

constexpr int kKeys = 16;       // of a tile
constexpr int kMostGroup = 8;   // query heads of a key head
constexpr int kWarps = 4;       // of a block
constexpr int kStages = 3;      // tiles of a warp that are there or on their way
constexpr int kLeastTiles = 2;  // of a share, for every share costs a part

template <int kDim>
struct Room {
    static constexpr int kPieces = kDim / 8;         // of 16 bytes, of a head
    static constexpr int kAtOnce = kWarp / kPieces;  // keys that a warp copies in one go
    static constexpr int kLine = kDim + 8;  // a key's numbers and a gap, so that banks take turns
    static constexpr int kTile = kKeys * kLine * 2;    // bytes of keys, and as many of values
    static constexpr int kRing = kStages * 2 * kTile;  // of a warp
};

// Bytes of a block before its warps': how many tiles precede each row, and where each row ends.
__device__ __host__ inline int before_warps(int rows) {
    return ((2 * rows + 1) * 4 + 15) / 16 * 16;
}

template <typename T>
struct Step {
    const T* q;                   // (rows, query heads, dim)
    const T *keys, *values;       // (positions, kv_heads, dim)
    const int32_t *pages, *ends;  // (rows, width); (rows,)
    T* out;                       // (rows, query heads, dim)
    float *parts, *sums;          // (2 * shares, query heads, dim); (2 * shares, query heads)
    int* arrived;                 // (shares, kv_heads), zeros before and after
    int64_t stride, width;        // of q's rows; of the pages'
    int rows, group, kv_heads, page_size;
    int shift;    // of positions to their page, or below 0
    int window;   // newest positions that are seen; 0: all
    int shares;   // at most, of a key head
    float scale;  // of scores, to base 2
};

template <typename T, int kDim>
class Worker {
    using Of = Room<kDim>;
    static constexpr int kLine = Of::kLine;

  public:
    __device__ Worker(const Step<T>& step, const int* first, unsigned char* ring, int worker)
        : step_(step),
          first_(first),
          ends_(first + step.rows + 1),
          ring_(reinterpret_cast<T*>(ring)),
          lane_(threadIdx.x % kWarp),
          head_(worker % step.kv_heads),
          share_(worker / step.kv_heads),
          whole_(step.page_size % kKeys == 0) {}

    __device__ void run() {
        const int64_t every = first_[step_.rows];
        const int most = static_cast<int>((every + kLeastTiles - 1) / kLeastTiles);
        shares_ = min(step_.shares, most);
        if (share_ >= shares_) return wait_for_inputs();
        const int begin = static_cast<int>(every * share_ / shares_);
        stop_ = static_cast<int>(every * (share_ + 1) / shares_);
        row_ = row_of(begin);
        coming_row_ = row_, coming_ = begin;
        look_ahead();
        bool waited = false;
        for (int i = 0; i < kStages - 1; ++i) {
            // a row's last tile has the newest key, which the kernel ahead stores
            if (!waited && coming_ + 1 == first_[coming_row_ + 1]) {
                wait_for_inputs();
                waited = true;
            }
            fetch(i);
        }
        if (!waited) wait_for_inputs();
        int stage = 0, last = begin;  // the tile behind the row's last one
        for (int tile = begin; tile < stop_; ++tile) {
            if (tile == last) {
                if (tile > begin) ++row_;
                last = first_[row_ + 1];
                begin_row();
            }
            wait_for_copies<kStages - 2>();
            __syncwarp();
            fetch(stage == 0 ? kStages - 1 : stage - 1);
            const bool ends = tile == last - 1;
            if (ends || (step_.window > 0 && tile == first_[row_])) {
                look_at_tile<true>(stage, (lowest(row_) + tile - first_[row_]) * kKeys);
            } else {
                look_at_tile<false>(stage, 0);
            }
            if (ends || tile == stop_ - 1) end_row(begin, tile + 1);
            if (++stage == kStages) stage = 0;
        }
        wait_for_copies<0>();
    }

  private:
    const Step<T>& step_;
    const int *const first_, *const ends_;
    T* const ring_;
    const int lane_, head_, share_;
    const bool whole_;  // a tile lies on one page
    int shares_, stop_, row_;
    int coming_row_, coming_;  // the tile that is fetched next
    int coming_keys_;          // of them
    int coming_place_;         // where its first key lies; not whole: its key lane % 16
    uint32_t q_[kDim / 16][2];
    float best_[2], total_[2];  // of heads 2 (lane % 4) and the next; total: of this lane's keys
    float sums_[kDim / 16][4];  // numbers lane / 4 and + 8 of those heads

    __device__ int lowest(int row) const {
        return step_.window > 0 ? max(ends_[row] - step_.window, 0) / kKeys : 0;
    }

    // The row that a tile is of.
    __device__ int row_of(int tile) const {
        int low = 0, high = step_.rows;
        while (high - low > 1) {
            const int middle = (low + high) / 2;
            (first_[middle] <= tile ? low : high) = middle;
        }
        return low;
    }

    __device__ int location(int row, int position) const {
        const int page = step_.shift >= 0 ? position >> step_.shift : position / step_.page_size;
        return step_.pages[row * step_.width + page] * step_.page_size + position -
               page * step_.page_size;
    }

    // Ask where the next tile's keys lie.
    __device__ void look_ahead() {
        if (coming_ >= stop_) return;
        const int row = coming_row_;
        const int position = (lowest(row) + coming_ - first_[row]) * kKeys;
        coming_keys_ = min(ends_[row] - position, kKeys);
        const int mine = whole_ ? 0 : lane_ % kKeys;
        if (mine < coming_keys_) coming_place_ = location(row, position + mine);
    }

    __device__ T* tile_of(int stage) const { return ring_ + stage * 2 * kKeys * kLine; }

    // Begin to copy the next tile's keys and values. What is not there is zero, for a masked
    // position has weight 0, and 0 * NaN is NaN.
    __device__ void fetch(int stage) {
        constexpr int kAtOnce = Of::kAtOnce, kValues = kKeys * kLine;
        if (coming_ < stop_) {
            const int key = lane_ / Of::kPieces, piece = lane_ % Of::kPieces;
            T* const to = tile_of(stage) + key * kLine + piece * 8;
            const int across = step_.kv_heads * kDim;
            const int own = head_ * kDim + piece * 8;
            if (whole_ && coming_keys_ == kKeys) {
                const int64_t from = static_cast<int64_t>(coming_place_ + key) * across + own;
                const T *keys = step_.keys + from, *values = step_.values + from;
#pragma unroll
                for (int i = 0; i < kKeys / kAtOnce; ++i) {
                    copy_async(to + i * kAtOnce * kLine, keys);
                    copy_async(to + i * kAtOnce * kLine + kValues, values);
                    keys += kAtOnce * across, values += kAtOnce * across;
                }
            } else {
                for (int i = 0; i < kKeys / kAtOnce; ++i) {
                    const int row = i * kAtOnce + key;
                    const int place = whole_ ? coming_place_ + row : from_lane(coming_place_, row);
                    T* const at = to + i * kAtOnce * kLine;
                    if (row < coming_keys_) {
                        const int64_t from = static_cast<int64_t>(place) * across + own;
                        copy_async(at, step_.keys + from);
                        copy_async(at + kValues, step_.values + from);
                    } else {
                        *reinterpret_cast<uint4*>(at) = uint4{0, 0, 0, 0};
                        *reinterpret_cast<uint4*>(at + kValues) = uint4{0, 0, 0, 0};
                    }
                }
            }
            if (++coming_ == first_[coming_row_ + 1]) ++coming_row_;
            look_ahead();
        }
        end_copy_group();
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

    // kMasked: not all of its keys are seen; then position is the first one's.
    template <bool kMasked>
    __device__ void look_at_tile(int stage, int position) {
        const int row = lane_ % 8, which = lane_ / 8;  // of the matrix that this lane points to
        const T* const keys = tile_of(stage) + (row + which % 2 * 8) * kLine + which / 2 * 8;
        const T* const values =
            tile_of(stage) + (kKeys + row + which / 2 * 8) * kLine + which % 2 * 8;
        float scores[2][4] = {};  // two sums, so that they overlap
#pragma unroll
        for (int i = 0; i < kDim / 16; ++i) {
            uint32_t a[4];
            load_matrices(a, keys + i * 16);
            multiply_add<T>(scores[i % 2], a, q_[i]);
        }
        // keys lane / 4 (0, 1) and + 8 (2, 3)
        float x[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            x[i] = scores[0][i] + scores[1][i];
            if (kMasked) {
                const int at = position + lane_ / 4 + i / 2 * 8, end = ends_[row_];
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
            load_turned_matrices(a, values + i * 16);
            multiply_add<T>(sums_[i], a, weights);
        }
    }

    // The row's last tile of this share was looked at, all before `end`; begin: of the share.
    __device__ void end_row(int begin, int end) {
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
        const int group = step_.group, first = first_[row_], last = first_[row_ + 1];
        const int column = lane_ % 4 * 2, heads = step_.kv_heads * group;
        if (begin <= first && end == last) {
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
            static_cast<int64_t>(2 * share_ + (begin <= first)) * heads + head_ * group;
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
        const int64_t every = first_[step_.rows];
        const int from = static_cast<int>(((first + 1ll) * shares_ - 1) / every);
        const int to = static_cast<int>((static_cast<int64_t>(last) * shares_ - 1) / every);
        int* const sign = step_.arrived + from * step_.kv_heads + head_;
        int before = 0;
        if (lane_ == 0) before = arrive(sign);
        if (from_lane(before, 0) < to - from) return;
        if (lane_ == 0) *sign = 0;
        for (int i = 0; i < group; ++i) merge(from, to, head_ * group + i);
    }

    // One head of the parts of a row that shares `from` to `to` have left.
    __device__ void merge(int from, int to, int head) {
        const int heads = step_.kv_heads * step_.group;
        auto line_of = [&](int share) {
            return static_cast<int64_t>(2 * share + (share == from)) * heads + head;
        };
        float best = -INFINITY, total = 0.0f, sums[kDim / kWarp] = {};
        for (int share = from + lane_; share <= to; share += kWarp) {
            best = fmaxf(best, __ldcg(step_.sums + line_of(share)));
        }
#pragma unroll
        for (int other = 1; other < kWarp; other *= 2) {
            best = fmaxf(best, __shfl_xor_sync(0xffffffffu, best, other));
        }
#pragma unroll 8
        for (int share = from; share <= to; ++share) {
            const int64_t line = line_of(share);
            const float weight = exp2_near(__ldcg(step_.sums + line) - best);
            total += weight;
#pragma unroll
            for (int j = 0; j < kDim / kWarp; ++j) {
                sums[j] += __ldcg(step_.parts + line * kDim + j * kWarp + lane_) * weight;
            }
        }
        T* const out = step_.out + (static_cast<int64_t>(row_) * heads + head) * kDim + lane_;
#pragma unroll
        for (int j = 0; j < kDim / kWarp; ++j) out[j * kWarp] = from_float<T>(sums[j] / total);
    }
};

// By the first warp: how many tiles precede each row, and all of them; where each row ends.
template <typename T>
__device__ inline void count_tiles(const Step<T>& step, int* first) {
    const int lane = threadIdx.x % kWarp, each = (step.rows + kWarp - 1) / kWarp;
    const int begin = min(lane * each, step.rows), end = min(begin + each, step.rows);
    int* const ends = first + step.rows + 1;
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

// What a block does. shared: before_warps and kWarps times Room::kRing.
template <typename T, int kDim>
__device__ inline void attend(const Step<T>& step, unsigned char* shared) {
    const int warp = static_cast<int>(threadIdx.x) / kWarp;
    int* const first = reinterpret_cast<int*>(shared);
    if (warp == 0) count_tiles(step, first);
    __syncthreads();
    let_next_start();
    unsigned char* const own = shared + before_warps(step.rows) + warp * Room<kDim>::kRing;
    Worker<T, kDim>(step, first, own, static_cast<int>(blockIdx.x) * kWarps + warp).run();
}

}  // namespace decode
