// The CUDA kernels as functions that Python calls: what happens between matrix products. Each works
// on the stream that torch uses on the calling thread, allocates nothing and waits for nothing, so
// all of them can be captured in a CUDA graph. kernel/cuda.py checks what it hands over.
//
// A kernel may be started while the one before it in the stream still runs (programmatic dependent
// launch): each waits before it touches what that one writes, and a matrix product fetches weights
// meanwhile, which nobody writes.
#include "device.cuh"
#include "greedy.cuh"
#include "host.cuh"
#include "product.cuh"
#include "rows.cuh"

namespace {

constexpr int kVectors = 4;  // 16-byte pieces of a row that one thread keeps in registers

// One block a row: out = (x + residual) / rms * weight; the sum goes to residual, if there is one.
template <typename T>
__global__ void rms_norm_kernel(const T* x, T* residual, const T* weight, float eps, T* out,
                                int64_t size) {
    using P = Pack<T>;
    __shared__ float scratch[kMaxThreads / kWarp];
    const int64_t row = blockIdx.x;
    const int count = static_cast<int>(size / P::kSize);
    const P* from = reinterpret_cast<const P*>(x + row * size);
    P* base = residual == nullptr ? nullptr : reinterpret_cast<P*>(residual + row * size);
    const P* weights = reinterpret_cast<const P*>(weight);
    P kept[kVectors];
    float squares = 0.0f;
    let_next_start();
    const P first = static_cast<int>(threadIdx.x) < count ? weights[threadIdx.x] : P{};
    wait_for_inputs();
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
        const int at = threadIdx.x + i * blockDim.x;
        if (at >= count) break;
        kept[i] = from[at];
        if (base != nullptr) {
            kept[i] = added(kept[i], base[at]);
            base[at] = kept[i];
        }
        squares = add_squares(squares, kept[i]);
    }
    const float scale = norm_scale(block_sum(squares, scratch), size, eps);
    P* to = reinterpret_cast<P*>(out + row * size);
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
        const int at = threadIdx.x + i * blockDim.x;
        if (at >= count) break;
        to[at] = scaled(kept[i], scale, i == 0 ? first : weights[at]);
    }
}

// Of each position's pair of numbers the cosine and the sine of its angle.
template <typename T>
__global__ void rotation_kernel(const int64_t* positions, const float* frequencies, T* cosine,
                                T* sine, int64_t all, int64_t pairs) {
    const int64_t index = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    let_next_start();
    const float frequency = frequencies[index % pairs];
    wait_for_inputs();
    if (index >= all) return;
    const float angle = static_cast<float>(positions[index / pairs]) * frequency;
    float c, s;
    sincosf(angle, &s, &c);
    cosine[index] = from_float<T>(c);
    sine[index] = from_float<T>(s);
}

// x: (tokens, 2 * size); out: (tokens, size).
template <typename T>
__global__ void silu_and_mul_kernel(const T* x, T* out, int64_t size, int64_t pieces) {
    using P = Pack<T>;
    const int64_t index = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    let_next_start();
    wait_for_inputs();
    if (index >= pieces) return;
    const int64_t across = size / P::kSize, row = index / across, column = index % across;
    const P* from = reinterpret_cast<const P*>(x) + row * 2 * across + column;
    reinterpret_cast<P*>(out)[index] = gated(from[0], from[across]);
}

// Where new keys and values go, and how a token's heads are shared out.
template <typename T>
struct Place {
    T *keys, *values;          // (positions, kv_heads, dim)
    const int64_t* locations;  // (tokens,)
    int heads, kv_heads;       // query heads; keys, and as many values, follow them
};

// Numbers that follow one another, read and written at once.
template <typename T, int kCount>
struct alignas(sizeof(T) * kCount) Run {
    T at[kCount];
};

