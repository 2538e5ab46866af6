// tensor_core.cuh in the emulation of a GPU; see device.cuh here.
#pragma once
#include "device.cuh"

inline void copy_async(void* shared, const void* global) {
    using namespace emulated;
    const auto to = static_cast<unsigned char*>(shared) - shared_memory();
    if (!known(global, 16)) return;
    if (to < 0 || to + 16 > static_cast<long>(kShared)) {
        machine.problem = "a copy to outside of shared memory";
    }
    if (to % 16 || reinterpret_cast<uintptr_t>(global) % 16)
        machine.problem = "a copy off 16 bytes";
    if (!machine.problem.empty()) return;
    const Copy copy{shared, global};
    if (machine.eager_copies) {
        copy.happen();
    } else {
        machine.threads[machine.current].open.push_back(copy);
    }
}
inline void end_copy_group() {
    emulated::Thread& mine = emulated::machine.threads[emulated::machine.current];
    mine.groups.push_back(std::move(mine.open));
    mine.open.clear();
}
template <int kGroups>
void wait_for_copies() {
    auto& groups = emulated::machine.threads[emulated::machine.current].groups;
    for (; groups.size() > kGroups; groups.pop_front()) {
        for (const emulated::Copy& copy : groups.front()) copy.happen();
    }
}

template <typename T>
float number_in(uint32_t both, int place) {
    return to_float(T{static_cast<uint16_t>(both >> 16 * place)});
}

template <typename T>
void multiply_add(float (&sums)[4], const uint32_t (&a)[4], const uint32_t* b) {
    using namespace emulated;
    Lane* lanes = lanes_of_warp();
    const int lane = machine.current % kWarp;
    std::copy(a, a + 4, lanes[lane].a);
    std::copy(b, b + 2, lanes[lane].b);
    warp_barrier();
    for (int r = 0; r < 4; ++r) {
        const int row = lane / 4 + r / 2 * 8, column = lane % 4 * 2 + r % 2;
        double sum = sums[r];
        for (int k = 0; k < 16; ++k) {
            const Lane& left = lanes[row % 8 * 4 + k % 8 / 2];
            const Lane& right = lanes[column * 4 + k % 8 / 2];
            sum += static_cast<double>(number_in<T>(left.a[row / 8 + k / 8 * 2], k % 2)) *
                   number_in<T>(right.b[k / 8], k % 2);
        }
        sums[r] = static_cast<float>(sum);
    }
    warp_barrier();
}

inline void multiply_add(int (&sums)[4], const uint32_t (&a)[4], uint2 b) {
    using namespace emulated;
    Lane* lanes = lanes_of_warp();
    const int lane = machine.current % kWarp;
    std::copy(a, a + 4, lanes[lane].a);
    lanes[lane].b[0] = b.x, lanes[lane].b[1] = b.y;
    warp_barrier();
    for (int r = 0; r < 4; ++r) {
        const int row = lane / 4 + r / 2 * 8, column = lane % 4 * 2 + r % 2;
        for (int k = 0; k < 32; ++k) {
            const Lane& left = lanes[row % 8 * 4 + k % 16 / 4];
            const Lane& right = lanes[column * 4 + k % 16 / 4];
            const auto code = static_cast<uint8_t>(left.a[row / 8 + k / 16 * 2] >> 8 * (k % 4));
            sums[r] += code * static_cast<int8_t>(right.b[k / 16] >> 8 * (k % 4));
        }
    }
    warp_barrier();
}

template <typename T>
uint32_t pair(float low, float high) {
    return static_cast<uint32_t>(from_float<T>(high).bits) << 16 | from_float<T>(low).bits;
}
inline uint32_t two_codes(uint32_t bits, uint32_t with) {
    return (bits & 0x000f000fu) | with;
}
template <typename T>
uint32_t subtract(uint32_t a, uint32_t b) {
    return pair<T>(number_in<T>(a, 0) - number_in<T>(b, 0),
                   number_in<T>(a, 1) - number_in<T>(b, 1));
}
