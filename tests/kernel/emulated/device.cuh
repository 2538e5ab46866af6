// An emulation of a GPU: what device.cuh gives a kernel, on a CPU. It stands in that file's place
// when csrc is compiled for tests. The threads of a block take turns, each until it waits for
// others; what a warp does together is done once all of its lanes are there. Slow, and strict:
//
// - a copy that nobody waited for has not happened (or, if so asked, happens at once, which shows
//   whether it overwrites what is still read), and the same of a product of warpgroups;
// - threads and blocks run in another order for every seed, and a warp may fall far behind; blocks
//   that are launched together, all or a cluster of them, take turns, others run one after the
//   other;
// - dynamic shared memory begins as NaN, and what is fetched must lie in a tensor that was handed
// over;
// - a barrier that some threads never reach is an error, not a hang, and so is a number that nobody
//   hands over.
#pragma once
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#define __device__
#define __host__
#define __global__
#define __shared__ static  // only in blocks that run one at a time
#define __launch_bounds__(...)
#define __grid_constant__

constexpr int kWarp = 32;

struct alignas(16) uint4 {
    uint32_t x, y, z, w;
};
struct alignas(8) uint2 {
    uint32_t x, y;
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct __half {
    uint16_t bits;
};
struct __nv_bfloat16 {
    uint16_t bits;
};
using std::max;
using std::min;

inline float half_number(uint32_t bits) {
    const int exponent = static_cast<int>(bits >> 10 & 31u), rest = static_cast<int>(bits & 1023u);
    const float size = exponent == 31  ? (rest ? NAN : INFINITY)
                       : exponent == 0 ? std::ldexp(static_cast<float>(rest), -24)
                                       : std::ldexp(static_cast<float>(1024 + rest), exponent - 25);
    return bits & 0x8000u ? -size : size;
}
inline float half_bits(uint32_t bits) {
    static const std::vector<float> numbers = [] {
        std::vector<float> all(1 << 16);
        for (uint32_t i = 0; i < all.size(); ++i) all[i] = half_number(i);
        return all;
    }();
    return numbers[bits & 0xffffu];
}
inline float to_float(float x) {
    return x;
}
inline float to_float(__half x) {
    return half_bits(x.bits);
}
inline float to_float(__nv_bfloat16 x) {
    const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
    float out;
    std::memcpy(&out, &bits, 4);
    return out;
}
template <typename T>
T from_float(float x);
template <>
inline float from_float<float>(float x) {
    return x;
}
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

    void happen() const { std::memcpy(to, from, 16); }
};

struct Barrier {
    int members, there = 0, passed = 0;
};

struct Lane {  // what a lane shows the others of its warp
    float number;
    uint32_t a[4], b[2];
    uint64_t right, whole;
    const void* row;
};

struct Thread {
    ucontext_t context;
    std::vector<Copy> open;
    std::deque<std::vector<Copy>> groups;
    std::vector<bool*> hidden;  // marks of what it wrote
    std::vector<std::function<void()>> open_products;
    std::deque<std::vector<std::function<void()>>> products;
    bool begun = false, done = false, waited = false;  // for what the kernel ahead makes
};

struct Machine {
    std::vector<Thread> threads;  // of the blocks that run now, as all that follows
    std::vector<Barrier> warps, blocks, firsts;
    Barrier cluster{0};
    std::vector<int> ended;  // threads of each block
    std::vector<Lane> lanes;
    std::unique_ptr<unsigned char[]> shared;
    std::unique_ptr<bool[]> hidden;  // words of it, from products of warpgroups
    ucontext_t scheduler;
    int current = 0;
    long moves = 0;
    uint32_t seed = 0;
    bool eager_copies = false, eager_products = false, warpgroups = false;
    std::string problem;
    std::vector<std::pair<const char*, size_t>> buffers, kept;  // of one launch, of all
    std::vector<std::pair<const char*, size_t>> late;           // that the kernel ahead makes
    std::function<void()> body;
};

constexpr size_t kShared = 1 << 18;  // bytes of a block
inline Machine machine;

inline Thread& me() {
    return machine.threads[machine.current];
}
inline int rank();

inline void give_way() {
    Thread& mine = me();
    swapcontext(&mine.context, &machine.scheduler);
}

// counts: as something that happens; not for who only asks, again and again.
inline void wait_at(Barrier& barrier, bool counts = true) {
    const int before = barrier.passed;
    machine.moves += counts;
    if (++barrier.there == barrier.members) {
        barrier.there = 0;
        ++barrier.passed;
        return;
    }
    while (barrier.passed == before) give_way();
    machine.moves += counts;
}