// One warp a head, kPairs of its pairs a thread. A query or a key is normalised (if there is a
// weight), then pair (i, i + dim / 2) turned, in place; keys and values are copied to where they
// belong. dim / 2 is a multiple of kPairs.
template <typename T, int kPairs>
__global__ void turn_and_store_kernel(T* x, int64_t stride, const T* weight, float eps,
                                      const T* cosine, const T* sine, Place<T> to, int64_t tokens,
                                      int dim) {
    using R = Run<T, kPairs>;
    const int64_t index = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / kWarp;
    const int turned = to.heads + to.kv_heads, all = turned + to.kv_heads;
    const int half = dim / 2, at = threadIdx.x % kWarp * kPairs;
    const int64_t token = index / all;
    const int head = static_cast<int>(index % all);
    const bool mine = token < tokens && at < half;
    auto read = [&](const T* from) { return mine ? *reinterpret_cast<const R*>(from) : R{}; };
    auto write = [&](T* to, const R& numbers) { *reinterpret_cast<R*>(to) = numbers; };
    R low_factor = {}, high_factor = {};
    let_next_start();
    if (weight != nullptr && head < turned) {
        const T* factors = weight + static_cast<int64_t>(head) * dim + at;
        low_factor = read(factors);
        high_factor = read(factors + half);
    }
    wait_for_inputs();
    T* row = x + token * stride + static_cast<int64_t>(head) * dim + at;
    R low = read(row), high = read(row + half);
    T* copy = nullptr;
    if (mine && head >= to.heads) {
        const int own = head < turned ? head - to.heads : head - turned;
        copy = (head < turned ? to.keys : to.values) + at +
               (to.locations[token] * to.kv_heads + own) * dim;
    }
    if (head < turned) {
        const R c = read(cosine + token * half + at), s = read(sine + token * half + at);
        float squares = 0.0f;
#pragma unroll
        for (int i = 0; i < kPairs; ++i) {
            const float a = to_float(low.at[i]), b = to_float(high.at[i]);
            squares += a * a + b * b;
        }
        float scale = 1.0f;
        if (weight != nullptr) scale = rsqrtf(warp_sum(squares) / static_cast<float>(dim) + eps);
#pragma unroll
        for (int i = 0; i < kPairs; ++i) {
            float a = to_float(low.at[i]), b = to_float(high.at[i]);
            if (weight != nullptr) {
                // rounded as a tensor between the two steps would be
                a = to_float(from_float<T>(a * scale * to_float(low_factor.at[i])));
                b = to_float(from_float<T>(b * scale * to_float(high_factor.at[i])));
            }
            low.at[i] = from_float<T>(a * to_float(c.at[i]) - b * to_float(s.at[i]));
            high.at[i] = from_float<T>(b * to_float(c.at[i]) + a * to_float(s.at[i]));
        }
        if (mine) {
            write(row, low);
            write(row + half, high);
        }
    }
    if (copy != nullptr) {
        write(copy, low);
        write(copy + half, high);
    }
}

// One block a decoding row. packed: five runs of `rows` numbers: slot, position, token (below 0:
// the one that the slot sampled last), entry of the flat page table to write (below 0: none), page.
__global__ void decode_inputs_kernel(const int64_t* packed, int32_t* table, int64_t width,
                                     const int64_t* last, int page_size, int64_t* ids,
                                     int64_t* positions, int64_t* locations, int32_t* ends,
                                     int32_t* pages) {
    let_next_start();
    wait_for_inputs();
    const int rows = gridDim.x, row = blockIdx.x;
    const int64_t slot = packed[row], position = packed[rows + row];
    if (threadIdx.x == 0) {
        const int64_t given = packed[2 * rows + row], entry = packed[3 * rows + row];
        if (entry >= 0) table[entry] = static_cast<int32_t>(packed[4 * rows + row]);
        ids[row] = given >= 0 ? given : last[slot];
        positions[row] = position;
        ends[row] = static_cast<int32_t>(position + 1);
    }
    __syncthreads();  // the entry is this row's own, and among those that are copied
    const int64_t used = position / page_size;
    for (int64_t i = threadIdx.x; i <= used; i += blockDim.x) {
        pages[row * width + i] = table[slot * width + i];
    }
    if (threadIdx.x == 0) {
        locations[row] =
            static_cast<int64_t>(table[slot * width + used]) * page_size + position % page_size;
    }
}

