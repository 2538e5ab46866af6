// The CPU kernels as functions that Python calls. Arguments are checked by the caller, in
// kernel/native.py, once per shape where that is enough; what could write out of bounds, here.
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/error.h>
#include <tvm/ffi/function.h>

#include "attention.h"
#include "gemm.h"
#include "int4.h"
#include "rows.h"

namespace {

using tvm::ffi::Optional;
using tvm::ffi::TensorView;

float* floats(const TensorView& x) {
    return static_cast<float*>(x.data_ptr());
}

const float* floats(const Optional<TensorView>& x) {
    return x.has_value() ? floats(*x) : nullptr;
}

int64_t panel() {
    return minisgl::kPanel;
}

// x: (rows, inputs); packed: (panels, inputs, panel); out: (rows, outputs); all contiguous.
void linear(TensorView x, TensorView packed, Optional<TensorView> bias, TensorView out,
            int64_t threads) {
    const int64_t rows = x.size(0), inputs = x.size(1), outputs = out.size(1);
    TVM_FFI_ICHECK(packed.size(1) == inputs && packed.size(2) == minisgl::kPanel &&
                   packed.size(0) == (outputs + minisgl::kPanel - 1) / minisgl::kPanel &&
                   out.size(0) == rows && (rows == 1 || x.stride(0) == inputs))
        << "x, packed weight and out do not fit";
    auto run = [&](auto* weight) {
        auto panel_at = [=](int64_t p, int64_t) { return weight + p * inputs * minisgl::kPanel; };
        minisgl::gemm(floats(x), rows, inputs, inputs, panel_at, floats(bias), floats(out), outputs,
                      threads);
    };
    const DLDataType type = packed.dtype();
    if (type.code == kDLFloat && type.bits == 32) {
        run(static_cast<const float*>(packed.data_ptr()));
    } else if (type.code == kDLFloat && type.bits == 16) {
        run(static_cast<const minisgl::Half*>(packed.data_ptr()));
    } else {
        TVM_FFI_ICHECK(type.code == kDLBfloat && type.bits == 16) << "weights of another type";
        run(static_cast<const minisgl::Bfloat*>(packed.data_ptr()));
    }
}

// codes: (panels, groups, words, panel) int32; scales, zeros: (panels, groups, panel) float16; the
// rest as above.
void linear_int4(TensorView x, TensorView codes, TensorView scales, TensorView zeros, int64_t group,
                 Optional<TensorView> bias, TensorView out, int64_t threads) {
    const int64_t rows = x.size(0), inputs = x.size(1), outputs = out.size(1);
    const minisgl::Int4 weight{static_cast<const int32_t*>(codes.data_ptr()),
                               static_cast<const minisgl::Half*>(scales.data_ptr()),
                               static_cast<const minisgl::Half*>(zeros.data_ptr()), codes.size(1),
                               group};
    TVM_FFI_ICHECK(weight.groups * group == inputs && codes.size(2) == weight.words() &&
                   codes.size(3) == minisgl::kPanel &&
                   codes.size(0) == (outputs + minisgl::kPanel - 1) / minisgl::kPanel &&
                   out.size(0) == rows && (rows == 1 || x.stride(0) == inputs))
        << "x, packed weight and out do not fit";
    minisgl::gemm_int4(floats(x), rows, inputs, weight, floats(bias), floats(out), outputs,
                       threads);
}

void rms_norm(TensorView x, Optional<TensorView> residual, TensorView weight, double eps,
              TensorView out) {
    minisgl::rms_norm(floats(x), const_cast<float*>(floats(residual)), floats(weight), eps,
                      floats(out), x.size(0), x.size(1));
}

void silu_and_mul(TensorView x, TensorView out) {
    minisgl::silu_and_mul(floats(x), floats(out), out.size(0), out.size(1));
}

// qkv: (tokens, query, key and value heads, dim), tokens any stride apart; weight: (query and key
// heads, dim); cosine, sine: (tokens, 1, dim / 2); keys, values: (positions, kv_heads, dim);
// locations: (tokens,) int64.
void turn_and_store(TensorView qkv, Optional<TensorView> weight, double eps, TensorView cosine,
                    TensorView sine, TensorView keys, TensorView values, TensorView locations) {
    const int64_t tokens = qkv.size(0), dim = qkv.size(2), kv_heads = keys.size(1);
    TVM_FFI_ICHECK(qkv.stride(2) == 1 && (qkv.size(1) == 1 || qkv.stride(1) == dim))
        << "a token's heads lie one after the other";
    const auto* where = static_cast<const int64_t*>(locations.data_ptr());
    for (int64_t token = 0; token < tokens; ++token) {
        TVM_FFI_ICHECK(where[token] >= 0 && where[token] < keys.size(0)) << "no such position";
    }
    minisgl::turn_and_store(floats(qkv), qkv.stride(0), floats(weight), eps, floats(cosine),
                            floats(sine), floats(keys), floats(values), where, tokens,
                            qkv.size(1) - 2 * kv_heads, kv_heads, dim);
}

// q: (tokens, heads, dim), tokens any stride apart; keys, values: (pages, page_size, kv_heads,
// dim); table: (rows, n) int32; starts, lengths: (rows,) int64; out: (tokens, heads, dim).
void attend(TensorView q, TensorView keys, TensorView values, TensorView table, TensorView starts,
            TensorView lengths, int64_t window, TensorView out, int64_t threads) {
    const int64_t heads = q.size(1), dim = q.size(2), kv_heads = keys.size(2);
    const int64_t group = heads / kv_heads, rows = table.size(0), page_size = keys.size(1);
    TVM_FFI_ICHECK((heads == 1 || q.stride(1) == dim) && q.stride(2) == 1)
        << "a token's heads lie one after the other";
    const auto* start = static_cast<const int64_t*>(starts.data_ptr());
    const auto* length = static_cast<const int64_t*>(lengths.data_ptr());
    static thread_local std::vector<int64_t> first;
    first.assign(rows, 0);
    for (int64_t row = 1; row < rows; ++row) first[row] = first[row - 1] + length[row - 1];
    const int64_t* begin = first.data();
    const float scale = 1.0f / std::sqrt(static_cast<float>(dim));
    const int64_t q_stride = q.stride(0), out_stride = heads * dim;
    // one row is one piece of work, unless there are fewer rows than threads
    const int64_t pieces = rows < threads ? kv_heads : 1, some = kv_heads / pieces;
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(dynamic)
    for (int64_t item = 0; item < rows * pieces; ++item) {
        static thread_local std::vector<float> scratch;
        static thread_local std::vector<int64_t> places;
        const int64_t row = item / pieces, end = start[row] + length[row];
        const int64_t first_head = item % pieces * some;
        // from the first position that the row's first token sees
        const int64_t base = window ? std::max<int64_t>(0, start[row] + 1 - window) : 0;
        minisgl::find(static_cast<const int32_t*>(table.data_ptr()) + row * table.stride(0),
                      page_size, kv_heads * dim, base, end, places);
        const float* row_keys = floats(keys) + first_head * dim;
        const float* row_values = floats(values) + first_head * dim;
        const float* from = floats(q) + begin[row] * q_stride + first_head * group * dim;
        float* to = floats(out) + begin[row] * out_stride + first_head * group * dim;
        if (length[row] == 1) {
            minisgl::decode(from, row_keys, row_values, places.data(), end - base, some, dim, group,
                            scale, scratch, to);
            continue;
        }
        for (int64_t head = 0; head < some; ++head) {
            minisgl::prefill(from + head * group * dim, q_stride, row_keys + head * dim,
                             row_values + head * dim, places.data(), base, start[row], end, window,
                             dim, group, scale, scratch, to + head * group * dim, out_stride);
        }
    }
}

}  // namespace

TVM_FFI_DLL_EXPORT_TYPED_FUNC(panel, panel);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(linear, linear);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(linear_int4, linear_int4);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(rms_norm, rms_norm);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(silu_and_mul, silu_and_mul);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(turn_and_store, turn_and_store);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(attend, attend);
