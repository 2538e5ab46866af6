// What tensor_core.cuh and device.cuh give a kernel, on a CPU: stands in their place when a kernel is
// compiled for tests. The threads of a block take turns, each until it waits for others; what a warp
// does together is done once all of its lanes are there. Slow, and strict:
//
// - a copy that nobody waited for has not happened (or, if so asked, happens at once, which shows
//   whether it overwrites what is still read);
// - threads run in another order each time that the seed changes;
// - shared memory begins as NaN, sources of copies are checked against the buffers that there are,
// - a barrier that some threads never reach is an error, not a hang.
#pragma once
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <deque>
#include <functional>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#define __device__

constexpr int kWarp = 32;

struct alignas(16) uint4 {
    uint32_t x, y, z, w;
};
struct __half {
    uint16_t bits;
};
struct __nv_bfloat16 {
    uint16_t bits;
};

inline float half_bits(uint32_t bits) {
    const int exponent = static_cast<int>(bits >> 10 & 31u), fraction = static_cast<int>(bits & 1023u);
    const float size = exponent == 31  ? (fraction ? NAN : INFINITY)
                       : exponent == 0 ? std::ldexp(static_cast<float>(fraction), -24)
                                       : std::ldexp(static_cast<float>(1024 + fraction), exponent - 25);
    return bits & 0x8000u ? -size : size;
}
inline float to_float(__half x) { return half_bits(x.bits); }
inline float to_float(__nv_bfloat16 x) {
    const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
    float out;
    std::memcpy(&out, &bits, 4);
    return out;
}
template <typename T>
T from_float(float x);
template <>
inline __half from_float<__half>(float x) {
    const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
    const float size = std::fabs(x);
    if (std::isnan(x)) return {0x7e00};
    if (size >= 65520.0f) return {static_cast<uint16_t>(sign | 0x7c00)};
    const int exponent = size == 0.0f ? -14 : std::max(std::ilogb(size), -14);
    const int steps = static_cast<int>(std::nearbyint(std::ldexp(size, 10 - exponent)));
    const int bits = steps < 1024 ? steps : (exponent + 15) * 1024 + steps - 1024;
    return {static_cast<uint16_t>(sign | bits)};
}
template <>
inline __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    if (std::isnan(x)) return {0x7fc0};
    return {static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};
}

namespace emulated {

struct Index {
    int x;
};

struct Copy {
    void* to;
    const void* from;
    bool wanted;

    void happen() const {
        if (wanted) {
            std::memcpy(to, from, 16);
        } else {
            std::memset(to, 0, 16);
        }
    }
};

struct Barrier {
    int members, there = 0, passed = 0;
};

struct Lane {  // what a lane shows the others of its warp
    const void* row;
    uint32_t a[4], b[2];
};

struct Thread {
    ucontext_t context;
    std::vector<Copy> open;
    std::deque<std::vector<Copy>> groups;
    bool done = false;
};

struct Machine {
    static constexpr size_t kStack = 1 << 17;
    std::vector<Thread> threads;
    std::vector<Barrier> warps;
    std::vector<Lane> lanes;
    Barrier block{0};
    ucontext_t scheduler;
    int current = 0, moves = 0;
    bool eager = false;
    std::string problem;
    std::vector<std::pair<const char*, size_t>> buffers;
    std::function<void()> body;
};

inline Machine machine;
alignas(16) inline unsigned char shared_memory[1 << 18];

inline void give_way() {
    Thread& mine = machine.threads[machine.current];
    swapcontext(&mine.context, &machine.scheduler);
}

inline void wait_at(Barrier& barrier) {
    const int before = barrier.passed;
    ++machine.moves;
    if (++barrier.there == barrier.members) {
        barrier.there = 0;
        ++barrier.passed;
        return;
    }
    while (barrier.passed == before) give_way();
    ++machine.moves;
}

inline void begin_thread() {
    machine.body();
    Thread& mine = machine.threads[machine.current];
    if (!mine.open.empty()) machine.problem = "a thread ended with copies in no group";
    mine.done = true;
    ++machine.moves;
    give_way();
}

inline bool known(const void* from, size_t bytes) {
    const char* at = static_cast<const char*>(from);
    for (const auto& [start, size] : machine.buffers) {
        if (at >= start && at + bytes <= start + size) return true;
    }
    return false;
}

inline Lane* lanes_of_warp() { return &machine.lanes[machine.current / kWarp * kWarp]; }
inline void warp_barrier() { wait_at(machine.warps[machine.current / kWarp]); }

}  // namespace emulated

