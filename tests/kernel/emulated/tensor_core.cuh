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

namespace emulated {

// Number `column` of row `row` of the matrix whose rows lanes from 8 * matrix on point to.
inline uint32_t number_at(int matrix, int row, int column) {
    const auto from = static_cast<const unsigned char*>(lanes_of_warp()[matrix * 8 + row].row);
    const auto at = from - shared_memory();
    if (at < 0 || at + 16 > static_cast<long>(kShared) || at % 16) {
        machine.problem = "a row of a matrix outside of shared memory, or off 16 bytes";
        return 0;
    }
    uint16_t out;
    std::memcpy(&out, from + 2 * column, 2);
    return out;
}

template <bool kTurned>
void load_four(uint32_t (&out)[4], const void* row) {
    const int lane = machine.current % kWarp, line = lane / 4, at = lane % 4 * 2;
    lanes_of_warp()[lane].row = row;
    warp_barrier();
    for (int i = 0; i < 4; ++i) {
        out[i] = kTurned ? number_at(i, at, line) | number_at(i, at + 1, line) << 16
                         : number_at(i, line, at) | number_at(i, line, at + 1) << 16;
    }
    warp_barrier();
}

}  // namespace emulated

inline void load_matrices(uint32_t (&out)[4], const void* row) {
    emulated::load_four<false>(out, row);
}
inline void load_turned_matrices(uint32_t (&out)[4], const void* row) {
    emulated::load_four<true>(out, row);
}
inline uint32_t turn_matrix(uint32_t two) {
    using namespace emulated;
    const int lane = machine.current % kWarp, line = lane / 4;
    Lane* lanes = lanes_of_warp();
    lanes[lane].a[0] = two;
    warp_barrier();
    uint32_t out = 0;
    for (int i = 0; i < 2; ++i) {
        const uint32_t theirs = lanes[(lane % 4 * 2 + i) * 4 + line / 2].a[0];
        out |= (theirs >> 16 * (line % 2) & 0xffffu) << 16 * i;
    }
    warp_barrier();
    return out;
}
