// Attention of decode steps, as functions that Python calls. See decode.cuh for how.
#include <algorithm>

#include "decode.cuh"
#include "host.cuh"

namespace {

constexpr int kMostThreads = (decode::kMostHeads + 1) * kWarp;

template <typename T, int kDim>
__global__ void __launch_bounds__(kMostThreads, 1)
    attend_kernel(const __grid_constant__ decode::Step<T> step) {
    decode::attend<T, kDim>(step, shared_boxes());
}

template <typename F>
void with_sizes(DLDataType type, int64_t dim, F run) {
    auto of = [&](auto number) {
        using T = decltype(number);
        TVM_FFI_ICHECK(dim == 64 || dim == 128) << "heads of " << dim << " numbers";
        run(number, dim == 64 ? attend_kernel<T, 64> : attend_kernel<T, 128>);
    };
    TVM_FFI_ICHECK(type.bits == 16 && (type.code == kDLBfloat || type.code == kDLFloat))
        << "numbers of another type";
    if (type.code == kDLBfloat) {
        of(__nv_bfloat16());
    } else {
        of(__half());
    }
}

// Key heads of a block, and tiles that are there or on their way, two at least.
struct Shape {
    int heads, stages;
};

// Few rows are cut into fewer shares, each of fewer heads, so that less has to be merged. No heads:
// so many rows are too many for a block's shared memory.
Shape shape_for(int64_t kv_heads, int64_t dim, int64_t rows, int device) {
    const int most = shared_limits(device).block;
    int heads = rows <= 4 ? 2 : rows <= 64 ? 4 : decode::kMostHeads;
    for (; heads > 0; --heads) {
        if (kv_heads % heads != 0) continue;
        for (int stages = decode::kMostStages; stages >= 2; --stages) {
            const decode::Places at(heads, static_cast<int>(dim), stages, static_cast<int>(rows));
            if (at.full <= decode::kRing && at.end <= most) return {heads, stages};
        }
    }
    return {0, 0};
}

// The most shares that all keys of a key head may be cut into; 0: not for such keys or so many
// rows. keys: as for attend.
int64_t shares(TensorView keys, int64_t rows) {
    const int device = keys.device().device_id;
    const int64_t size = keys.size(1), kv_heads = keys.size(2), dim = keys.size(3);
    if (size % decode::kKeys != 0 || (dim != 64 && dim != 128)) return 0;
    const Shape shape = shape_for(kv_heads, dim, rows, device);
    if (shape.heads == 0) return 0;
    return std::max<int64_t>(processors(device) / (kv_heads / shape.heads), 1);
}

// q: (rows, query heads, dim), a row's heads one after the other; keys, values: (pages, page_size,
// kv_heads, dim); pages: (rows, n) int32; ends: (rows,) int32; out: (rows, query heads * dim);
// parts, sums: see decode::Step, for `shares` of them; arrived: int32 zeros. window: 0 for none.
// What is not said to be strided is contiguous.
void attend(TensorView q, TensorView keys, TensorView values, TensorView pages, TensorView ends,
            TensorView out, TensorView parts, TensorView sums, TensorView arrived, int64_t window,
            int64_t shares) {
    const int64_t rows = q.size(0), heads = q.size(1), kv_heads = keys.size(2), dim = keys.size(3);
    const int64_t group = heads / kv_heads, positions = keys.size(0) * keys.size(1);
    auto dense = [](const TensorView& x, DLDataType type) {
        return x.dtype() == type && x.IsContiguous();
    };
    const DLDataType real = {kDLFloat, 32, 1}, whole = {kDLInt, 32, 1};
    TVM_FFI_ICHECK(dense(keys, q.dtype()) && dense(values, q.dtype()) && dense(out, q.dtype()) &&
                   values.numel() == keys.numel())
        << "keys, values and results that are not contiguous and of the queries' type";
    TVM_FFI_ICHECK(dense(ends, whole) && dense(arrived, whole) && dense(parts, real) &&
                   dense(sums, real) && pages.dtype() == whole && pages.stride(1) == 1)
        << "lengths, pages or scratch that are not contiguous, in int32 and float32";
    TVM_FFI_ICHECK(rows > 0 && ends.size(0) == rows && pages.size(0) == rows &&
                   out.size(0) == rows && out.size(1) == heads * dim)
        << rows << " rows do not fit";
    TVM_FFI_ICHECK(heads == group * kv_heads && group >= 1 && group <= decode::kMostGroup)
        << heads << " query heads of " << kv_heads << " key heads";
    TVM_FFI_ICHECK(q.size(2) == dim && q.stride(1) == dim && q.stride(2) == 1 &&
                   q.stride(0) % 2 == 0)
        << "heads of " << dim << " numbers";
    TVM_FFI_ICHECK(keys.size(1) % decode::kKeys == 0) << "pages of " << keys.size(1);
    TVM_FFI_ICHECK(shares >= 1 && parts.size(0) >= 2 * shares && sums.size(0) >= 2 * shares &&
                   arrived.size(0) >= shares * kv_heads)
        << shares << " shares";
    with_sizes(q.dtype(), dim, [&](auto number, auto kernel) {
        using T = decltype(number);
        decode::Step<T> step = {};
        const Shape shape = shape_for(kv_heads, dim, rows, q.device().device_id);
        TVM_FFI_ICHECK(shape.heads > 0) << "too little shared memory for " << rows << " rows";
        step.heads = shape.heads, step.stages = shape.stages;
        const int boxes = step.heads * static_cast<int>(dim / 64);
        step.keys = in_rows_of_boxes(keys, positions, kv_heads * dim, decode::kKeys, boxes);
        step.values = in_rows_of_boxes(values, positions, kv_heads * dim, decode::kKeys, boxes);
        step.q = pointer<T>(q);
        step.pages = pointer<int32_t>(pages), step.ends = pointer<int32_t>(ends);
        step.out = pointer<T>(out), step.arrived = pointer<int>(arrived);
        step.parts = pointer<float>(parts), step.sums = pointer<float>(sums);
        step.stride = q.stride(0), step.width = pages.stride(0);
        step.rows = static_cast<int>(rows), step.group = static_cast<int>(group);
        step.kv_heads = static_cast<int>(kv_heads);
        step.page_size = static_cast<int>(keys.size(1));
        step.window = static_cast<int>(window), step.shares = static_cast<int>(shares);
        step.scale = static_cast<float>(1.4426950408889634 / std::sqrt(static_cast<double>(dim)));
        const decode::Places at(step.heads, static_cast<int>(dim), step.stages, step.rows);
        allow_shared(kernel, at.end);
        launch_with(at.end, "attention of a decode step", kernel, shares * (kv_heads / step.heads),
                    (step.heads + 1) * kWarp, stream_of(q), step);
    });
}

}  // namespace

TVM_FFI_DLL_EXPORT_TYPED_FUNC(attend, attend);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(shares, shares);