// One block a row: its pages, one after the other, from place first[row] of `out` on.
__global__ void flatten_pages_kernel(const int32_t* pages, int64_t stride, const int32_t* first,
                                     int32_t* out) {
    let_next_start();
    wait_for_inputs();
    const int row = blockIdx.x, begin = first[row], count = first[row + 1] - begin;
    for (int i = threadIdx.x; i < count; i += blockDim.x) out[begin + i] = pages[row * stride + i];
}

template <typename F>
void dispatch(const TensorView& x, F run) {
    const DLDataType type = x.dtype();
    if (type.code == kDLBfloat && type.bits == 16) {
        run(pointer<__nv_bfloat16>(x));
    } else if (type.code == kDLFloat && type.bits == 16) {
        run(pointer<__half>(x));
    } else {
        TVM_FFI_ICHECK(type.code == kDLFloat && type.bits == 32) << "numbers of another type";
        run(pointer<float>(x));
    }
}

// x, residual, out: (rows, size), contiguous; weight: (size,).
void rms_norm(TensorView x, Optional<TensorView> residual, TensorView weight, double eps,
              TensorView out) {
    const int64_t rows = x.size(0), size = x.size(1);
    if (rows == 0) return;
    dispatch(x, [&](auto* from) {
        using T = std::remove_pointer_t<decltype(from)>;
        const int64_t pieces = size / Pack<T>::kSize;
        TVM_FFI_ICHECK(size % Pack<T>::kSize == 0 && pieces <= kVectors * kMaxThreads)
            << "rows of " << size << " numbers";
        const int64_t wanted = (pieces + kWarp - 1) / kWarp * kWarp;
        const int threads = static_cast<int>(wanted < kMaxThreads ? wanted : kMaxThreads);
        launch("rms_norm", rms_norm_kernel<T>, rows, threads, stream_of(x), from,
               pointer_or_null<T>(residual), pointer<T>(weight), eps, pointer<T>(out), size);
    });
}

// x: (tokens, 2 * size), out: (tokens, size), contiguous.
void silu_and_mul(TensorView x, TensorView out) {
    const int64_t tokens = out.size(0), size = out.size(1);
    if (tokens == 0) return;
    dispatch(x, [&](auto* from) {
        using T = std::remove_pointer_t<decltype(from)>;
        TVM_FFI_ICHECK(size % Pack<T>::kSize == 0) << "rows of " << size << " numbers";
        const int64_t pieces = tokens * size / Pack<T>::kSize;
        const int threads = 256;
        launch("silu_and_mul", silu_and_mul_kernel<T>, (pieces + threads - 1) / threads, threads,
               stream_of(x), from, pointer<T>(out), size, pieces);
    });
}

// qkv: (tokens, query, key and value heads, dim), a token's heads one after the other; weight:
// (query and key heads, dim); cosine, sine: (tokens, 1, dim / 2), contiguous; keys, values:
// (positions, kv_heads, dim), contiguous; locations: (tokens,) int64.
void turn_and_store(TensorView qkv, Optional<TensorView> weight, double eps, TensorView cosine,
                    TensorView sine, TensorView keys, TensorView values, TensorView locations) {
    const int64_t tokens = qkv.size(0), kv_heads = keys.size(1);
    const int dim = static_cast<int>(qkv.size(2));
    const int pairs = dim <= 2 * kWarp ? 1 : dim <= 4 * kWarp ? 2 : 4;  // of a thread
    TVM_FFI_ICHECK(dim <= 8 * kWarp && dim % (2 * pairs) == 0 && qkv.stride(0) % pairs == 0 &&
                   qkv.stride(2) == 1 && keys.size(2) == dim &&
                   (qkv.size(1) == 1 || qkv.stride(1) == dim) && locations.size(0) == tokens)
        << "heads of " << dim << " numbers";
    if (tokens == 0) return;
    dispatch(qkv, [&](auto* row) {
        using T = std::remove_pointer_t<decltype(row)>;
        const int threads = 128, each = threads / kWarp;
        const int64_t blocks = (tokens * qkv.size(1) + each - 1) / each;
        const Place<T> to = {pointer<T>(keys), pointer<T>(values), pointer<int64_t>(locations),
                             static_cast<int>(qkv.size(1) - 2 * kv_heads),
                             static_cast<int>(kv_heads)};
        auto run = [&](auto kernel) {
            launch("turn_and_store", kernel, blocks, threads, stream_of(qkv), row, qkv.stride(0),
                   pointer_or_null<T>(weight), eps, pointer<T>(cosine), pointer<T>(sine), to,
                   tokens, dim);
        };
        if (pairs == 1) {
            run(turn_and_store_kernel<T, 1>);
        } else if (pairs == 2) {
            run(turn_and_store_kernel<T, 2>);
        } else {
            run(turn_and_store_kernel<T, 4>);
        }
    });
}

