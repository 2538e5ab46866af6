// Products of many tokens, as a function that Python calls. See many.cuh for how, and
// kernel/many.py, which chooses the tiles.
#include "host.cuh"
#include "many.cuh"

namespace {

template <typename T, int kOutputs>
__global__ void __launch_bounds__(many::kThreads, 2)
    many_kernel(const __grid_constant__ many::Product<T> product) {
    many::multiply<T, kOutputs>(product, shared_boxes());
}

template <typename T, int kOutputs>
void launch_tiles(many::Product<T> product, const TensorView& x, const TensorView& weight) {
    using Of = many::Tile<kOutputs>;
    const int units = product.gated ? kOutputs / 2 : kOutputs;  // outputs
    product.x = in_boxes(x, many::kTokens, many::kInputs);
    product.weights = in_boxes(weight, units, many::kInputs);
    const int64_t tiles = int64_t{(product.outputs + units - 1) / units} * product.high;
    allow_shared(many_kernel<T, kOutputs>, Of::kBytes);
    launch_clusters(product.parts, Of::kBytes, "product of many tokens", many_kernel<T, kOutputs>,
                    tiles * product.parts, many::kThreads, stream_of(x), product);
}

// x: (tokens, inputs); weight: (outputs, inputs); bias: (outputs,); out: (tokens, outputs), all
// contiguous. gated: the weight has twice as many rows, the first half of them gates. wide: of a
// tile, as the weight's rows count. parts: see many::Product.
void multiply(TensorView x, TensorView weight, Optional<TensorView> bias, TensorView out,
              bool gated, int64_t wide, int64_t parts) {
    const int64_t tokens = x.size(0), inputs = x.size(1), outputs = out.size(1);
    const DLDataType type = x.dtype();
    TVM_FFI_ICHECK(type.bits == 16 && (type.code == kDLBfloat || type.code == kDLFloat))
        << "numbers of another type";
    TVM_FFI_ICHECK(tokens > 0 && inputs % 8 == 0 && outputs % 8 == 0 && weight.size(1) == inputs &&
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
        product.tokens = static_cast<int>(tokens), product.chunks = static_cast<int>(chunks);
        product.outputs = static_cast<int>(outputs), product.parts = static_cast<int>(parts);
        product.high = static_cast<int>((tokens + many::kTokens - 1) / many::kTokens);
        product.gated = gated;
        TVM_FFI_ICHECK(wide == 48 || wide == 64) << "no tiles of " << wide;
        if (wide == 48) {
            launch_tiles<T, 48>(product, x, weight);
        } else {
            launch_tiles<T, 64>(product, x, weight);
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
