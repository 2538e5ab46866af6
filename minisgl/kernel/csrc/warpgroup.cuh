// What compute capability 9.0 adds: products of four warps together, which go on while their
// threads do other things, and blocks that see each other's shared memory.
// Source: PTX ISA, "wgmma.mma_async", "Matrix descriptor", "barrier.cluster", "mapa".
#pragma once
#include "tensor_core.cuh"

// These instructions are in code for that one capability (sm_90a) only.
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
constexpr bool kByWarpgroups = true;
#else
constexpr bool kByWarpgroups = false;
#endif
constexpr bool kEmulated = false;

// Rows of 8 numbers, 16 bytes each, in shared memory, as the right side of a product: row j of the
// first 8 inputs at `first` + 16 j, and of the next 8 inputs `next` 16-byte pieces further on.
__device__ inline uint64_t right_side(const uint4* first, int next) {
    const auto at = static_cast<uint64_t>(__cvta_generic_to_shared(first));
    constexpr uint64_t kEight = 8;  // pieces from 8 rows to the next 8
    return (at & 0x3ffff) >> 4 | static_cast<uint64_t>(next) << 16 | kEight << 32;
}

// Rows of 64 numbers, 128 bytes, as `copy_box` leaves them from `first` on, as one side of a
// product: their first 16 inputs; the next are kBoxStep further on.
__device__ inline uint32_t boxes_side(const unsigned char* first) {
    const auto at = static_cast<uint32_t>(__cvta_generic_to_shared(first));
    return (at & 0x3ffff) >> 4 | 1u << 16;
}
constexpr uint32_t kBoxStep = 2;
// ... and what all have above that: 64 pieces from 8 rows to the next, swizzled in 128 bytes.
constexpr uint64_t kBoxes = uint64_t{64 | 1u << 30} << 32;

// Write to shared memory what products read there.
__device__ inline void write_for_products(uint32_t* shared, uint32_t word) {
    *shared = word;
}

// This thread's writes to shared memory so far, once a barrier has passed, are seen by products.
__device__ inline void show_to_products() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// Registers of the products that follow are as the instructions before have left them.
__device__ inline void begin_products() {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

// The products since the last call are a group.
__device__ inline void end_products() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// Until all groups of products but the newest kGroups are done.
template <int kGroups>
__device__ inline void wait_for_products() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kGroups) : "memory");
}

// Sums whose products were waited for: what uses them comes after this.
template <int kTiles>
__device__ inline void settle(float (&sums)[kTiles][4]) {
#pragma unroll
    for (int i = 0; i < kTiles * 4; ++i) asm volatile("" : "+f"(sums[i / 4][i % 4])::"memory");
}

// sums (64 x 8 kTiles) += a (64 x 16) b (16 x 8 kTiles): 16 rows a warp; numbers lie in registers
// as those of multiply_add, 8 columns a tile. Until this is waited for neither a nor sums may be
// touched, nor b.
template <typename T, int kTiles>
__device__ inline void multiply_group(float (&sums)[kTiles][4], const uint32_t (&a)[4], uint64_t b);

// The same with both sides in shared memory.
template <typename T, int kTiles>
__device__ inline void multiply_boxes(float (&sums)[kTiles][4], uint32_t a, uint32_t b);

