// Copies of boxes of a matrix to shared memory, laid out there as products of warpgroups read them;
// from compute capability 9.0. Source: PTX ISA, "cp.async.bulk.tensor"; CUDA driver API, "Tensor
// Map Object Management".
#pragma once
#include <cuda.h>

#include "bulk.cuh"
#include "host.cuh"
#include "warpgroup.cuh"

// How a matrix lies in memory, and which box of it a copy takes.
using TensorMap = CUtensorMap;

// The driver's function that makes one, which this is not linked with.
inline auto encode_map() {
    static const auto encode = [] {
        void* found = nullptr;
        cudaDriverEntryPointQueryResult how = {};
        const cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found,
                                                                   12000, cudaEnableDefault, &how);
        TVM_FFI_ICHECK(error == cudaSuccess && found != nullptr) << "a driver without tensor maps";
        return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(found);
    }();
    return encode;
}

// A contiguous matrix of 16-bit numbers, rows of 16-byte pieces. It is made for every launch and
// goes with it, for that takes the host less than the launch: nobody has to keep one.
inline TensorMap in_boxes(const TensorView& matrix, int box_rows, int box_columns) {
    const auto rows = static_cast<cuuint64_t>(matrix.size(0));
    const auto columns = static_cast<cuuint64_t>(matrix.size(1));
    const cuuint64_t whole[] = {columns, rows}, apart[] = {columns * 2};
    const cuuint32_t box[] = {static_cast<cuuint32_t>(box_columns),
                              static_cast<cuuint32_t>(box_rows)};
    const cuuint32_t every[] = {1, 1};
    TensorMap map;
    const CUresult error =
        encode_map()(&map, CU_TENSOR_MAP_DATA_TYPE_UINT16, 2, matrix.data_ptr(), whole, apart, box,
                     every, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                     CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    TVM_FFI_ICHECK(error == CUDA_SUCCESS) << "no map of a tensor: error " << error;
    return map;
}

// The same in boxes side by side: `across` of them, of 64 columns each, are copied at once, one
// behind the other. The matrix is of whole boxes. The second cache is not asked for neighbours of
// what it brings: they are other boxes of the same copy (192 rows of 500 keys: 4.5 % of a step).
inline TensorMap in_rows_of_boxes(const TensorView& matrix, int64_t rows, int64_t columns,
                                  int box_rows, int across) {
    const cuuint64_t whole[] = {64, static_cast<cuuint64_t>(rows),
                                static_cast<cuuint64_t>(columns / 64)};
    const cuuint64_t apart[] = {static_cast<cuuint64_t>(columns) * 2, 128};
    const cuuint32_t box[] = {64, static_cast<cuuint32_t>(box_rows),
                              static_cast<cuuint32_t>(across)};
    const cuuint32_t every[] = {1, 1, 1};
    TensorMap map;
    const CUresult error =
        encode_map()(&map, CU_TENSOR_MAP_DATA_TYPE_UINT16, 3, matrix.data_ptr(), whole, apart, box,
                     every, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                     CU_TENSOR_MAP_L2_PROMOTION_NONE, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    TVM_FFI_ICHECK(error == CUDA_SUCCESS) << "no map of a tensor: error " << error;
    return map;
}

// The shared memory that a launch asked for, from an address on at which boxes may begin.
__device__ inline unsigned char* shared_boxes() {
    extern __shared__ __align__(1024) unsigned char boxes[];
    return boxes;
}

// Copy a box of rows of 128 bytes: 16-byte piece p of row r is at p ^ r % 8 of it. Zeros where the
// matrix has ended.
__device__ inline void copy_box(void* shared, const TensorMap& map, int column, int row,
                                Arrival* at) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
        "[%0], [%1, {%2, %3}], [%4];" ::"r"(address_of(shared)),
        "l"(&map), "r"(column), "r"(row), "r"(address_of(at))
        : "memory");
}

// Copy boxes of rows side by side, likewise; first: of them. They are read once, so that the second
// cache need not keep them.
__device__ inline void copy_row_of_boxes(void* shared, const TensorMap& map, int first, int row,
                                         Arrival* at) {
    asm volatile(
        "{.reg .b64 once; createpolicy.fractional.L2::evict_first.b64 once, 1.0; "
        "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
        ".L2::cache_hint [%0], [%1, {%2, %3, %4}], [%5], once;}" ::"r"(address_of(shared)),
        "l"(&map), "r"(0), "r"(row), "r"(first), "r"(address_of(at))
        : "memory");
}
