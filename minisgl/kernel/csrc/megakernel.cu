// All layers of a decoder for one token, as a function that Python calls. See megakernel.cuh for
// how, and kernel/megakernel.py, which checks what it hands over.
#include <type_traits>

#include "host.cuh"
#include "megakernel.cuh"

namespace {

template <typename T, typename Form, int kDim>
__global__ void __launch_bounds__(mega::kAllThreads, 1) decode_kernel(const mega::Step<T> step) {
    const mega::Shared<T, Form, kDim> shared{step};
    mega::prepare_block(step, shared);
    if (threadIdx.x < mega::kThreads) {
        mega::Block<T, Form, kDim>(step, shared).run();
    } else {
        mega::Fetcher<T, Form, kDim>(step, shared).run();
    }
}

// run(form, dim): of the numbers, the weights and the heads.
template <typename T, typename F>
auto of_form(int64_t group, int64_t dim, F run) {
    auto with = [&](auto form) {
        TVM_FFI_ICHECK(dim == 64 || dim == 128) << "heads of " << dim << " numbers";
        if (dim == 64) return run(form, std::integral_constant<int, 64>());
        return run(form, std::integral_constant<int, 128>());
    };
    if (group == 0) return with(mega::Dense<T>());
    if (group % 128 == 0) return with(mega::FourBits<T, 128>());
    TVM_FFI_ICHECK(group % 32 == 0) << "groups of " << group;
    return with(mega::FourBits<T, 32>());
}

template <typename F>
auto of_type(const DLDataType& type, F run) {
    TVM_FFI_ICHECK(type.bits == 16 && (type.code == kDLBfloat || type.code == kDLFloat))
        << "numbers of another type";
    if (type.code == kDLBfloat) return run(__nv_bfloat16());
    return run(__half());
}

template <typename T>
mega::Step<T> sized(int64_t num_layers, int64_t hidden, int64_t inner, int64_t heads,
                    int64_t kv_heads, int64_t group) {
    mega::Step<T> step = {};
    step.num_layers = static_cast<int>(num_layers);
    step.hidden = static_cast<int>(hidden), step.inner = static_cast<int>(inner);
    step.heads = static_cast<int>(heads), step.kv_heads = static_cast<int>(kv_heads);
    step.group = static_cast<int>(group);
    return step;
}

// Words that blocks hand over: for the residual stream, queries and so on.
struct Words {
    int64_t stream, qkv, attended, active, parts;

    Words(int64_t hidden, int64_t inner, int64_t heads, int64_t kv_heads, int64_t dim)
        : stream(spread(hidden)),
          qkv((heads + 2 * kv_heads) * dim / 2),
          attended(spread(heads * dim)),
          active(spread(inner)),
          parts(heads * mega::kMostSplits * (dim + 2)) {}
    // A row of so many numbers.
    static int64_t spread(int64_t numbers) {
        return mega::spread(static_cast<int>(numbers) / 2, static_cast<int>(numbers));
    }
    int64_t all() const { return 2 * stream + qkv + attended + active + parts; }
};

// How many words a model's exchange takes; 0 if the kernel cannot compute it on this GPU. group: of
// four-bit weights; 0: of 16 bits.
int64_t room(int64_t num_layers, int64_t hidden, int64_t inner, int64_t heads, int64_t kv_heads,
             int64_t dim, int64_t group, int64_t device) {
    const int of = static_cast<int>(device), blocks = processors(of);
    if (kv_heads > blocks || (dim != 64 && dim != 128)) return 0;
    return of_form<__half>(group, dim, [&](auto form, auto size) -> int64_t {
        using Form = decltype(form);
        using Shared = mega::Shared<__half, Form, decltype(size)::value>;
        const auto step = sized<__half>(num_layers, hidden, inner, heads, kv_heads, group);
        const int64_t sides[] = {hidden, heads * dim, inner, 2 * kv_heads * dim};
        for (const int64_t side : sides) {
            if (side % 128) return 0;
        }
        constexpr int kDim = decltype(size)::value;
        const mega::Places at = Shared::places(step, blocks, shared_limits(of).block);
        if (at.stages == 0) return 0;
        if (held(decode_kernel<__half, Form, kDim>, mega::kAllThreads, at.end) == 0) return 0;
        return Words(hidden, inner, heads, kv_heads, dim).all();
    });
}

// One token. layers: (num_layers, fields) int64, see mega::Layer; pools: (num_layers, 2) int64, see
// mega::Pool; x, out: (1, hidden); cosine, sine: (dim / 2,); pages: (1, n) int32; end: (1,) int32;
// words: as many as `room` said, int64, zeros before the first call; counts: (2,) int32, likewise.
void decode(TensorView layers, TensorView pools, TensorView x, TensorView out, TensorView cosine,
            TensorView sine, TensorView pages, TensorView end, TensorView words, TensorView counts,
            int64_t inner, int64_t heads, int64_t kv_heads, int64_t group, int64_t page_size,
            double eps, double head_eps) {
    const int64_t hidden = x.size(1), dim = cosine.size(cosine.ndim() - 1) * 2;
    const int device = x.device().device_id, blocks = processors(device);
    const int limit = shared_limits(device).block;
    const Words need(hidden, inner, heads, kv_heads, dim);
    TVM_FFI_ICHECK(x.size(0) == 1 && layers.size(1) * 8 == sizeof(mega::Layer) &&
                   pools.size(0) == layers.size(0) && pools.size(1) * 8 == sizeof(mega::Pool) &&
                   words.size(0) == need.all() && counts.size(0) == 2)
        << "a token of " << hidden << " numbers, " << words.size(0) << " words";
    TVM_FFI_ICHECK(kv_heads > 0 && kv_heads <= blocks && heads % kv_heads == 0 && page_size > 0)
        << heads << " heads, " << kv_heads << " of keys, on " << blocks << " multiprocessors";
    of_type(x.dtype(), [&](auto number) {
        using T = decltype(number);
        auto step = sized<T>(layers.size(0), hidden, inner, heads, kv_heads, group);
        step.layers = pointer<const mega::Layer>(layers);
        step.pools = pointer<const mega::Pool>(pools);
        step.eps = static_cast<float>(eps), step.head_eps = static_cast<float>(head_eps);
        step.x = pointer<const T>(x), step.out = pointer<T>(out);
        step.cosine = pointer<const T>(cosine), step.sine = pointer<const T>(sine);
        step.pages = pointer<const int32_t>(pages), step.end = pointer<const int32_t>(end);
        step.page_size = static_cast<int>(page_size);
        mega::Word* at = pointer<mega::Word>(words);
        // parts first: they are looked at two by two
        step.parts = at, at += need.parts;
        step.stream = at, at += need.stream;
        step.middle = at, at += need.stream;
        step.qkv = at, at += need.qkv;
        step.attended = at, at += need.attended;
        step.active = at;
        step.launches = pointer<uint32_t>(counts);
        step.done = pointer<int>(counts) + 1;
        of_form<T>(group, dim, [&](auto form, auto size) {
            constexpr int kDim = decltype(size)::value;
            using Form = decltype(form);
            auto kernel = decode_kernel<T, Form, kDim>;
            step.at = mega::Shared<T, Form, kDim>::places(step, blocks, limit);
            allow_shared(kernel, step.at.end);
            launch_together(step.at.end, "all layers", kernel, blocks, mega::kAllThreads,
                            stream_of(x), step);
        });
    });
}

}  // namespace

TVM_FFI_DLL_EXPORT_TYPED_FUNC(room, room);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(decode, decode);
