// Products with weights of four bits, as functions that Python calls. See marlin.cuh for how, and
// kernel/marlin.py for how weights are arranged; it checks what it hands over.
#include <algorithm>
#include <type_traits>

#include "host.cuh"
#include "marlin.cuh"

namespace {

template <typename T, int kTokens, int kScaled>
__global__ void __launch_bounds__(marlin::kThreads) multiply_kernel(marlin::Product<T> product) {
    marlin::multiply<T, kTokens, kScaled>(product, dynamic_shared());
}

template <typename T>
__global__ void __launch_bounds__(marlin::kThreads)
    unpack_kernel(const uint4* weights, const uint32_t* groups, T* out, int inputs, int outputs,
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

template <typename T, int kTokens, int kScaled>
int64_t resident_multiply(int device) {
    constexpr int bytes = marlin::Shared<kTokens, kScaled>::kBytes;
    return resident(multiply_kernel<T, kTokens, kScaled>, marlin::kThreads, bytes, device);
}

// x: (tokens, inputs), rows of 16-byte pieces; weights, groups: see marlin::Product; bias:
// (outputs,); out: (tokens, outputs), contiguous; parts: float32, arrived: int32 zeros, one for
// each tile. blocks: how many share the work; 0: as many as the GPU holds at a time, of `least`
// chunks each.
void multiply(TensorView x, TensorView weights, TensorView groups, Optional<TensorView> bias,
              TensorView out, TensorView parts, TensorView arrived, int64_t group, int64_t blocks,
              int64_t least) {
    const int64_t tokens = x.size(0), inputs = x.size(1), outputs = out.size(1);
    if (tokens == 0) return;
    TVM_FFI_ICHECK(inputs % marlin::kInputs == 0 && outputs % marlin::kOutputs == 0 &&
                   group % 32 == 0 && x.stride(1) == 1 && x.stride(0) % 8 == 0)
        << "a product of " << inputs << " inputs in groups of " << group << ", " << outputs
        << " outputs";
    of_type(x, [&](auto* from) {
        using T = std::remove_pointer_t<decltype(from)>;
        of_tokens(tokens, [&](auto some) {
            constexpr int kTokens = decltype(some)::value;
            const int64_t tiles = (tokens + kTokens - 1) / kTokens * (outputs / marlin::kOutputs);
            const int64_t work = tiles * (inputs / marlin::kInputs);
            auto run = [&](auto scaled) {
                constexpr int kScaled = decltype(scaled)::value;
                const int64_t holds = resident_multiply<T, kTokens, kScaled>(x.device().device_id);
                int64_t shared_by = blocks;
                if (shared_by == 0) {
                    shared_by = std::min<int64_t>(holds, std::max<int64_t>(1, work / least));
                }
                TVM_FFI_ICHECK(shared_by <= work && arrived.size(0) >= tiles &&
                               parts.size(0) >= shared_by * 2 * kTokens * marlin::kOutputs)
                    << "no room for " << shared_by << " blocks and " << tiles << " tiles";
                const marlin::Product<T> product = {from,
                                                    pointer<const uint4>(weights),
                                                    pointer<const uint32_t>(groups),
                                                    pointer_or_null<const T>(bias),
                                                    pointer<T>(out),
                                                    pointer<float>(parts),
                                                    pointer<int>(arrived),
                                                    x.stride(0),
                                                    static_cast<int>(tokens),
                                                    static_cast<int>(inputs),
                                                    static_cast<int>(outputs),
                                                    static_cast<int>(group)};
                launch_with(marlin::Shared<kTokens, kScaled>::kBytes, "four-bit product",
                            multiply_kernel<T, kTokens, kScaled>, shared_by, marlin::kThreads,
                            stream_of(x), product);
            };
            if (group % 64 == 0) {
                run(std::integral_constant<int, 64>());
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
        const int blocks = std::max({resident_multiply<__half, kTokens, 32>(device),
                                     resident_multiply<__half, kTokens, 64>(device),
                                     resident_multiply<__nv_bfloat16, kTokens, 32>(device),
                                     resident_multiply<__nv_bfloat16, kTokens, 64>(device)});
        return blocks * 2 * kTokens * marlin::kOutputs;
    };
    return std::max({of(std::integral_constant<int, 8>()), of(std::integral_constant<int, 16>()),
                     of(std::integral_constant<int, 32>()), of(std::integral_constant<int, 64>())});
}

// weights, groups as above; out: (outputs, inputs), contiguous.
void unpack(TensorView weights, TensorView groups, TensorView out, int64_t group) {
    const int64_t outputs = out.size(0), inputs = out.size(1);
    TVM_FFI_ICHECK(inputs % marlin::kInputs == 0 && outputs % marlin::kOutputs == 0)
        << outputs << " outputs of " << inputs << " inputs";
    of_type(out, [&](auto* to) {
        using T = std::remove_pointer_t<decltype(to)>;
        launch("four-bit weights", unpack_kernel<T>,
               outputs / marlin::kOutputs * (inputs / marlin::kInputs), marlin::kThreads,
               stream_of(out), pointer<const uint4>(weights), pointer<const uint32_t>(groups), to,
               inputs, outputs, group);
    });
}

}  // namespace

TVM_FFI_DLL_EXPORT_TYPED_FUNC(multiply, multiply);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(room_for_parts, room_for_parts);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(unpack, unpack);
