// What happens to a row of numbers, 16 bytes at a time: kernels that stand alone and products that
// take a row in round alike, as tensors between the steps would be.
#pragma once
#include "device.cuh"

constexpr int kMaxThreads = 1024;

// 16 bytes of numbers, read and written at once.
template <typename T>
struct alignas(16) Pack {
    static constexpr int kSize = 16 / sizeof(T);
    T at[kSize];
};

__device__ inline float warp_sum(float x) {
#pragma unroll
    for (int offset = kWarp / 2; offset > 0; offset /= 2) {
        x += __shfl_xor_sync(0xffffffffu, x, offset);
    }
    return x;
}

// The sum over a block, in every thread. scratch: one float for each warp.
__device__ inline float block_sum(float x, float* scratch) {
    x = warp_sum(x);
    if (threadIdx.x % kWarp == 0) scratch[threadIdx.x / kWarp] = x;
    __syncthreads();
    const int warps = blockDim.x / kWarp;
    return warp_sum(threadIdx.x % kWarp < warps ? scratch[threadIdx.x % kWarp] : 0.0f);
}

template <typename T>
__device__ inline Pack<T> added(Pack<T> x, const Pack<T>& other) {
#pragma unroll
    for (int j = 0; j < Pack<T>::kSize; ++j) {
        x.at[j] = from_float<T>(to_float(x.at[j]) + to_float(other.at[j]));
    }
    return x;
}

// so_far and the squares of x, added one after the other.
template <typename T>
__device__ inline float add_squares(float so_far, const Pack<T>& x) {
#pragma unroll
    for (int j = 0; j < Pack<T>::kSize; ++j) {
        const float value = to_float(x.at[j]);
        so_far += value * value;
    }
    return so_far;
}

__device__ inline float norm_scale(float squares, int64_t size, float eps) {
    return rsqrtf(squares / static_cast<float>(size) + eps);
}

template <typename T>
__device__ inline Pack<T> scaled(Pack<T> x, float scale, const Pack<T>& factor) {
#pragma unroll
    for (int j = 0; j < Pack<T>::kSize; ++j) {
        x.at[j] = from_float<T>(to_float(x.at[j]) * scale * to_float(factor.at[j]));
    }
    return x;
}

// silu(gate) * up.
template <typename T>
__device__ inline Pack<T> gated(const Pack<T>& gate, const Pack<T>& up) {
    Pack<T> out;
#pragma unroll
    for (int j = 0; j < Pack<T>::kSize; ++j) {
        const float g = to_float(gate.at[j]);
        out.at[j] = from_float<T>(g / (1.0f + __expf(-g)) * to_float(up.at[j]));
    }
    return out;
}
