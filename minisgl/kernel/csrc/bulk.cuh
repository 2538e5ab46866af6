// Copies of many bytes to shared memory by an engine of their own, which no load or store of the
// threads has to queue behind; from compute capability 9.0. Source: PTX ISA, "cp.async.bulk",
// "mbarrier".
#pragma once
#include "device.cuh"

// Where a thread waits for copies. It is used again and again; each use, from `expect` until all
// bytes are there, is a phase, the first one is 0.
using Arrival = uint64_t;

__device__ inline uint32_t address_of(const void* shared) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

// By one thread, before a barrier of all that use it. arrivals: calls of `expect` and `release` in
// a phase.
__device__ inline void prepare(Arrival* at, int arrivals = 1) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(address_of(at)), "r"(arrivals)
                 : "memory");
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// By one thread, before the copies of a phase: how many bytes they are together.
__device__ inline void expect(Arrival* at, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(address_of(at)),
                 "r"(bytes)
                 : "memory");
}

// All in units of 16 bytes.
__device__ inline void copy_bulk(void* shared, const void* global, int bytes, Arrival* at) {
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
            "r"(address_of(shared)),
        "l"(global), "r"(bytes), "r"(address_of(at))
        : "memory");
}

// Until a phase is over. phase: its number's lowest bit.
__device__ inline void wait_for(Arrival* at, int phase) {
    uint32_t done = 0;
    while (done == 0) {
        asm volatile(
            "{.reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; "
            "selp.u32 %0, 1, 0, p;}"
            : "=r"(done)
            : "r"(address_of(at)), "r"(phase)
            : "memory");
    }
}

// Whether a phase is over. The one before the first is.
__device__ inline bool is_over(Arrival* at, int phase) {
    uint32_t done;
    asm volatile(
        "{.reg .pred p; mbarrier.test_wait.parity.shared::cta.b64 p, [%1], %2; "
        "selp.u32 %0, 1, 0, p;}"
        : "=r"(done)
        : "r"(address_of(at)), "r"(phase)
        : "memory");
    return done != 0;
}

// Arrive in a phase in which nothing is copied; the last arrival ends it.
__device__ inline void release(Arrival* at) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(address_of(at)) : "memory");
}