inline void begin_thread() {
    machine.body();
    Thread& mine = me();
    if (!mine.open.empty()) machine.problem = "a thread ended with copies in no group";
    if (!mine.open_products.empty() || !mine.products.empty()) {
        machine.problem = "a thread ended with products that it did not wait for";
    }
    mine.done = true;
    ++machine.ended[rank()];
    ++machine.moves;
    give_way();
}

inline bool known(const void* from, size_t bytes) {
    const char* at = static_cast<const char*>(from);
    for (const auto* some : {&machine.buffers, &machine.kept}) {
        for (const auto& [start, size] : *some) {
            if (at >= start && at + bytes <= start + size) return true;
        }
    }
    machine.problem = "something is fetched from outside of every tensor";
    return false;
}

// A copy of these bytes begins.
inline void check_waited(const void* from, size_t bytes) {
    const char* at = static_cast<const char*>(from);
    for (const auto& [start, size] : machine.late) {
        if (at < start + size && at + bytes > start && !me().waited) {
            machine.problem = "a copy of what the kernel ahead may not have made yet";
        }
    }
}

inline Lane* lanes_of_warp() {
    return &machine.lanes[machine.current / kWarp * kWarp];
}
inline void warp_barrier(bool counts = true) {
    wait_at(machine.warps[machine.current / kWarp], counts);
}

inline unsigned char* shared_memory();

}  // namespace emulated

inline emulated::Index threadIdx, blockIdx, blockDim, gridDim;

inline int emulated::rank() {
    return machine.current / blockDim.x;
}
inline unsigned char* emulated::shared_memory() {
    return &machine.shared[rank() * kShared];
}

inline void wait_for_inputs() {
    emulated::me().waited = true;
}
inline void let_next_start() {}
inline void __syncthreads() {
    emulated::wait_at(emulated::machine.blocks[emulated::rank()]);
}
inline void sync_first(int threads) {
    emulated::Barrier& at = emulated::machine.firsts[emulated::rank()];
    at.members = threads;
    emulated::wait_at(at);
}
inline uint32_t uniform(uint32_t x) {
    return x;
}
inline int from_lane(int mine, int lane) {
    emulated::Lane* lanes = emulated::lanes_of_warp();
    lanes[emulated::machine.current % kWarp].whole = static_cast<uint32_t>(mine);
    emulated::warp_barrier();
    const int out = static_cast<int>(lanes[static_cast<uint32_t>(lane) % kWarp].whole);
    emulated::warp_barrier();
    return out;
}
inline void doze() {}
inline void __trap() {
    emulated::machine.problem = "a kernel that this GPU does not have";
}
inline bool any_of_warp(bool mine) {
    emulated::Lane* lanes = emulated::lanes_of_warp();
    lanes[emulated::machine.current % kWarp].number = mine;
    emulated::warp_barrier(false);
    bool out = false;
    for (int i = 0; i < kWarp; ++i) out |= lanes[i].number != 0.0f;
    emulated::warp_barrier(false);
    return out;
}
inline void __syncwarp() {
    emulated::warp_barrier();
}
inline void hand_over(uint64_t* to, uint32_t number, uint32_t stamp) {
    ++emulated::machine.moves;
    if (emulated::known(to, 8)) *to = static_cast<uint64_t>(stamp) << 32 | number;
}
inline uint64_t look_at(const uint64_t* at) {
    emulated::give_way();  // who waits looks again and again
    return emulated::known(at, 8) ? *at : 0;
}
inline void look_at_two(const uint64_t* at, uint64_t (&two)[2]) {
    if (reinterpret_cast<uintptr_t>(at) % 16)
        emulated::machine.problem = "two numbers off 16 bytes";
    two[0] = look_at(at);
    two[1] = look_at(at + 1);
}
inline void raise_to(uint64_t* at, uint64_t x) {
    if (emulated::known(at, 8)) *at = max(*at, x);
}
inline int arrive(int* at) {
    return (*at)++;
}
inline float __ldcg(const float* at) {
    return emulated::known(at, 4) ? *at : NAN;
}
inline float2 __ldcg(const float2* at) {
    return emulated::known(at, 8) ? *at : float2{NAN, NAN};
}
inline float4 __ldcg(const float4* at) {
    return emulated::known(at, 16) ? *at : float4{NAN, NAN, NAN, NAN};
}
inline uint4 __ldcg(const uint4* at) {
    return emulated::known(at, 16) ? *at : uint4{~0u, ~0u, ~0u, ~0u};
}
inline float __fdividef(float x, float y) {
    return x / y;
}
inline float rsqrtf(float x) {
    return 1.0f / std::sqrt(x);
}
inline float exp2_near(float x) {
    return std::exp2(x);
}
inline float __expf(float x) {
    return std::exp(x);
}
inline float __uint_as_float(uint32_t bits) {
    float out;
    std::memcpy(&out, &bits, 4);
    return out;
}
inline uint32_t __float_as_uint(float x) {
    uint32_t out;
    std::memcpy(&out, &x, 4);
    return out;
}
inline int __float2int_rn(float x) {
    return std::isfinite(x) ? static_cast<int>(std::nearbyint(x)) : 0;
}
inline uint32_t __byte_perm(uint32_t low, uint32_t high, uint32_t places) {
    const uint64_t both = static_cast<uint64_t>(high) << 32 | low;
    uint32_t out = 0;
    for (int i = 0; i < 4; ++i) out |= (both >> (places >> 4 * i & 7u) * 8 & 0xffu) << 8 * i;
    return out;
}
inline uint4* dynamic_shared() {
    return reinterpret_cast<uint4*>(emulated::shared_memory());
}
inline uint4 load_once(const uint4* from) {
    return emulated::known(from, 16) ? *from : uint4{~0u, ~0u, ~0u, ~0u};
}
template <typename T>
T __shfl_xor_sync(uint32_t, T x, int other) {
    emulated::Lane* lanes = emulated::lanes_of_warp();
    const int lane = emulated::machine.current % kWarp;
    std::memcpy(&lanes[lane].whole, &x, sizeof(T));
    emulated::warp_barrier();
    T out;
    std::memcpy(&out, &lanes[lane ^ other].whole, sizeof(T));
    emulated::warp_barrier();
    return out;
}

