// Attention of decode steps, as functions that Python calls. See decode.cuh for how, and
// attention/cuda.py, which checks what it hands over.
#include "decode.cuh"
#include "host.cuh"

namespace {

template <typename T, int kDim>
__global__ void __launch_bounds__(decode::kWarps* kWarp)
    attend_kernel(const __grid_constant__ decode::Step<T> step) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
    decode::attend<T, kDim>(step, reinterpret_cast<unsigned char*>(dynamic_shared()));
#else
    __trap();
#endif
}

template <typename F>
void with_sizes(DLDataType type, int64_t dim, F run) {
    auto of = [&](auto number) {
        using T = decltype(number);
        if (dim == 128) {
            run(number, attend_kernel<T, 128>, decode::Room<128>::kRing);
        } else if (dim == 64) {
            run(number, attend_kernel<T, 64>, decode::Room<64>::kRing);
        } else {
            TVM_FFI_ICHECK(dim == 32) << "heads of " << dim << " numbers";
            run(number, attend_kernel<T, 32>, decode::Room<32>::kRing);
        }
    };
    TVM_FFI_ICHECK(type.bits == 16 && (type.code == kDLBfloat || type.code == kDLFloat))
        << "numbers of another type";
    if (type.code == kDLBfloat) {
        of(__nv_bfloat16());
    } else {
        of(__half());
    }
}

int shared_of(int64_t rows, int warp) {
    return decode::before_warps(static_cast<int>(rows)) + decode::kWarps * warp;
}

// The most shares that all keys of a key head may be cut into. keys: as for attend.
int64_t shares(TensorView keys, int64_t rows) {
    int64_t out = 0;
    with_sizes(keys.dtype(), keys.size(3), [&](auto, auto kernel, int warp) {
        const int shared = shared_of(rows, warp), threads = decode::kWarps * kWarp;
        const int64_t blocks = resident(kernel, threads, shared, keys.device().device_id);
        out = blocks * decode::kWarps / keys.size(2);
    });
    return out;
}

// q: (rows, query heads, dim), a row's heads one after the other; keys, values: (pages, page_size,
// kv_heads, dim); pages: (rows, n) int32; ends: (rows,) int32; out: (rows, query heads * dim);
// parts, sums: see decode::Step, for `shares` of them; arrived: int32 zeros. window: 0 for none.
// What is not said to be strided is contiguous.
void attend(TensorView q, TensorView keys, TensorView values, TensorView pages, TensorView ends,
            TensorView out, TensorView parts, TensorView sums, TensorView arrived, int64_t window,
            int64_t shares) {
    const int64_t rows = q.size(0), heads = q.size(1), kv_heads = keys.size(2), dim = keys.size(3);
    const int64_t group = heads / kv_heads;
    TVM_FFI_ICHECK(rows > 0 && ends.size(0) == rows && pages.size(0) == rows &&
                   out.size(0) == rows && out.size(1) == heads * dim)
        << rows << " rows do not fit";
    TVM_FFI_ICHECK(heads == group * kv_heads && group >= 1 && group <= decode::kMostGroup)
        << heads << " query heads of " << kv_heads << " key heads";
    TVM_FFI_ICHECK(q.size(2) == dim && q.stride(1) == dim && q.stride(2) == 1 &&
                   q.stride(0) % 2 == 0)
        << "heads of " << dim << " numbers";
    TVM_FFI_ICHECK(shares >= 1 && parts.size(0) >= 2 * shares && sums.size(0) >= 2 * shares &&
                   arrived.size(0) >= shares * kv_heads)
        << shares << " shares";
    with_sizes(q.dtype(), dim, [&](auto number, auto kernel, int warp) {
        using T = decltype(number);
        decode::Step<T> step = {};
        step.q = pointer<T>(q);
        step.keys = pointer<T>(keys), step.values = pointer<T>(values);
        step.pages = pointer<int32_t>(pages), step.ends = pointer<int32_t>(ends);
        step.out = pointer<T>(out), step.arrived = pointer<int>(arrived);
        step.parts = pointer<float>(parts), step.sums = pointer<float>(sums);
        step.stride = q.stride(0), step.width = pages.stride(0);
        step.rows = static_cast<int>(rows), step.group = static_cast<int>(group);
        step.kv_heads = static_cast<int>(kv_heads);
        const int size = step.page_size = static_cast<int>(keys.size(1));
        step.shift = -1;
        for (int bits = 0; bits < 31; ++bits) {
            if (size == 1 << bits) step.shift = bits;
        }
        step.window = static_cast<int>(window), step.shares = static_cast<int>(shares);
        step.scale = static_cast<float>(1.4426950408889634 / std::sqrt(static_cast<double>(dim)));
        const int shared = shared_of(rows, warp);
        const int64_t workers = shares * kv_heads;
        allow_shared(kernel, shared);
        launch_with(shared, "attention of a decode step", kernel,
                    (workers + decode::kWarps - 1) / decode::kWarps, decode::kWarps * kWarp,
                    stream_of(q), step);
    });
}

}  // namespace

TVM_FFI_DLL_EXPORT_TYPED_FUNC(attend, attend);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(shares, shares);
