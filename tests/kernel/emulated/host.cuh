// host.cuh in the emulation of a GPU; see device.cuh here. A launch is over when it returns.
#pragma once
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/error.h>
#include <tvm/ffi/function.h>

#include <cstdint>

#include "device.cuh"

using tvm::ffi::Optional;
using tvm::ffi::TensorView;
using cudaStream_t = int;

inline cudaStream_t stream_of(const TensorView&) {
    return 0;
}

template <typename... Params, typename... Args>
void launch_as(int together, int shared, const char* what, void (*kernel)(Params...),
               int64_t blocks, int threads, Args... args) {
    TVM_FFI_ICHECK(shared <= static_cast<int>(emulated::kShared) && threads % kWarp == 0 &&
                   threads <= 1024 && blocks > 0 && together > 0 && blocks % together == 0)
        << what << ": " << blocks << " blocks of " << threads << " threads, " << shared
        << " bytes, " << together << " together";
    try {
        emulated::run(static_cast<int>(blocks), threads, together,
                      [&] { kernel(static_cast<Params>(args)...); });
    } catch (const std::exception& error) {
        emulated::machine.buffers.clear();
        TVM_FFI_THROW(RuntimeError) << what << ": " << error.what();
    }
    emulated::machine.buffers.clear();
}

template <typename... Params, typename... Args>
void launch_with(int shared, const char* what, void (*kernel)(Params...), int64_t blocks,
                 int threads, cudaStream_t, Args... args) {
    launch_as(1, shared, what, kernel, blocks, threads, args...);
}

template <typename... Params, typename... Args>
void launch(const char* what, void (*kernel)(Params...), int64_t blocks, int threads, cudaStream_t,
            Args... args) {
    launch_as(1, 0, what, kernel, blocks, threads, args...);
}

template <typename... Params, typename... Args>
void launch_clusters(int cluster, int shared, const char* what, void (*kernel)(Params...),
                     int64_t blocks, int threads, cudaStream_t, Args... args) {
    launch_as(cluster, shared, what, kernel, blocks, threads, args...);
}

template <typename... Params, typename... Args>
void launch_together(int shared, const char* what, void (*kernel)(Params...), int64_t blocks,
                     int threads, cudaStream_t, Args... args) {
    launch_as(static_cast<int>(blocks), shared, what, kernel, blocks, threads, args...);
}

inline int processors(int) {
    return 5;
}

inline bool has_warpgroups(int) {
    return emulated::machine.warpgroups;
}

struct SharedLimits {
    int block, processor;
};
inline SharedLimits limits = {120 << 10, 160 << 10};  // less than some blocks ask for
inline SharedLimits shared_limits(int) {
    return limits;
}

template <typename... Params>
void allow_shared(void (*)(Params...), int) {}

template <typename... Params>
int held(void (*)(Params...), int, int) {
    return 1;
}

template <typename... Params>
int64_t resident(void (*)(Params...), int, int, int) {
    return 5;  // few, and no divisor of most work
}

template <typename... Params>
int64_t resident_clusters(void (*)(Params...), int cluster, int, int) {
    return 13 / cluster;
}

inline std::pair<const char*, size_t> bytes_of(const TensorView& x) {
    int64_t last = 0;
    for (int i = 0; i < x.ndim(); ++i) {
        if (x.size(i) == 0) return {static_cast<const char*>(x.data_ptr()), 0};
        last += (x.size(i) - 1) * x.stride(i);
    }
    return {static_cast<const char*>(x.data_ptr()),
            static_cast<size_t>(last + 1) * x.dtype().bits / 8};
}

template <typename T>
T* pointer(const TensorView& x) {
    emulated::machine.buffers.push_back(bytes_of(x));
    return static_cast<T*>(x.data_ptr());
}

template <typename T>
T* pointer_or_null(const Optional<TensorView>& x) {
    return x.has_value() ? pointer<T>(*x) : nullptr;
}

// What tests set before a launch: the order in which threads run, and whether copies and products
// of warpgroups happen at once.
inline void emulate(int64_t seed, bool copies, bool products) {
    emulated::machine.seed = static_cast<uint32_t>(seed);
    emulated::machine.eager_copies = copies, emulated::machine.eager_products = products;
    emulated::machine.late.clear();
}
TVM_FFI_DLL_EXPORT_TYPED_FUNC(emulate, emulate);

// A tensor that the kernel ahead makes: until the next `emulate`, nothing of it may be copied by
// who has not waited for that kernel.
inline void late(TensorView x) {
    emulated::machine.late.push_back(bytes_of(x));
}
TVM_FFI_DLL_EXPORT_TYPED_FUNC(late, late);

// Whether it is a GPU with products of warpgroups.
inline void emulate_warpgroups(bool has) {
    emulated::machine.warpgroups = has;
}
TVM_FFI_DLL_EXPORT_TYPED_FUNC(emulate_warpgroups, emulate_warpgroups);

// Bytes of shared memory that a block may have.
inline void allow(int64_t bytes) {
    limits.block = static_cast<int>(bytes);
}
TVM_FFI_DLL_EXPORT_TYPED_FUNC(allow, allow);

// A tensor whose address a kernel finds in memory; forget: all of those.
inline void know(TensorView x) {
    emulated::machine.kept.push_back(bytes_of(x));
}
inline void forget() {
    emulated::machine.kept.clear();
}
TVM_FFI_DLL_EXPORT_TYPED_FUNC(know, know);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(forget, forget);