template <int kLanes>
uint32_t max_of_lanes(uint32_t x) {
    for (int other = 1; other < kLanes; other *= 2) x = max(x, __shfl_xor_sync(~0u, x, other));
    return x;
}
template <int kLanes>
int sum_of_lanes(int x) {
    for (int other = 1; other < kLanes; other *= 2) x += __shfl_xor_sync(~0u, x, other);
    return x;
}

namespace emulated {

// Run blocks of so many threads in an order that the seed gives, `together` of them at a time, side
// by side.
// Throws std::runtime_error with what a kernel did wrong.
inline void run(int blocks, int threads, int together, std::function<void()> body) {
    constexpr size_t kStack = 1 << 16;
    constexpr int kPatience = 1000;  // turns of all threads in which nothing happens
    std::mt19937 random(machine.seed);
    const int many = together * threads;
    std::vector<int> order(blocks / together), turns(many);
    for (int i = 0; i < blocks / together; ++i) order[i] = i * together;
    std::shuffle(order.begin(), order.end(), random);
    const std::unique_ptr<unsigned char[]> stacks(new unsigned char[kStack * many]);
    machine.shared.reset(new unsigned char[kShared * together]);
    machine.hidden.reset(new bool[kShared / 4 * together]);
    blockDim = {threads};
    gridDim = {blocks};
    machine.body = std::move(body);
    machine.problem.clear();
    for (const int first : order) {
        std::memset(machine.shared.get(), 0xff, kShared * together);
        std::memset(machine.hidden.get(), 0, kShared / 4 * together);
        machine.threads = std::vector<Thread>(many);
        machine.warps.assign(many / kWarp, Barrier{kWarp});
        machine.lanes.assign(many, Lane{});
        machine.blocks.assign(together, Barrier{threads});
        machine.firsts.assign(together, Barrier{0});
        machine.cluster = Barrier{many};
        machine.ended.assign(together, 0);
        for (int i = 0; i < many; ++i) {
            Thread& thread = machine.threads[i];
            turns[i] = i;
            getcontext(&thread.context);
            thread.context.uc_stack.ss_sp = &stacks[kStack * i];
            thread.context.uc_stack.ss_size = kStack;
            makecontext(&thread.context, begin_thread, 0);
        }
        std::shuffle(turns.begin(), turns.end(), random);
        std::vector<int> naps(many / kWarp);  // turns that a warp leaves out
        int quiet = 0;
        for (int left = many; left > 0;) {
            const long before = machine.moves;
            left = 0;
            for (int& nap : naps) {
                nap = nap > 0 ? nap - 1 : random() % 256 == 0 ? 1 + random() % 256 : 0;
            }
            for (const int i : turns) {
                if (machine.threads[i].done) continue;
                if (naps[i / kWarp] > 0) {
                    ++left;
                    continue;
                }
                machine.current = i;
                threadIdx = {i % threads};
                blockIdx = {first + i / threads};
                swapcontext(&machine.scheduler, &machine.threads[i].context);
                left += !machine.threads[i].done;
                if (!machine.problem.empty()) throw std::runtime_error(machine.problem);
            }
            quiet = machine.moves == before ? quiet + 1 : 0;
            if (left > 0 && quiet == kPatience) {
                throw std::runtime_error("threads wait for others that never come");
            }
        }
    }
}

}  // namespace emulated