#define SUMS(i) "+f"(sums[i][0]), "+f"(sums[i][1]), "+f"(sums[i][2]), "+f"(sums[i][3])
#define SUMS_2 SUMS(0), SUMS(1)
#define SUMS_4 SUMS_2, SUMS(2), SUMS(3)
#define SUMS_6 SUMS_4, SUMS(4), SUMS(5)
#define SUMS_8 SUMS_6, SUMS(6), SUMS(7)
#define PLACES_2 "%0, %1, %2, %3, %4, %5, %6, %7"
#define PLACES_4 PLACES_2 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define PLACES_6 PLACES_4 ", %16, %17, %18, %19, %20, %21, %22, %23"
#define PLACES_8 PLACES_6 ", %24, %25, %26, %27, %28, %29, %30, %31"
#define MULTIPLY_GROUP(T, TYPE, TILES, COLUMNS, A_AND_B)                                  \
    template <>                                                                           \
    __device__ inline void multiply_group<T, TILES>(float (&sums)[TILES][4],              \
                                                    const uint32_t (&a)[4], uint64_t b) { \
        asm volatile("wgmma.mma_async.sync.aligned.m64n" COLUMNS "k16.f32." TYPE "." TYPE \
                     " {" PLACES_##TILES "}, " A_AND_B ", 1, 1, 1, 0;"                    \
                     : SUMS_##TILES                                                       \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));               \
    }
MULTIPLY_GROUP(__half, "f16", 2, "16", "{%8, %9, %10, %11}, %12")
MULTIPLY_GROUP(__half, "f16", 4, "32", "{%16, %17, %18, %19}, %20")
MULTIPLY_GROUP(__half, "f16", 8, "64", "{%32, %33, %34, %35}, %36")
MULTIPLY_GROUP(__nv_bfloat16, "bf16", 2, "16", "{%8, %9, %10, %11}, %12")
MULTIPLY_GROUP(__nv_bfloat16, "bf16", 4, "32", "{%16, %17, %18, %19}, %20")
MULTIPLY_GROUP(__nv_bfloat16, "bf16", 8, "64", "{%32, %33, %34, %35}, %36")
#undef MULTIPLY_GROUP
#define MULTIPLY_BOXES(T, TYPE, TILES, COLUMNS, A_AND_B)                                  \
    template <>                                                                           \
    __device__ inline void multiply_boxes<T, TILES>(float (&sums)[TILES][4], uint32_t a,  \
                                                    uint32_t b) {                         \
        asm volatile("wgmma.mma_async.sync.aligned.m64n" COLUMNS "k16.f32." TYPE "." TYPE \
                     " {" PLACES_##TILES "}, " A_AND_B ", 1, 1, 1, 0, 0;"                 \
                     : SUMS_##TILES                                                       \
                     : "l"(kBoxes | a), "l"(kBoxes | b));                                 \
    }
MULTIPLY_BOXES(__half, "f16", 6, "48", "%24, %25")
MULTIPLY_BOXES(__half, "f16", 8, "64", "%32, %33")
MULTIPLY_BOXES(__nv_bfloat16, "bf16", 6, "48", "%24, %25")
MULTIPLY_BOXES(__nv_bfloat16, "bf16", 8, "64", "%32, %33")
#undef MULTIPLY_BOXES
#undef PLACES_8
#undef PLACES_6
#undef PLACES_4
#undef PLACES_2
#undef SUMS_8
#undef SUMS_6
#undef SUMS_4
#undef SUMS_2
#undef SUMS

// The blocks that were launched together, side by side, and this one's place among them.
__device__ inline int cluster_blocks() {
    uint32_t out;
    asm("mov.u32 %0, %%cluster_nctaid.x;" : "=r"(out));
    return static_cast<int>(out);
}
__device__ inline int cluster_rank() {
    uint32_t out;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(out));
    return static_cast<int>(out);
}

// Until all threads of the cluster are here; what they wrote before can be read.
__device__ inline void cluster_barrier() {
    asm volatile(
        "barrier.cluster.arrive.release.aligned;\n"
        "barrier.cluster.wait.acquire.aligned;" ::
            : "memory");
}

// What lies in this place of another block's shared memory.
__device__ inline float4 read_from(int rank, const float* mine) {
    const auto at = static_cast<uint32_t>(__cvta_generic_to_shared(mine));
    uint32_t there;
    float4 out;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(at), "r"(rank));
    asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(out.x), "=f"(out.y), "=f"(out.z), "=f"(out.w)
                 : "r"(there)
                 : "memory");
    return out;
}
