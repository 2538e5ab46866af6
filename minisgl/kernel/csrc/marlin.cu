// Products with weights of four bits, as functions that Python calls. See marlin.cuh for how, and
// kernel/marlin.py for how weights are arranged; it checks what it hands over.
#include <algorithm>
#include <array>
#include <type_traits>

#include "host.cuh"
#include "marlin.cuh"

namespace {

template <typename T, int kTokens, int kScaled>
__global__ void __launch_bounds__(marlin::Tile<kTokens>::kThreads, marlin::Tile<kTokens>::kBlocks)
    multiply_kernel(marlin::Product<T> product) {
    marlin::multiply<T, kTokens, kScaled>(product, dynamic_shared());
}

template <typename T>
__global__ void __launch_bounds__(marlin::kUnpackThreads)
    unpack_kernel(const uint4* weights, const uint4* groups, T* out, int inputs, int outputs,
                  int group) {
    let_next_start();
    wait_for_inputs();
    marlin::unpack<T>(weights, groups, out, inputs, outputs, group);
}

template <typename F>
void of_type(const TensorView& x, F run) {
    const DLDataType type = x.dtype();
    TVM_FFI_ICHECK(type.bits == 16 && (type.code == kDLBfloat || type.code == kDLFloat))
        << "numbers of another type";
    if (type.code == kDLBfloat) {
        run(pointer<__nv_bfloat16>(x));
    } else {
        run(pointer<__half>(x));
    }
}

// Run with the least tile of tokens that takes all of them, or the largest.
template <typename F>
void of_tokens(int64_t tokens, F run) {
    if (tokens <= 8) {
        run(std::integral_constant<int, 8>());
    } else if (tokens <= 16) {
        run(std::integral_constant<int, 16>());
    } else if (tokens <= 32) {
        run(std::integral_constant<int, 32>());
    } else {
        run(std::integral_constant<int, 64>());
    }
}

// Blocks of a kernel that a GPU holds at a time: asked once.
template <typename T, int kTokens, int kScaled>
int64_t resident_multiply(int device) {
    static std::array<int64_t, 64> known = {};
    int64_t& blocks = known.at(device);
    using Of = marlin::Tile<kTokens>;
    if (blocks == 0) {
        blocks = resident(multiply_kernel<T, kTokens, kScaled>, Of::kThreads, Of::kBytes, device);
    }
    return blocks;
}

// x: (tokens, inputs), rows of 16-byte pieces; weights, groups: see marlin::Product; bias:
// (outputs,); out: (tokens, outputs), contiguous; parts: float32, arrived: int32 zeros, one for
// each tile. blocks: how many share the work; 0: as many as the GPU holds at a time, of `least`
// chunks each. ahead: see marlin::Product.
void multiply(TensorView x, TensorView weights, TensorView groups, Optional<TensorView> bias,
              TensorView out, TensorView parts, TensorView arrived, int64_t group, int64_t blocks,
              int64_t least, int64_t ahead) {
    const int64_t tokens = x.size(0), inputs = x.size(1), outputs = out.size(1);
    if (tokens == 0) return;
    TVM_FFI_ICHECK(inputs % marlin::kInputs == 0 && outputs % marlin::kStrip == 0 &&
                   group % 32 == 0 && x.stride(1) == 1 && x.stride(0) % 8 == 0)
        << "a product of " << inputs << " inputs in groups of " << group << ", " << outputs
        << " outputs";
    of_type(x, [&](auto* from) {
        using T = std::remove_pointer_t<decltype(from)>;
        of_tokens(tokens, [&](auto some) {
            constexpr int kTokens = decltype(some)::value;
            using Of = marlin::Tile<kTokens>;
            const int64_t across = (outputs + Of::kOutputs - 1) / Of::kOutputs;
            const int64_t tiles = (tokens + kTokens - 1) / kTokens * across;
            constexpr int64_t kSpan = Of::kSplit * marlin::kInputs;
            const int64_t spans = (inputs + kSpan - 1) / kSpan, work = tiles * spans;
            auto run = [&](auto scaled) {
                constexpr int kScaled = decltype(scaled)::value;
                const int64_t holds = resident_multiply<T, kTokens, kScaled>(x.device().device_id);
                const int64_t most = blocks == 0 ? holds : blocks;
                // whole tiles, which nobody needs to add up, unless too few blocks had work
                const int64_t turns = (tiles + most - 1) / most;
                const int64_t busy = (tiles + turns - 1) / turns;
                const bool whole = kTokens <= 16 && busy * 5 >= most * 2;
                const int64_t grain = whole ? spans : 1, grains = work / grain;
                const int64_t worth = whole ? busy : std::max<int64_t>(1, work / least);
                const int64_t shared_by = std::min(most, worth);
                TVM_FFI_ICHECK(arrived.size(0) >= tiles &&
                               (whole || parts.size(0) >= shared_by * 2 * Of::kSums))
                    << "no room for " << shared_by << " blocks and " << tiles << " tiles";
                marlin::Product<T> product = {};
                product.x = from;
                product.weights = pointer<const uint4>(weights);
                product.groups = pointer<const uint4>(groups);
                product.bias = pointer_or_null<const T>(bias);
                product.out = pointer<T>(out);
                product.parts = pointer<float>(parts);
                product.arrived = pointer<int>(arrived);
                product.stride = x.stride(0);
                product.tokens = static_cast<int>(tokens);
                product.inputs = static_cast<int>(inputs);
                product.outputs = static_cast<int>(outputs);
                product.shared = static_cast<int>(group / kScaled);
                product.grain = static_cast<int>(grain);
                product.each = static_cast<int>(grains / shared_by);
                product.more = static_cast<int>(grains % shared_by);
                product.ahead = static_cast<int>(ahead);
                launch_with(Of::kBytes, "four-bit product", multiply_kernel<T, kTokens, kScaled>,
                            shared_by, Of::kThreads, stream_of(x), product);
            };
            if (group % 128 == 0) {
                run(std::integral_constant<int, 128>());
            } else {
                run(std::integral_constant<int, 32>());
            }
        });
    });
}

// Floats that `multiply` may need for parts on this GPU, whatever it multiplies.
int64_t room_for_parts(int64_t device) {
    const auto of = [&](auto some) {
        constexpr int kTokens = decltype(some)::value;
        const int64_t blocks = std::max({resident_multiply<__half, kTokens, 32>(device),
                                         resident_multiply<__half, kTokens, 128>(device),
                                         resident_multiply<__nv_bfloat16, kTokens, 32>(device),
                                         resident_multiply<__nv_bfloat16, kTokens, 128>(device)});
        return blocks * 2 * marlin::Tile<kTokens>::kSums;
    };
    return std::max({of(std::integral_constant<int, 8>()), of(std::integral_constant<int, 16>()),
                     of(std::integral_constant<int, 32>()), of(std::integral_constant<int, 64>())});
}

// weights, groups as above; out: (outputs, inputs), contiguous.
void unpack(TensorView weights, TensorView groups, TensorView out, int64_t group) {
    const int64_t outputs = out.size(0), inputs = out.size(1);
    TVM_FFI_ICHECK(inputs % marlin::kInputs == 0 && outputs % marlin::kStrip == 0)
        << outputs << " outputs of " << inputs << " inputs";
    of_type(out, [&](auto* to) {
        using T = std::remove_pointer_t<decltype(to)>;
        const int64_t units = outputs / marlin::kStrip * (inputs / marlin::kInputs);
        constexpr int64_t kEach = marlin::kUnpackThreads / kWarp;
        launch("four-bit weights", unpack_kernel<T>, (units + kEach - 1) / kEach,
               marlin::kUnpackThreads, stream_of(out), pointer<const uint4>(weights),
               pointer<const uint4>(groups), to, inputs, outputs, group);
    });
}

}  // namespace

TVM_FFI_DLL_EXPORT_TYPED_FUNC(multiply, multiply);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(room_for_parts, room_for_parts);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(unpack, unpack);
