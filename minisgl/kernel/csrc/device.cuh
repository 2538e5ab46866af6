// What every kernel uses on the device: numbers, and how one kernel follows another.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

constexpr int kWarp = 32;

// The shared memory that a launch asked for.
__device__ inline uint4* dynamic_shared() {
    extern __shared__ uint4 memory[];
    return memory;
}

// 16 bytes that are read once, so that they need not stay in the first cache, and never written.
__device__ inline uint4 load_once(const uint4* from) {
    uint4 out;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out.x), "=r"(out.y), "=r"(out.z), "=r"(out.w)
                 : "l"(from));
    return out;
}

// One more has arrived; how many there were. What those and this thread's block wrote before is
// seen by whoever comes after it in this block: no fence of every thread is needed.
__device__ inline int arrive(int* at) {
    int before;
    asm volatile("atom.add.acq_rel.gpu.global.s32 %0, [%1], 1;"
                 : "=r"(before)
                 : "l"(at)
                 : "memory");
    return before;
}

// Make a number that other blocks raise, too, as large as x, if it is smaller.
__device__ inline void raise_to(uint64_t* at, uint64_t x) {
    asm volatile("red.relaxed.gpu.global.max.u64 [%0], %1;" ::"l"(at), "l"(x) : "memory");
}

// A barrier of the first so many threads of a block.
__device__ inline void sync_first(int threads) {
    asm volatile("bar.sync 1, %0;" ::"r"(threads) : "memory");
}

__device__ inline bool any_of_warp(bool mine) {
    return __any_sync(0xffffffffu, mine);
}

// Of neighbouring lanes of a warp: the largest, the sum. A whole warp has instructions for it, from
// compute capability 8.0.
template <int kLanes>
__device__ inline uint32_t max_of_lanes(uint32_t x) {
    if constexpr (kLanes == kWarp) {
        return __reduce_max_sync(0xffffffffu, x);
    } else {
#pragma unroll
        for (int other = 1; other < kLanes; other *= 2) {
            x = max(x, __shfl_xor_sync(0xffffffffu, x, other));
        }
        return x;
    }
}
template <int kLanes>
__device__ inline int sum_of_lanes(int x) {
    if constexpr (kLanes == kWarp) {
        return __reduce_add_sync(0xffffffffu, x);
    } else {
#pragma unroll
        for (int other = 1; other < kLanes; other *= 2) {
            x += __shfl_xor_sync(0xffffffffu, x, other);
        }
        return x;
    }
}

// A number that is the same in all lanes of a warp, so that the compiler knows it.
__device__ inline uint32_t uniform(uint32_t x) {
    return __shfl_sync(0xffffffffu, x, 0);
}

// What another lane of the warp has.
__device__ inline int from_lane(int mine, int lane) {
    return __shfl_sync(0xffffffffu, mine, lane);
}

// Leave the processor to others for a moment.
__device__ inline void doze() {
    __nanosleep(40);
}

// A number for other blocks of this kernel and its stamp, which become visible together.
__device__ inline void hand_over(uint64_t* to, uint32_t number, uint32_t stamp) {
    const uint64_t both = static_cast<uint64_t>(stamp) << 32 | number;
    asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(to), "l"(both) : "memory");
}

// What there is now: a number and its stamp; of two, each with its own.
__device__ inline uint64_t look_at(const uint64_t* at) {
    uint64_t both;
    asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(both) : "l"(at) : "memory");
    return both;
}
__device__ inline void look_at_two(const uint64_t* at, uint64_t (&two)[2]) {
    asm volatile("ld.relaxed.gpu.global.v2.u64 {%0, %1}, [%2];"
                 : "=l"(two[0]), "=l"(two[1])
                 : "l"(at)
                 : "memory");
}

// Until what the kernels before this one wrote can be read.
__device__ inline void wait_for_inputs() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// The kernel after this one may start, as far as there is room.
__device__ inline void let_next_start() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// 2^x, to about float's precision.
__device__ inline float exp2_near(float x) {
    float out;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(x));
    return out;
}

__device__ inline float half_bits(uint32_t bits) {
    return __half2float(__ushort_as_half(static_cast<unsigned short>(bits)));
}
__device__ inline float to_float(float x) {
    return x;
}
__device__ inline float to_float(__half x) {
    return __half2float(x);
}
__device__ inline float to_float(__nv_bfloat16 x) {
    return __bfloat162float(x);
}

template <typename T>
__device__ inline T from_float(float x);
template <>
__device__ inline float from_float<float>(float x) {
    return x;
}
template <>
__device__ inline __half from_float<__half>(float x) {
    return __float2half_rn(x);
}
template <>
__device__ inline __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
    return __float2bfloat16_rn(x);
}
