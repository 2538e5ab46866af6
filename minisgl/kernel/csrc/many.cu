// Products of many tokens, as a function that Python calls. See many.cuh for how, and
// kernel/many.py, which chooses the tiles and checks what it hands over.
#include <type_traits>

#include "host.cuh"
#include "many.cuh"

namespace {

template <typename T, int kTokens, int kOutputs>
__global__ void __launch_bounds__(many::Tile<kTokens, kOutputs>::kThreads, 2)
    many_kernel(const __grid_constant__ many::Product<T> product) {
    if constexpr (kByWarpgroups) {
        many::multiply<T, kTokens, kOutputs>(product, shared_boxes());
    } else {
        __trap();
    }
}

template <typename T, int kTokens, int kOutputs>
void launch_tiles(many::Product<T> product, const TensorView& x, const TensorView& weight) {
    using Of = many::Tile<kTokens, kOutputs>;
    const int64_t inputs = weight.size(1);
    const int units = product.gated ? kOutputs / 2 : kOutputs;  // outputs
    TVM_FFI_ICHECK(product.above == product.high || (product.above == 1 && product.across == 1))
        << "tiles that nothing joins";
    TVM_FFI_ICHECK(kTokens % (product.across * 8) == 0 && units % (product.above * 8) == 0)
        << "tiles of " << kTokens << " x " << kOutputs << " are not shared by " << product.across
        << " x " << product.above;
    product.x = in_boxes(x.data_ptr(), x.size(0), inputs, x.stride(0), kTokens / product.across,
                         many::kInputs);
    product.weights = in_boxes(weight.data_ptr(), weight.size(0), inputs, inputs,
                               units / product.above, many::kInputs);
    const int64_t wide = (product.outputs + units - 1) / units;
    const int64_t columns = (wide + product.across - 1) / product.across * product.across;
    const int cluster = product.across * product.above * product.parts;
    allow_shared(many_kernel<T, kTokens, kOutputs>, Of::kBytes);
    launch_clusters(cluster, Of::kBytes, "product of many tokens",
                    many_kernel<T, kTokens, kOutputs>, columns * product.high * product.parts,
                    Of::kThreads, stream_of(x), product);
}

// run(the size of a tile that is `asked`), of those that there are.
template <int... kSizes, typename F>
void of_size(int64_t asked, F run) {
    const bool any =
        ((asked == kSizes ? (run(std::integral_constant<int, kSizes>()), true) : false) || ...);
    TVM_FFI_ICHECK(any) << "no tiles of " << asked;
}

// x: (tokens, inputs), rows of 16-byte pieces; weight: (outputs, inputs), contiguous; bias:
// (outputs,); out: (tokens, outputs), contiguous. gated: the weight has twice as many rows, the
// first half of them gates. high, wide: of a tile, as the weight's rows count. parts, across,
// above: see many::Product.
void multiply(TensorView x, TensorView weight, Optional<TensorView> bias, TensorView out,
              bool gated, int64_t high, int64_t wide, int64_t parts, int64_t across,
              int64_t above) {
    const int64_t tokens = x.size(0), inputs = x.size(1), outputs = out.size(1);
    if (tokens == 0) return;
    const DLDataType type = x.dtype();
    TVM_FFI_ICHECK(type.bits == 16 && (type.code == kDLBfloat || type.code == kDLFloat))
        << "numbers of another type";
    TVM_FFI_ICHECK(inputs % 8 == 0 && outputs % 8 == 0 && x.stride(1) == 1 &&
                   x.stride(0) % 8 == 0 && weight.size(1) == inputs &&
                   weight.size(0) == outputs * (gated ? 2 : 1) && out.size(0) == tokens)
        << "a product of " << inputs << " inputs, " << outputs << " outputs";
    const int64_t chunks = (inputs + many::kInputs - 1) / many::kInputs;
    TVM_FFI_ICHECK(parts >= 1 && parts <= std::min<int64_t>(many::kMostParts, chunks))
        << parts << " parts of " << chunks << " chunks";
    auto with = [&](auto number) {
        using T = decltype(number);
        many::Product<T> product = {};
        product.bias = pointer_or_null<const T>(bias);
        product.out = pointer<T>(out);
        pointer<T>(x), pointer<T>(weight);
        product.tokens = static_cast<int>(tokens), product.chunks = static_cast<int>(chunks);
        product.outputs = static_cast<int>(outputs);
        product.high = static_cast<int>((tokens + high - 1) / high);
        product.parts = static_cast<int>(parts), product.across = static_cast<int>(across);
        product.above = static_cast<int>(above), product.gated = gated;
        if (high == 64) {
            of_size<32, 48, 64, 96>(
                wide, [&](auto w) { launch_tiles<T, 64, decltype(w)::value>(product, x, weight); });
        } else {
            TVM_FFI_ICHECK(high == 128) << "no tiles of " << high << " tokens";
            of_size<32, 48, 64, 96, 128>(wide, [&](auto w) {
                launch_tiles<T, 128, decltype(w)::value>(product, x, weight);
            });
        }
    };
    if (type.code == kDLBfloat) {
        with(__nv_bfloat16());
    } else {
        with(__half());
    }
}

}  // namespace

TVM_FFI_DLL_EXPORT_TYPED_FUNC(multiply, multiply);
