// How long an exchange alone takes: every block hands over its part of a row and waits for all of it, again and again.
// nvcc -O3 -std=c++17 -gencode=arch=compute_90a,code=sm_90a exchange.cu -o exchange && ./exchange
#include <cooperative_groups.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstdio>
namespace cg = cooperative_groups;
constexpr int kThreads = 512, kFetch = 128, kRing = 64, kBytes = 2048;
__device__ inline void put(uint64_t* to, uint32_t x, uint32_t stamp) {
    asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(to), "l"(uint64_t(stamp) << 32 | x) : "memory");
}
__device__ inline void put_two(uint64_t* to, uint32_t x, uint32_t stamp) {  // one access of 16 bytes
    asm volatile("st.relaxed.gpu.global.v2.u64 [%0], {%1, %1};" ::"l"(to), "l"(uint64_t(stamp) << 32 | x) : "memory");
}
__device__ inline void look(const uint64_t* at, uint64_t (&two)[2]) {
    asm volatile("ld.relaxed.gpu.global.v2.u64 {%0, %1}, [%2];" : "=l"(two[0]), "=l"(two[1]) : "l"(at) : "memory");
}
__device__ inline uint32_t shared_at(const void* p) { return uint32_t(__cvta_generic_to_shared(p)); }
__device__ inline void dsmem(uint32_t* own, int rank, uint32_t x) {
    uint32_t to;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(to) : "r"(shared_at(own)), "r"(rank));
    asm volatile("st.shared::cluster.u32 [%0], %1;" ::"r"(to), "r"(x) : "memory");
}
struct How { int numbers, line, copies, both, pause, pair, load; };  // line: words from four to the next four
__device__ inline int place(int w, int line) { return w / 4 * line + w % 4; }
__global__ void __launch_bounds__(kThreads + kFetch) exchange(How how, int turns, uint64_t* words, const char* weights, size_t bytes, long long* took, int* bad) {
    extern __shared__ __align__(128) char ring[];
    __shared__ uint32_t row[8192];
    __shared__ uint64_t arrived[kRing];
    const int blocks = gridDim.x, b = blockIdx.x, tiles = how.numbers / 2;
    const int first = tiles * b / blocks, count = tiles * (b + 1) / blocks - first, size = tiles / 4 * how.line + 64;
    __shared__ int stop;
    if (threadIdx.x == 0) {
        stop = 0;
        for (int i = 0; i < kRing; ++i) asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_at(arrived + i)));
        asm volatile("fence.mbarrier_init.release.cluster;");
    }
    __syncthreads();
    if (threadIdx.x >= kThreads) {  // weights stream in all the time
        if (!how.load || threadIdx.x != kThreads) return;
        size_t at = size_t(b) * kBytes;
        int n = 0;
        for (; !*(volatile int*)&stop; ++n) {
            const int slot = n % kRing;
            if (n >= kRing) {
                uint32_t done = 0;
                while (!done) asm volatile("{.reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p;}" : "=r"(done) : "r"(shared_at(arrived + slot)), "r"(n / kRing + 1 & 1) : "memory");
            }
            asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_at(arrived + slot)), "r"(kBytes) : "memory");
            asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(shared_at(ring + slot * kBytes)), "l"(weights + at), "r"(kBytes), "r"(shared_at(arrived + slot)) : "memory");
            at += size_t(blocks) * kBytes;
            if (at + kBytes > bytes) at = size_t(b) * kBytes;
        }
        for (int k = n > kRing ? n - kRing : 0; k < n; ++k) {
            uint32_t done = 0;
            while (!done) asm volatile("{.reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p;}" : "=r"(done) : "r"(shared_at(arrived + k % kRing)), "r"(k / kRing & 1) : "memory");
        }
        return;
    }
    const int rank = how.pair ? b % 2 : 0;
    long long begin = 0;
    for (int turn = 1; turn <= turns; ++turn) {
        if (turn == 11) begin = clock64();
        uint64_t* const to = words + (turn % 2) * size_t(how.copies) * size;
        if (how.both) {
            if (threadIdx.x < (count + 1) / 2) put_two(to + place((first + 2 * threadIdx.x) & ~1, how.line), turn, turn);
        } else if (threadIdx.x < count * how.copies) {
            put(to + (threadIdx.x / count) * size + place(first + threadIdx.x % count, how.line), turn, turn);
        }
        const uint64_t* const from = to + (b % how.copies) * size;
        for (int p = threadIdx.x + rank * kThreads * 0; p < tiles / 2; p += kThreads) {
            if (how.pair && p % 2 != rank) continue;
            uint64_t two[2];
            look(from + place(2 * p, how.line), two);
            for (int n = 0; two[0] >> 32 != turn || two[1] >> 32 != turn; ++n) {
                if (how.pause) __nanosleep(how.pause);
                look(from + place(2 * p, how.line), two);
                if (n > 1000000) { *bad = turn; break; }
            }
            row[2 * p] = uint32_t(two[0]), row[2 * p + 1] = uint32_t(two[1]);
            if (how.pair) dsmem(row + 2 * p, rank ^ 1, uint32_t(two[0])), dsmem(row + 2 * p + 1, rank ^ 1, uint32_t(two[1]));
        }
        if (how.pair) {
            asm volatile("barrier.cluster.arrive.release; barrier.cluster.wait.acquire;" ::: "memory");
        } else {
            asm volatile("bar.sync 1, %0;" ::"r"(kThreads) : "memory");
        }
        if (row[threadIdx.x] != uint32_t(turn) && threadIdx.x < tiles) *bad = -turn;
        if (*(volatile int*)bad) break;
    }
    if (threadIdx.x == 0) took[b] = clock64() - begin, stop = 1;
}
int main() {
    const size_t bytes = size_t(4) << 30;
    uint64_t* words; char* weights; long long* took; int* bad;
    cudaMalloc(&words, 64 << 20), cudaMalloc(&weights, bytes), cudaMallocManaged(&took, 8 * 1024), cudaMallocManaged(&bad, 4);
    int blocks; cudaDeviceGetAttribute(&blocks, cudaDevAttrMultiProcessorCount, 0);
    const int shared = kRing * kBytes;
    cudaFuncSetAttribute(exchange, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
    const int turns = 1010;
    auto one = [&](const char* name, How how) {
        cudaMemset(words, 0, 64 << 20), *bad = 0;
        cudaDeviceSynchronize();
        cudaLaunchConfig_t config = {};
        config.gridDim = blocks, config.blockDim = kThreads + kFetch, config.dynamicSmemBytes = shared;
        cudaLaunchAttribute attribute[2];
        attribute[0].id = cudaLaunchAttributeCooperative, attribute[0].val.cooperative = 1;
        attribute[1].id = cudaLaunchAttributeClusterDimension;
        attribute[1].val.clusterDim.x = 2, attribute[1].val.clusterDim.y = attribute[1].val.clusterDim.z = 1;
        config.attrs = attribute, config.numAttrs = how.pair ? 2 : 1;
        for (int i = 0; i < 2; ++i) {
            cudaMemset(words, 0, 64 << 20);
            auto error = cudaLaunchKernelEx(&config, exchange, how, turns, words, (const char*)weights, bytes, took, bad);
            if (error == cudaSuccess) error = cudaDeviceSynchronize();
            if (error != cudaSuccess) { printf("%-22s %s\n", name, cudaGetErrorString(error)); return; }
        }
        double all = 0;
        for (int b = 0; b < blocks; ++b) all += double(took[b]) / blocks;
        printf("%-22s %5d numbers, load %d: %6.0f cycles an exchange, bad %d\n", name, how.numbers, how.load, all / (turns - 10), *bad);
        fflush(stdout);
    };
    for (int load : {0, 1}) for (int n : {1024, 2048, 3072, 4096}) {
        one("plain", {n, 4, 1, 0, 0, 0, load});
        one("spread 2", {n, 8, 1, 0, 0, 0, load});
        one("spread 4", {n, 16, 1, 0, 0, 0, load});
        one("spread 8", {n, 32, 1, 0, 0, 0, load});
        one("copies 4", {n, 4, 4, 0, 0, 0, load});
        one("copies 4, spread 4", {n, 16, 4, 0, 0, 0, load});
        one("16-byte stores", {n, 4, 1, 1, 0, 0, load});
        one("pause 20", {n, 4, 1, 0, 20, 0, load});
        one("pairs of blocks", {n, 4, 1, 0, 0, 1, load});
        one("pairs, spread 4", {n, 16, 1, 0, 0, 1, load});
    }
}