// positions: (tokens,) int64; frequencies: (pairs,) float32; cosine, sine: (tokens, pairs), as all
// here contiguous.
void rotation(TensorView positions, TensorView frequencies, TensorView cosine, TensorView sine) {
    const int64_t tokens = positions.size(0), pairs = frequencies.size(0);
    TVM_FFI_ICHECK(pairs > 0 && cosine.numel() == tokens * pairs && sine.numel() == tokens * pairs)
        << tokens << " positions and " << pairs << " pairs do not fit";
    if (tokens == 0) return;
    dispatch(cosine, [&](auto* to) {
        using T = std::remove_pointer_t<decltype(to)>;
        const int threads = 128;
        launch("rotation", rotation_kernel<T>, (tokens * pairs + threads - 1) / threads, threads,
               stream_of(cosine), pointer<int64_t>(positions), pointer<float>(frequencies), to,
               pointer<T>(sine), tokens * pairs, pairs);
    });
}

// out: (tokens, outputs), tokens 1, 2 or 4; weight: (outputs, inputs), contiguous; make_input: of
// the type that is computed in, what the input rows are.
template <typename F>
void multiply(TensorView weight, const Optional<TensorView>& bias, TensorView out, F make_input) {
    const int inputs = static_cast<int>(weight.size(1)), outputs = static_cast<int>(weight.size(0));
    TVM_FFI_ICHECK(out.size(1) == outputs) << "weight and out do not fit";
    dispatch(weight, [&](auto* numbers) {
        using T = std::remove_pointer_t<decltype(numbers)>;
        constexpr int kSize = Pack<T>::kSize;
        TVM_FFI_ICHECK(inputs % kSize == 0) << "rows of " << inputs << " numbers";
        const auto input = make_input(numbers);
        auto run = [&](auto tokens) {
            product_of<decltype(tokens)::value>(input, numbers, pointer_or_null<T>(bias),
                                                pointer<T>(out), inputs, outputs,
                                                weight.device().device_id, stream_of(weight));
        };
        if (out.size(0) == 1) {
            run(std::integral_constant<int, 1>{});
        } else if (out.size(0) == 2) {
            run(std::integral_constant<int, 2>{});
        } else {
            TVM_FFI_ICHECK(out.size(0) == 4) << out.size(0) << " tokens";
            run(std::integral_constant<int, 4>{});
        }
    });
}

// x: (tokens, inputs), contiguous. The rest, here and below: see multiply.
void product(TensorView x, TensorView weight, Optional<TensorView> bias, TensorView out) {
    TVM_FFI_ICHECK(x.size(0) == out.size(0) && x.size(1) == weight.size(1)) << "x does not fit";
    multiply(weight, bias, out, [&](auto* numbers) {
        using T = std::remove_pointer_t<decltype(numbers)>;
        return AsTheyAre<T>{pointer<T>(x)};
    });
}

