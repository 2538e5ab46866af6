// What every function that Python calls uses to launch a kernel.
#pragma once
#include <cuda_runtime.h>
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/error.h>
#include <tvm/ffi/extra/c_env_api.h>
#include <tvm/ffi/function.h>

#include <cstdint>

#include "bulk.cuh"

using tvm::ffi::Optional;
using tvm::ffi::TensorView;

inline cudaStream_t stream_of(const TensorView& x) {
    const DLDevice device = x.device();
    return static_cast<cudaStream_t>(TVMFFIEnvGetStream(device.device_type, device.device_id));
}

// how: attributes of the launch, the first `many` of which count.
template <typename... Params, typename... Args>
void launch_as(cudaLaunchAttribute* how, int many, int shared, const char* what,
               void (*kernel)(Params...), int64_t blocks, int threads, cudaStream_t stream,
               Args... args) {
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(static_cast<unsigned>(blocks));
    config.blockDim = dim3(threads);
    config.dynamicSmemBytes = static_cast<size_t>(shared);
    config.stream = stream;
    config.attrs = how;
    config.numAttrs = static_cast<unsigned>(many);
    const cudaError_t error = cudaLaunchKernelEx(&config, kernel, static_cast<Params>(args)...);
    TVM_FFI_ICHECK(error == cudaSuccess) << what << ": " << cudaGetErrorString(error);
}

// Launch with leave to start before the kernel ahead in the stream has ended.
// shared: bytes of dynamic shared memory; cluster: blocks that run together, if several.
template <typename... Params, typename... Args>
void launch_clusters(int cluster, int shared, const char* what, void (*kernel)(Params...),
                     int64_t blocks, int threads, cudaStream_t stream, Args... args) {
    cudaLaunchAttribute how[2];
    how[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    how[0].val.programmaticStreamSerializationAllowed = 1;
    how[1].id = cudaLaunchAttributeClusterDimension;
    how[1].val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
    launch_as(how, cluster > 1 ? 2 : 1, shared, what, kernel, blocks, threads, stream, args...);
}

template <typename... Params, typename... Args>
void launch_with(int shared, const char* what, void (*kernel)(Params...), int64_t blocks,
                 int threads, cudaStream_t stream, Args... args) {
    launch_clusters(1, shared, what, kernel, blocks, threads, stream, args...);
}

// Launch blocks that may wait for each other: all of them run at once, or it is an error.
template <typename... Params, typename... Args>
void launch_together(int shared, const char* what, void (*kernel)(Params...), int64_t blocks,
                     int threads, cudaStream_t stream, Args... args) {
    cudaLaunchAttribute together;
    together.id = cudaLaunchAttributeCooperative;
    together.val.cooperative = 1;
    launch_as(&together, 1, shared, what, kernel, blocks, threads, stream, args...);
}

template <typename... Params, typename... Args>
void launch(const char* what, void (*kernel)(Params...), int64_t blocks, int threads,
            cudaStream_t stream, Args... args) {
    launch_with(0, what, kernel, blocks, threads, stream, args...);
}

// Multiprocessors of a GPU.
inline int processors(int device) {
    int count = 0;
    const cudaError_t error =
        cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
    TVM_FFI_ICHECK(error == cudaSuccess) << cudaGetErrorString(error);
    return count;
}

// Whether a GPU has products of warpgroups: those of this one capability.
inline bool has_warpgroups(int device) {
    int major = 0;
    const cudaError_t error =
        cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    TVM_FFI_ICHECK(error == cudaSuccess) << cudaGetErrorString(error);
    return major == 9;
}

// Bytes of shared memory that a block may have at most, and that a multiprocessor has.
struct SharedLimits {
    int block, processor;
};
inline SharedLimits shared_limits(int device) {
    SharedLimits has = {};
    cudaError_t error =
        cudaDeviceGetAttribute(&has.block, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    if (error == cudaSuccess) {
        error = cudaDeviceGetAttribute(&has.processor, cudaDevAttrMaxSharedMemoryPerMultiprocessor,
                                       device);
    }
    TVM_FFI_ICHECK(error == cudaSuccess) << cudaGetErrorString(error);
    return has;
}

// A kernel may be launched with so many bytes of dynamic shared memory.
template <typename... Params>
void allow_shared(void (*kernel)(Params...), int shared) {
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
    TVM_FFI_ICHECK(error == cudaSuccess) << cudaGetErrorString(error);
}

// Blocks of a kernel that a multiprocessor holds at a time; shared: bytes that each asks for.
template <typename... Params>
int held(void (*kernel)(Params...), int threads, int shared) {
    int blocks = 0;
    allow_shared(kernel, shared);
    const cudaError_t error =
        cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, threads, shared);
    TVM_FFI_ICHECK(error == cudaSuccess) << cudaGetErrorString(error);
    return blocks;
}

// The same of a whole GPU, which must hold some.
template <typename... Params>
int64_t resident(void (*kernel)(Params...), int threads, int shared, int device) {
    const int each = held(kernel, threads, shared);
    TVM_FFI_ICHECK(each > 0) << each << " blocks fit a multiprocessor";
    return int64_t{each} * processors(device);
}

// Clusters of so many blocks that a GPU, the current one, holds at a time.
template <typename... Params>
int64_t resident_clusters(void (*kernel)(Params...), int cluster, int threads, int shared) {
    allow_shared(kernel, shared);
    cudaLaunchAttribute together;
    together.id = cudaLaunchAttributeClusterDimension;
    together.val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(static_cast<unsigned>(cluster));
    config.blockDim = dim3(threads);
    config.dynamicSmemBytes = static_cast<size_t>(shared);
    config.attrs = &together;
    config.numAttrs = 1;
    int clusters = 0;
    const cudaError_t error = cudaOccupancyMaxActiveClusters(&clusters, kernel, &config);
    TVM_FFI_ICHECK(error == cudaSuccess && clusters > 0)
        << cudaGetErrorString(error) << "; " << clusters << " clusters fit the GPU";
    return clusters;
}

// A matrix of 16-bit numbers in boxes; see copy_box. stride: numbers from row to row, a multiple of
// 8. box_rows, box_columns: of a box.
inline TensorMap in_boxes(const void* first, int64_t rows, int64_t columns, int64_t stride,
                          int box_rows, int box_columns) {
    // of the driver, which this is not linked with
    static const auto encode = [] {
        void* found = nullptr;
        cudaDriverEntryPointQueryResult how = {};
        const cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found,
                                                                   12000, cudaEnableDefault, &how);
        TVM_FFI_ICHECK(error == cudaSuccess && found != nullptr) << "a driver without tensor maps";
        return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(found);
    }();
    const cuuint64_t whole[] = {static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(rows)};
    const cuuint64_t apart[] = {static_cast<cuuint64_t>(stride) * 2};
    const cuuint32_t part[] = {static_cast<cuuint32_t>(box_columns),
                               static_cast<cuuint32_t>(box_rows)};
    const cuuint32_t every[] = {1, 1};
    TensorMap map;
    const CUresult error =
        encode(&map, CU_TENSOR_MAP_DATA_TYPE_UINT16, 2, const_cast<void*>(first), whole, apart,
               part, every, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
               CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    TVM_FFI_ICHECK(error == CUDA_SUCCESS) << "no map of a tensor: error " << error;
    return map;
}

template <typename T>
T* pointer(const TensorView& x) {
    return static_cast<T*>(x.data_ptr());
}

template <typename T>
T* pointer_or_null(const Optional<TensorView>& x) {
    return x.has_value() ? pointer<T>(*x) : nullptr;
}
