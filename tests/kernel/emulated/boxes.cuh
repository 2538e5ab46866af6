// boxes.cuh in the emulation of a GPU; see device.cuh here.
#pragma once
#include "bulk.cuh"
#include "host.cuh"
#include "warpgroup.cuh"

struct TensorMap {
    const unsigned char* first;
    int64_t rows, columns;
    int box_rows, across = 1;
};

inline TensorMap in_boxes(const TensorView& matrix, int box_rows, int box_columns) {
    const int64_t rows = matrix.size(0), columns = matrix.size(1);
    const auto* const first = pointer<unsigned char>(matrix);
    TVM_FFI_ICHECK(reinterpret_cast<uintptr_t>(first) % 16 == 0 && rows > 0 && columns > 0 &&
                   columns % 8 == 0 && box_rows > 0 && box_rows <= 256 && box_columns == 64)
        << "no map of such a matrix";
    return {first, rows, columns, box_rows};
}

inline TensorMap in_rows_of_boxes(const TensorView& matrix, int64_t rows, int64_t columns,
                                  int box_rows, int across) {
    const auto* const first = pointer<unsigned char>(matrix);
    TVM_FFI_ICHECK(reinterpret_cast<uintptr_t>(first) % 16 == 0 && rows > 0 && columns > 0 &&
                   columns % 64 == 0 && box_rows > 0 && box_rows <= 256 && across > 0 &&
                   across <= 256)
        << "no map of such a matrix";
    return {first, rows, columns, box_rows, across};
}

inline unsigned char* shared_boxes() {
    return emulated::shared_memory();
}

inline void copy_box(void* shared, const TensorMap& map, int column, int row, Arrival* at) {
    using namespace emulated;
    auto* const there = static_cast<unsigned char*>(shared);
    const auto to = there - shared_memory();
    const int bytes = map.box_rows * 128;
    if (to % 1024 || to < 0 || to + bytes > static_cast<long>(kShared)) {
        machine.problem = "a box that has no place in shared memory";
        return;
    }
    for (int64_t at = row; at < std::min(row + int64_t{map.box_rows}, map.rows); ++at) {
        const int64_t left = std::min<int64_t>(map.columns - column, 64);
        check_waited(map.first + (at * map.columns + column) * 2, left * 2);
    }
    copy_to(at, bytes, [=] {
        for (int i = 0; i < map.box_rows * 8; ++i) {
            const int above = i / 8, piece = i % 8;
            unsigned char* const out = there + above * 128 + (piece ^ above % 8) * 16;
            const unsigned char* const source =
                map.first + (static_cast<int64_t>(row + above) * map.columns + column) * 2 +
                piece * 16;
            if (row + above >= map.rows || column + piece * 8 >= map.columns) {
                std::memset(out, 0, 16);
            } else if (known(source, 16)) {
                std::memcpy(out, source, 16);
            }
        }
    });
}

inline void copy_row_of_boxes(void* shared, const TensorMap& map, int first, int row, Arrival* at) {
    auto* const to = static_cast<unsigned char*>(shared);
    for (int i = 0; i < map.across; ++i) {
        copy_box(to + i * map.box_rows * 128, map, (first + i) * 64, row, at);
    }
}