// x, residual, sum: (tokens, inputs), contiguous, sum in memory of its own; norm: (inputs,).
void normed_product(TensorView x, Optional<TensorView> residual, TensorView norm, double eps,
                    Optional<TensorView> sum, TensorView weight, Optional<TensorView> bias,
                    TensorView out) {
    TVM_FFI_ICHECK(x.size(0) == out.size(0) && x.size(1) == weight.size(1) &&
                   norm.size(0) == x.size(1) && residual.has_value() == sum.has_value())
        << "x, residual, norm and sum do not fit";
    multiply(weight, bias, out, [&](auto* numbers) {
        using T = std::remove_pointer_t<decltype(numbers)>;
        return Normed<T>{pointer<T>(x), pointer_or_null<T>(residual), pointer<T>(norm),
                         static_cast<float>(eps), pointer_or_null<T>(sum)};
    });
}

// packed: (5 * rows,) int64; table: (slots, width) int32; last: (slots,) int64; ids, positions,
// locations: (rows,) int64; ends: (rows,) int32; pages: (rows, width) int32.
void decode_inputs(TensorView packed, TensorView table, TensorView last, int64_t page_size,
                   TensorView ids, TensorView positions, TensorView locations, TensorView ends,
                   TensorView pages) {
    const int64_t rows = ids.size(0), width = table.size(1);
    TVM_FFI_ICHECK(packed.size(0) == 5 * rows && pages.size(0) == rows && pages.size(1) == width)
        << "packed numbers, tables and outputs do not fit";
    launch("decode_inputs", decode_inputs_kernel, rows, 128, stream_of(packed),
           pointer<int64_t>(packed), pointer<int32_t>(table), width, pointer<int64_t>(last),
           page_size, pointer<int64_t>(ids), pointer<int64_t>(positions),
           pointer<int64_t>(locations), pointer<int32_t>(ends), pointer<int32_t>(pages));
}

// pages: (rows, n) int32; first: (rows + 1,) int32; out: int32, room for first[rows] of them.
void flatten_pages(TensorView pages, TensorView first, TensorView out) {
    const int64_t rows = pages.size(0);
    TVM_FFI_ICHECK(first.size(0) == rows + 1 && pages.stride(1) == 1) << "rows do not fit";
    if (rows == 0) return;
    launch("flatten_pages", flatten_pages_kernel, rows, 128, stream_of(pages),
           pointer<int32_t>(pages), pages.stride(0), pointer<int32_t>(first),
           pointer<int32_t>(out));
}

// logits: (rows, size), each row's side by side; slots, tokens: (rows,) int64; contests: (rows or
// more, 2) int64, zero; last: (slots,) int64.
void choose_greedy(TensorView logits, TensorView slots, TensorView contests, TensorView tokens,
                   TensorView last) {
    const int64_t rows = logits.size(0), size = logits.size(1);
    TVM_FFI_ICHECK(size > 0 && size <= INT32_MAX && (size == 1 || logits.stride(1) == 1) &&
                   slots.size(0) == rows && tokens.size(0) == rows && contests.size(0) >= rows)
        << "rows of " << size << " logits";
    if (rows == 0) return;
    dispatch(logits, [&](auto* from) {
        using T = std::remove_pointer_t<decltype(from)>;
        // as many as fill the GPU, but none without a piece
        const int64_t room = int64_t{kGreedyBlocks} * processors(logits.device().device_id);
        const int64_t most = (size / Pack<T>::kSize + kGreedyThreads - 1) / kGreedyThreads;
        const int64_t each = std::max<int64_t>(1, std::min((room + rows - 1) / rows, most));
        launch("choose_greedy", greedy_kernel<T>, rows * each, kGreedyThreads, stream_of(logits),
               from, logits.stride(0), size, each, pointer<int64_t>(slots),
               reinterpret_cast<Contest*>(pointer<int64_t>(contests)), pointer<int64_t>(tokens),
               pointer<int64_t>(last));
    });
}

}  // namespace

TVM_FFI_DLL_EXPORT_TYPED_FUNC(rms_norm, rms_norm);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(silu_and_mul, silu_and_mul);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(rotation, rotation);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(turn_and_store, turn_and_store);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(product, product);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(normed_product, normed_product);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(decode_inputs, decode_inputs);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(flatten_pages, flatten_pages);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(choose_greedy, choose_greedy);