inline emulated::Index threadIdx, blockIdx, gridDim;

inline void wait_for_inputs() {}
inline void let_next_start() {}
inline void __syncthreads() { emulated::wait_at(emulated::machine.block); }
inline void __threadfence() {}
inline int atomicAdd(int* at, int more) { return std::exchange(*at, *at + more); }
inline float __ldcg(const float* at) {
    if (!emulated::known(at, 4)) {
        emulated::machine.problem = "a part outside of its buffer";
        return NAN;
    }
    return *at;
}

inline void copy_async(void* shared, const void* global, bool wanted) {
    using namespace emulated;
    const auto to = static_cast<unsigned char*>(shared) - shared_memory;
    if (!known(global, 16)) machine.problem = "a copy from outside of every buffer";
    if (to < 0 || to + 16 > static_cast<long>(sizeof shared_memory)) {
        machine.problem = "a copy to outside of shared memory";
    }
    if (to % 16 || reinterpret_cast<uintptr_t>(global) % 16) machine.problem = "a copy off 16 bytes";
    if (!machine.problem.empty()) return;
    const Copy copy{shared, global, wanted};
    if (machine.eager) {
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

inline void load_blocks(uint32_t (&out)[4], const void* row) {
    using namespace emulated;
    Lane* lanes = lanes_of_warp();
    const int lane = machine.current % kWarp;
    lanes[lane].row = row;
    warp_barrier();
    for (int block = 0; block < 4; ++block) {
        const auto from = static_cast<const unsigned char*>(lanes[block * 8 + lane / 4].row);
        std::memcpy(&out[block], from + lane % 4 * 4, 4);
    }
    warp_barrier();
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

template <typename T>
uint32_t pair(float low, float high) {
    return static_cast<uint32_t>(from_float<T>(high).bits) << 16 | from_float<T>(low).bits;
}
template <typename T>
uint32_t subtract(uint32_t a, uint32_t b) {
    return pair<T>(number_in<T>(a, 0) - number_in<T>(b, 0), number_in<T>(a, 1) - number_in<T>(b, 1));
}

namespace emulated {

// Run blocks of so many threads, one after the other in an order that the seed gives. Throws
// std::runtime_error with what a kernel did wrong.
inline void run(int blocks, int threads, uint32_t seed, bool eager, std::function<void()> body) {
    std::mt19937 random(seed);
    std::vector<int> order(blocks), turns(threads);
    for (int i = 0; i < blocks; ++i) order[i] = i;
    std::shuffle(order.begin(), order.end(), random);
    std::vector<unsigned char> stacks(Machine::kStack * threads);
    gridDim = {blocks};
    machine.eager = eager;
    machine.body = std::move(body);
    machine.problem.clear();
    for (const int block : order) {
        blockIdx = {block};
        std::memset(shared_memory, 0xff, sizeof shared_memory);
        machine.threads = std::vector<Thread>(threads);
        machine.warps.assign(threads / kWarp, Barrier{kWarp});
        machine.lanes.assign(threads, Lane{});
        machine.block = Barrier{threads};
        for (int i = 0; i < threads; ++i) {
            Thread& thread = machine.threads[i];
            turns[i] = i;
            getcontext(&thread.context);
            thread.context.uc_stack.ss_sp = &stacks[Machine::kStack * i];
            thread.context.uc_stack.ss_size = Machine::kStack;
            makecontext(&thread.context, begin_thread, 0);
        }
        std::shuffle(turns.begin(), turns.end(), random);
        for (int left = threads; left > 0;) {
            const int before = machine.moves;
            left = 0;
            for (const int i : turns) {
                if (machine.threads[i].done) continue;
                machine.current = i;
                threadIdx = {i};
                swapcontext(&machine.scheduler, &machine.threads[i].context);
                left += !machine.threads[i].done;
                if (!machine.problem.empty()) throw std::runtime_error(machine.problem);
            }
            if (left > 0 && machine.moves == before) {
                throw std::runtime_error("threads wait for others that never come");
            }
        }
    }
}

}  // namespace emulated
