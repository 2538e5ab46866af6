// warpgroup.cuh in the emulation of a GPU; see device.cuh here. A product that nobody waited for
// has not happened (or, if so asked, happens at once): until then it reads and adds to what it was
// given where that lies. It does not see what was written and not shown to it.
#pragma once
#include "tensor_core.cuh"

constexpr bool kByWarpgroups = true, kEmulated = true;  // it has both

inline uint64_t right_side(const uint4* first, int next) {
    const auto at = reinterpret_cast<const unsigned char*>(first) - emulated::shared_memory();
    return static_cast<uint64_t>(at / 16) | static_cast<uint64_t>(next) << 16;
}

inline uint32_t boxes_side(const unsigned char* first) {
    const auto at = first - emulated::shared_memory();
    if (at % 1024) emulated::machine.problem = "a product with boxes off 1024 bytes";
    return static_cast<uint32_t>(at / 16);
}
constexpr uint32_t kBoxStep = 2;

namespace emulated {

inline bool* hidden_words() {
    return &machine.hidden[rank() * (kShared / 4)];
}

}  // namespace emulated

inline void write_for_products(uint32_t* shared, uint32_t word) {
    using namespace emulated;
    const auto at = reinterpret_cast<unsigned char*>(shared) - shared_memory();
    if (at < 0 || at + 4 > static_cast<long>(kShared)) {
        machine.problem = "inputs outside of shared memory";
        return;
    }
    *shared = word;
    hidden_words()[at / 4] = true;
    me().hidden.push_back(&hidden_words()[at / 4]);
}
inline void show_to_products() {
    for (bool* hidden : emulated::me().hidden) *hidden = false;
    emulated::me().hidden.clear();
}
inline void begin_products() {
    emulated::me().begun = true;
}
inline void end_products() {
    emulated::Thread& mine = emulated::me();
    mine.begun = false;
    mine.products.push_back(std::move(mine.open_products));
    mine.open_products.clear();
}
template <int kGroups>
void wait_for_products() {
    auto& groups = emulated::me().products;
    for (; groups.size() > kGroups; groups.pop_front()) {
        for (const auto& product : groups.front()) product();
    }
}
template <int kTiles>
void settle(float (&)[kTiles][4]) {}

template <typename T, int kTiles>
void multiply_now(float (&sums)[kTiles][4], const uint32_t (&a)[4], uint64_t b) {
    using namespace emulated;
    Lane* const lanes = lanes_of_warp();
    const int lane = machine.current % kWarp;
    std::copy(a, a + 4, lanes[lane].a);
    lanes[lane].right = b;
    warp_barrier();
    if (lanes[0].right != b) machine.problem = "lanes of a warp multiply by different numbers";
    float left[2][16];
    for (int row = 0; row < 2; ++row) {
        for (int k = 0; k < 16; ++k) {
            left[row][k] = number_in<T>(lanes[lane / 4 * 4 + k % 8 / 2].a[row + k / 8 * 2], k % 2);
        }
    }
    const unsigned long first = (b & 0xffff) * 16, next = (b >> 16 & 0xffff) * 16;
    for (int i = 0; i < kTiles * 2; ++i) {
        const int column = i / 2 * 8 + lane % 4 * 2 + i % 2;
        double both[2] = {sums[i / 2][i % 2], sums[i / 2][2 + i % 2]};
        for (int k = 0; k < 16; ++k) {
            const unsigned long at = first + k / 8 * next + column * 16 + k % 8 * 2;
            if (at + 2 > kShared) {
                machine.problem = "a product with numbers outside of shared memory";
                break;
            }
            if (hidden_words()[at / 4]) {
                machine.problem = "a product with numbers that were not shown to it";
            }
            uint16_t bits;
            std::memcpy(&bits, shared_memory() + at, 2);
            const float right = to_float(T{bits});
            both[0] += static_cast<double>(left[0][k]) * right;
            both[1] += static_cast<double>(left[1][k]) * right;
        }
        sums[i / 2][i % 2] = static_cast<float>(both[0]);
        sums[i / 2][2 + i % 2] = static_cast<float>(both[1]);
    }
    warp_barrier();
}

template <typename T, int kTiles>
void multiply_group(float (&sums)[kTiles][4], const uint32_t (&a)[4], uint64_t b) {
    emulated::Thread& mine = emulated::me();
    if (!mine.begun) emulated::machine.problem = "a product that was not begun";
    if (emulated::machine.eager_products) {
        multiply_now<T>(sums, a, b);
    } else {
        mine.open_products.emplace_back([&sums, &a, b] { multiply_now<T>(sums, a, b); });
    }
}

// 16 numbers of a row of 128 bytes whose pieces are swizzled by where they lie.
template <typename T>
void read_boxes(float (&out)[16], uint32_t side, int row) {
    using namespace emulated;
    for (int k = 0; k < 16; ++k) {
        unsigned long at = side * 16ul + row * 128 + k * 2;
        at ^= (at >> 7 & 7) << 4;
        if (at + 2 > kShared) {
            machine.problem = "a product with numbers outside of shared memory";
            return;
        }
        uint16_t bits;
        std::memcpy(&bits, shared_memory() + at, 2);
        out[k] = to_float(T{bits});
    }
}

template <typename T, int kTiles>
void multiply_boxes_now(float (&sums)[kTiles][4], uint32_t a, uint32_t b) {
    const int thread = threadIdx.x % (4 * kWarp), lane = thread % kWarp;
    float left[2][16], right[16];
    for (int row = 0; row < 2; ++row) {
        read_boxes<T>(left[row], a, thread / kWarp * 16 + row * 8 + lane / 4);
    }
    for (int i = 0; i < kTiles * 2; ++i) {
        read_boxes<T>(right, b, i / 2 * 8 + lane % 4 * 2 + i % 2);
        for (int row = 0; row < 2; ++row) {
            double sum = sums[i / 2][row * 2 + i % 2];
            for (int k = 0; k < 16; ++k) sum += static_cast<double>(left[row][k]) * right[k];
            sums[i / 2][row * 2 + i % 2] = static_cast<float>(sum);
        }
    }
    emulated::warp_barrier();  // a warp's lanes are done together
}

template <typename T, int kTiles>
void multiply_boxes(float (&sums)[kTiles][4], uint32_t a, uint32_t b) {
    emulated::Thread& mine = emulated::me();
    if (!mine.begun) emulated::machine.problem = "a product that was not begun";
    if (emulated::machine.eager_products) {
        multiply_boxes_now<T>(sums, a, b);
    } else {
        mine.open_products.emplace_back([&sums, a, b] { multiply_boxes_now<T>(sums, a, b); });
    }
}

inline int cluster_blocks() {
    return static_cast<int>(emulated::machine.blocks.size());
}
inline int cluster_rank() {
    return emulated::rank();
}
inline void cluster_barrier() {
    emulated::wait_at(emulated::machine.cluster);
}
inline float4 read_from(int rank, const float* mine) {
    using namespace emulated;
    const auto at = reinterpret_cast<const unsigned char*>(mine) - shared_memory();
    if (at < 0 || at % 16 || at + 16 > static_cast<long>(kShared) || machine.ended[rank] > 0) {
        machine.problem = "a read from outside of another block's memory, or after its end";
        return {NAN, NAN, NAN, NAN};
    }
    float4 out;
    std::memcpy(&out, &machine.shared[rank * kShared + at], 16);
    return out;
}
