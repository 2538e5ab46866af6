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

// A tensor of 16-bit numbers, its last dimension first: their sizes, how many bytes lie between two
// of each but the first, and a box of it. It is made for every launch and goes with it, for that
// takes the host less than the launch: nobody has to keep one.
template <int kRank>
TensorMap map_of(void* data, const cuuint64_t (&sizes)[kRank], const cuuint64_t (&apart)[kRank - 1],
                 const cuuint32_t (&box)[kRank], CUtensorMapL2promotion neighbours) {
    // of the driver, which this is not linked with
    static const auto encode = [] {
        void* found = nullptr;
        cudaDriverEntryPointQueryResult how = {};
        const cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found,
                                                                   12000, cudaEnableDefault, &how);
        TVM_FFI_ICHECK(error == cudaSuccess && found != nullptr) << "a driver without tensor maps";
        return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(found);
    }();
    cuuint32_t every[kRank];
    for (cuuint32_t& one : every) one = 1;
    TensorMap map;
    const CUresult error =
        encode(&map, CU_TENSOR_MAP_DATA_TYPE_UINT16, kRank, data, sizes, apart, box, every,
               CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, neighbours,
               CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    TVM_FFI_ICHECK(error == CUDA_SUCCESS) << "no map of a tensor: error " << error;
    return map;
}

// A contiguous matrix, rows of 16-byte pieces.
inline TensorMap in_boxes(const TensorView& matrix, int box_rows, int box_columns) {
    const auto rows = static_cast<cuuint64_t>(matrix.size(0));
    const auto columns = static_cast<cuuint64_t>(matrix.size(1));
    return map_of<2>(matrix.data_ptr(), {columns, rows}, {columns * 2},
                     {static_cast<cuuint32_t>(box_columns), static_cast<cuuint32_t>(box_rows)},
                     CU_TENSOR_MAP_L2_PROMOTION_L2_256B);
}

// The same in boxes side by side: `across` of them, of 64 columns each, are copied at once, one
// behind the other. The matrix is of whole boxes. The second cache is not asked for neighbours of
// what it brings: they are other boxes of the same copy (256 rows of 520 keys: 3.5 % of a step).
inline TensorMap in_rows_of_boxes(const TensorView& matrix, int64_t rows, int64_t columns,
                                  int box_rows, int across) {
    const auto wide = static_cast<cuuint64_t>(columns);
    return map_of<3>(matrix.data_ptr(), {64, static_cast<cuuint64_t>(rows), wide / 64},
                     {wide * 2, 128},
                     {64, static_cast<cuuint32_t>(box_rows), static_cast<cuuint32_t>(across)},
                     CU_TENSOR_MAP_L2_PROMOTION_NONE);
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

// Copy boxes of rows side by side, likewise; first: of them. Most are read once, so that the second
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
