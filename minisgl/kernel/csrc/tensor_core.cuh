// Matrix products of a warp and copies that a thread does not wait for, from compute
// capability 8.0. Source: PTX ISA, "mma.m16n8k16", "mma.m16n8k32", "cp.async".
#pragma once
#include "device.cuh"

// Copy 16 bytes to shared memory.
__device__ inline void copy_async(void* shared, const void* global) {
    const auto to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(global) : "memory");
}

// The copies since the last call are a group.
__device__ inline void end_copy_group() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}

// Until all of this thread's groups but the newest kGroups are there.
template <int kGroups>
__device__ inline void wait_for_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(kGroups) : "memory");
}

// sums (16 x 8) += a (16 x 16) b (16 x 8). Lane i, g = i / 4, t = i % 4, holds two numbers a
// register: a: rows g, g + 8, g, g + 8 at columns 2t, 2t, 2t + 8, 2t + 8 and the next; b: rows 2t,
// 2t + 8 and the next at column g; sums: row g at columns 2t, 2t + 1, then row g + 8.
template <typename T>
__device__ inline void multiply_add(float (&sums)[4], const uint32_t (&a)[4], const uint32_t* b);
template <>
__device__ inline void multiply_add<__half>(float (&sums)[4], const uint32_t (&a)[4],
                                            const uint32_t* b) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
template <>
__device__ inline void multiply_add<__nv_bfloat16>(float (&sums)[4], const uint32_t (&a)[4],
                                                   const uint32_t* b) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// sums (16 x 8) += a (16 x 32) b (32 x 8), whole numbers: bytes of a are 0 to 255, of b -128 to
// 127. As above with four bytes a register: a: columns 4t to 4t + 3 and 4t + 16 to 4t + 19; b:
// those rows.
__device__ inline void multiply_add(int (&sums)[4], const uint32_t (&a)[4], uint2 b) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+r"(sums[0]), "+r"(sums[1]), "+r"(sums[2]), "+r"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b.x), "r"(b.y));
}

// Four matrices of 8 x 8 numbers of 16 bits, whose rows lie in shared memory: lane i points to row
// i % 8 of matrix i / 8. Lane i gets row i / 4 of each at columns 2 (i % 4) and the next; of the
// turned ones, column i / 4 at rows 2 (i % 4) and the next. Source: PTX ISA, "ldmatrix".
__device__ inline void load_matrices(uint32_t (&out)[4], const void* row) {
    const auto from = static_cast<uint32_t>(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(from)
                 : "memory");
}
__device__ inline void load_turned_matrices(uint32_t (&out)[4], const void* row) {
    const auto from = static_cast<uint32_t>(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(from)
                 : "memory");
}

// A matrix of 8 x 8 such numbers that the lanes hold, rows as columns. Source: PTX ISA,
// "movmatrix".
__device__ inline uint32_t turn_matrix(uint32_t two) {
    uint32_t out;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(out) : "r"(two));
    return out;
}

// Two codes of four bits, the lowest of each half, over the bits of `with`. In one instruction,
// which compilers do not make of two constants.
__device__ inline uint32_t two_codes(uint32_t bits, uint32_t with) {
    uint32_t out;
    asm("lop3.b32 %0, %1, 0x000f000f, %2, 0xea;" : "=r"(out) : "r"(bits), "r"(with));
    return out;
}

// a - b of two numbers in a register.
template <typename T>
__device__ inline uint32_t subtract(uint32_t a, uint32_t b);
template <>
__device__ inline uint32_t subtract<__half>(uint32_t a, uint32_t b) {
    const __half2 difference =
        __hsub2(reinterpret_cast<const __half2&>(a), reinterpret_cast<const __half2&>(b));
    return reinterpret_cast<const uint32_t&>(difference);
}
template <>
__device__ inline uint32_t subtract<__nv_bfloat16>(uint32_t a, uint32_t b) {
    const __nv_bfloat162 difference = __hsub2(reinterpret_cast<const __nv_bfloat162&>(a),
                                              reinterpret_cast<const __nv_bfloat162&>(b));
    return reinterpret_cast<const uint32_t&>(difference);
}

// Two numbers in a register, each rounded.
template <typename T>
__device__ inline uint32_t pair(float low, float high) {
    alignas(4) const T both[2] = {from_float<T>(low), from_float<T>(high)};
    return reinterpret_cast<const uint32_t&>(both);
}
