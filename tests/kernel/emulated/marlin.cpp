// The kernels of marlin.cuh on a CPU, as functions with C's calling convention. Each returns nullptr,
// or what the kernel did wrong.
#include "marlin.cuh"

namespace {

std::string said;

template <typename F>
const char* guarded(F run) {
    try {
        run();
        return nullptr;
    } catch (const std::exception& error) {
        said = error.what();
        return said.c_str();
    }
}

template <typename T, int kTokens, int kScaled>
void multiply_as(marlin::Product<T> product, int blocks, uint32_t seed, bool eager) {
    static_assert(marlin::Shared<kTokens, kScaled>::kBytes <= sizeof emulated::shared_memory);
    emulated::run(blocks, marlin::kThreads, seed, eager, [&] {
        marlin::multiply<T, kTokens, kScaled>(product,
                                              reinterpret_cast<uint4*>(emulated::shared_memory));
    });
}

template <typename T>
void multiply_of(const marlin::Product<T>& product, int tile, int blocks, uint32_t seed, bool eager) {
    const bool small = product.group % 64 != 0;
    const auto as = [&](auto tokens) {
        constexpr int kTokens = decltype(tokens)::value;
        return small ? multiply_as<T, kTokens, 32> : multiply_as<T, kTokens, 64>;
    };
    const auto run = tile == 8    ? as(std::integral_constant<int, 8>())
                     : tile == 16 ? as(std::integral_constant<int, 16>())
                     : tile == 32 ? as(std::integral_constant<int, 32>())
                                  : as(std::integral_constant<int, 64>());
    run(product, blocks, seed, eager);
}

template <typename T>
marlin::Product<T> product_of(void* const* pointers, const int* sizes) {
    return {static_cast<const T*>(pointers[0]),
            static_cast<const uint4*>(pointers[1]),
            static_cast<const uint32_t*>(pointers[2]),
            static_cast<const T*>(pointers[3]),
            static_cast<T*>(pointers[4]),
            static_cast<float*>(pointers[5]),
            static_cast<int*>(pointers[6]),
            sizes[0],
            sizes[1],
            sizes[2],
            sizes[3],
            sizes[4]};
}

}  // namespace

extern "C" {

// pointers: those of marlin::Product in its order; sizes: its last five numbers; bytes: of each buffer.
const char* multiply(int brain, void* const* pointers, const int* sizes, const size_t* bytes, int tile,
                     int blocks, uint32_t seed, int eager) {
    emulated::machine.buffers.clear();
    for (int i = 0; i < 7; ++i) {
        emulated::machine.buffers.emplace_back(static_cast<const char*>(pointers[i]), bytes[i]);
    }
    return guarded([&] {
        if (brain) {
            multiply_of(product_of<__nv_bfloat16>(pointers, sizes), tile, blocks, seed, eager);
        } else {
            multiply_of(product_of<__half>(pointers, sizes), tile, blocks, seed, eager);
        }
    });
}

const char* unpack(int brain, const void* weights, const void* groups, void* out, int inputs,
                   int outputs, int group) {
    const int blocks = outputs / marlin::kOutputs * (inputs / marlin::kInputs);
    const auto codes = static_cast<const uint4*>(weights);
    const auto scales = static_cast<const uint32_t*>(groups);
    return guarded([&] {
        emulated::run(blocks, marlin::kThreads, 0, false, [&] {
            if (brain) {
                marlin::unpack(codes, scales, static_cast<__nv_bfloat16*>(out), inputs, outputs, group);
            } else {
                marlin::unpack(codes, scales, static_cast<__half*>(out), inputs, outputs, group);
            }
        });
    });
}

// Of a tile of so many tokens: the stages of its pipeline, and the bytes of shared memory.
int stages(int tile, int scaled) {
    const auto of = [&](auto tokens) {
        constexpr int kTokens = decltype(tokens)::value;
        return scaled == 32 ? marlin::Shared<kTokens, 32>::kStages
                            : marlin::Shared<kTokens, 64>::kStages;
    };
    return tile == 8    ? of(std::integral_constant<int, 8>())
           : tile == 16 ? of(std::integral_constant<int, 16>())
           : tile == 32 ? of(std::integral_constant<int, 32>())
                        : of(std::integral_constant<int, 64>());
}
}
