// Products with weights of four bits, as functions that Python calls. See marlin.cuh for how, and
// kernel/marlin.py for how weights are arranged; it checks what it hands over.
#include <algorithm>
#include <array>
#include <type_traits>

#include "host.cuh"
#include "marlin.cuh"

namespace {

template <typename T, int kScaled>
__global__ void __launch_bounds__(marlin::Few<kScaled>::kThreads, marlin::Few<kScaled>::kBlocks)
    few_kernel(marlin::Product<T> product) {
    marlin::multiply_few<T, kScaled>(product, dynamic_shared());
}

template <typename T, int kTokens, int kScaled>
__global__ void __launch_bounds__(marlin::Tile<kTokens>::kThreads, marlin::Tile<kTokens>::kBlocks)
    multiply_kernel(marlin::Product<T> product) {
    if constexpr (kEmulated || marlin::in_tiles(kTokens, kByWarpgroups)) {
        marlin::multiply<T, kTokens, kScaled>(product, dynamic_shared());
    } else {
        __trap();
    }
}

template <typename T, int kTokens, int kAcross, int kScaled>
__global__ void __launch_bounds__(marlin::Wide<kTokens, kAcross, kScaled>::kThreads,
                                  marlin::Wide<kTokens, kAcross, kScaled>::kBlocks)
    wide_kernel(marlin::Product<T> product) {
    if constexpr (kByWarpgroups) {
        marlin::multiply_wide<T, kTokens, kAcross, kScaled>(product, dynamic_shared());
    } else {
        __trap();
    }
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

// Blocks of a tile's kernel that a GPU holds at a time: asked once.
template <typename T, int kTokens, int kScaled>
int64_t holds_tiles(int device) {
    static std::array<int64_t, 64> known = {};
    int64_t& blocks = known.at(device);
    using Of = marlin::Tile<kTokens>;
    if (blocks == 0) {
        blocks = resident(multiply_kernel<T, kTokens, kScaled>, Of::kThreads, Of::kBytes, device);
    }
    return blocks;
}

// Floats for parts that `multiply` may need with a tile of so many tokens.
template <int kTokens>
int64_t room_of(int device) {
    using T = __nv_bfloat16;
    const int64_t blocks = std::max(
        {holds_tiles<T, kTokens, 32>(device), holds_tiles<T, kTokens, 128>(device),
         holds_tiles<__half, kTokens, 32>(device), holds_tiles<__half, kTokens, 128>(device)});
    return blocks * 2 * marlin::Tile<kTokens>::kSums;
}

// Tiles of so many tokens and outputs.
template <int kTokens, int kOutputs, typename T>
int64_t tiles_of(const marlin::Product<T>& product) {
    const int64_t above = (product.tokens + kTokens - 1) / kTokens;
    return above * ((product.outputs + kOutputs - 1) / kOutputs);
}

template <typename T, int kScaled>
void multiply_few(const marlin::Product<T>& product, int bytes, int64_t blocks, int device,
                  cudaStream_t stream) {
    using Of = marlin::Few<kScaled>;
    const SharedLimits has = shared_limits(device);
    const bool crowded = bytes > has.processor / Of::kBlocks - 1024;
    const int64_t strips = product.outputs / marlin::kStrip;
    const int64_t most =
        blocks > 0 ? blocks : int64_t{processors(device)} * (crowded ? 1 : Of::kBlocks);
    const int64_t turns = (strips + most - 1) / most;
    allow_shared(few_kernel<T, kScaled>, has.block);
    launch_with(bytes, "four-bit product of few tokens", few_kernel<T, kScaled>,
                (strips + turns - 1) / turns, Of::kThreads, stream, product);
}

template <typename T, int kTokens, int kScaled>
void multiply_tiles(marlin::Product<T> product, int64_t blocks, int64_t least, int64_t num_parts,
                    int64_t num_arrived, int device, cudaStream_t stream) {
    using Of = marlin::Tile<kTokens>;
    const int64_t tiles = tiles_of<kTokens, Of::kOutputs>(product);
    const int64_t work = tiles * (product.inputs / marlin::kInputs);
    const int64_t most = blocks > 0 ? blocks : holds_tiles<T, kTokens, kScaled>(device);
    const int64_t worth = blocks > 0 ? work : std::max<int64_t>(1, work / least);
    const int64_t shared_by = std::min(most, worth);
    TVM_FFI_ICHECK(num_arrived >= tiles && num_parts >= shared_by * 2 * Of::kSums)
        << "no room for " << shared_by << " blocks and " << tiles << " tiles";
    product.each = static_cast<int>(work / shared_by);
    product.more = static_cast<int>(work % shared_by);
    launch_with(Of::kBytes, "four-bit product", multiply_kernel<T, kTokens, kScaled>, shared_by,
                Of::kThreads, stream, product);
}

// A way to share a product, and how long it takes about.
struct Sharing {
    int sharers;  // blocks that share a tile
    int64_t time;
};

// The fastest way with blocks of so many strips, one on a multiprocessor, and `blocks` at most. The
// times are those of an H200: a chunk takes a block of one warpgroup two units, and each further
// warpgroup, which fills the gaps, adds one.
template <typename T, int kTokens, int kAcross, int kScaled>
Sharing fastest(const marlin::Product<T>& product, int64_t blocks, int device) {
    using Of = marlin::Wide<kTokens, kAcross, kScaled>;
    constexpr int64_t kBegin = 2;  // chunks that beginning and ending take the time of
    static std::array<std::array<int64_t, Of::kSharers>, 64> known = {};
    const int64_t tiles = tiles_of<kTokens, Of::kOutputs>(product);
    const int64_t chunks = product.inputs / marlin::kInputs;
    const int64_t most = std::min<int64_t>(chunks, blocks > 0 ? blocks : Of::kSharers);
    Sharing best = {1, INT64_MAX};
    for (int some = 1; some <= std::min<int64_t>(most, Of::kSharers); ++some) {
        int64_t& clusters = known.at(device)[some - 1];  // that the GPU holds: asked once
        if (clusters == 0) {
            clusters = resident_clusters(wide_kernel<T, kTokens, kAcross, kScaled>, some,
                                         Of::kThreads, shared_limits(device).block);
        }
        const int64_t room = blocks > 0 ? blocks / some : clusters;
        const int64_t turns = (tiles + room - 1) / room;
        const int64_t time = turns * ((chunks + some - 1) / some + kBegin) * (1 + kAcross / 4);
        if (time < best.time) best = {some, time};
    }
    return best;
}

template <typename T, int kTokens, int kAcross, int kScaled>
void launch_wide(marlin::Product<T> product, int sharers, cudaStream_t stream) {
    using Of = marlin::Wide<kTokens, kAcross, kScaled>;
    product.each = product.inputs / marlin::kInputs / sharers;
    product.more = product.inputs / marlin::kInputs % sharers;
    allow_shared(wide_kernel<T, kTokens, kAcross, kScaled>, Of::kBytes);
    launch_clusters(sharers, Of::kBytes, "four-bit product by warpgroups",
                    wide_kernel<T, kTokens, kAcross, kScaled>,
                    tiles_of<kTokens, Of::kOutputs>(product) * sharers, Of::kThreads, stream,
                    product);
}

template <typename T, int kTokens, int kScaled>
void multiply_wide(const marlin::Product<T>& product, int64_t blocks, int device,
                   cudaStream_t stream) {
    // many strips need the inputs less often, few share the work more evenly
    constexpr int kFew = 8, kMany = 12;
    const Sharing few = fastest<T, kTokens, kFew, kScaled>(product, blocks, device);
    const Sharing many = fastest<T, kTokens, kMany, kScaled>(product, blocks, device);
    if (few.time <= many.time) {
        launch_wide<T, kTokens, kFew, kScaled>(product, few.sharers, stream);
    } else {
        launch_wide<T, kTokens, kMany, kScaled>(product, many.sharers, stream);
    }
}

// Whether `multiply` of so many tokens has gates.
bool gates(int64_t tokens, int64_t device) {
    return !marlin::in_tiles(static_cast<int>(tokens), has_warpgroups(static_cast<int>(device)));
}

// x: (tokens, inputs), rows of 16-byte pieces; weights, groups: see marlin::Product; bias:
// (outputs,); out: (tokens, outputs), contiguous, or half as many, gated, if `gates` says so; parts:
// float32, arrived: int32 zeros, one for each tile. blocks: how many share the work at most; 0: as many as the GPU holds at a time, of
// `least` chunks each.
void multiply(TensorView x, TensorView weights, TensorView groups, Optional<TensorView> bias,
              TensorView out, TensorView parts, TensorView arrived, bool gated, int64_t group,
              int64_t blocks, int64_t least) {
    const int64_t tokens = x.size(0), inputs = x.size(1);
    const int64_t outputs = out.size(1) * (gated ? 2 : 1);
    if (tokens == 0) return;
    TVM_FFI_ICHECK(!gated || (gates(tokens, x.device().device_id) && outputs % 64 == 0))
        << "a gate in a product of " << tokens << " tokens and " << outputs << " outputs";
    TVM_FFI_ICHECK(inputs % marlin::kInputs == 0 && outputs % marlin::kStrip == 0 &&
                   group % 32 == 0 && x.stride(1) == 1 && x.stride(0) % 8 == 0)
        << "a product of " << inputs << " inputs in groups of " << group << ", " << outputs
        << " outputs";
    of_type(x, [&](auto* from) {
        using T = std::remove_pointer_t<decltype(from)>;
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
        product.gated = gated;
        auto run = [&](auto scaled) {
            constexpr int kScaled = decltype(scaled)::value;
            product.shared = static_cast<int>(group / kScaled);
            const cudaStream_t stream = stream_of(x);
            const int device = x.device().device_id;
            auto with = [&](auto some) {
                constexpr int kTokens = decltype(some)::value;
                if (marlin::in_tiles(kTokens, has_warpgroups(device))) {
                    multiply_tiles<T, kTokens, kScaled>(product, blocks, least, parts.size(0),
                                                        arrived.size(0), device, stream);
                } else {
                    multiply_wide<T, kTokens, kScaled>(product, blocks, device, stream);
                }
            };
            using Few = marlin::Few<kScaled>;
            const int few = Few::bytes(product.tokens, product.inputs);
            if (tokens <= Few::kTokens && few <= shared_limits(device).block) {
                multiply_few<T, kScaled>(product, few, blocks, device, stream);
            } else if (tokens <= 16) {
                with(std::integral_constant<int, 16>());
            } else if (tokens <= 32) {
                with(std::integral_constant<int, 32>());
            } else {
                with(std::integral_constant<int, 64>());
            }
        };
        if (group % 128 == 0) {
            run(std::integral_constant<int, 128>());
        } else {
            run(std::integral_constant<int, 32>());
        }
    });
}

// Floats that `multiply` may need for parts on this GPU, whatever it multiplies.
int64_t room_for_parts(int64_t device) {
    const int of = static_cast<int>(device);
    if (has_warpgroups(of)) return room_of<16>(of);
    return std::max({room_of<16>(of), room_of<32>(of), room_of<64>(of)});
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
TVM_FFI_DLL_EXPORT_TYPED_FUNC(gates, gates);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(room_for_parts, room_for_parts);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(unpack, unpack);
