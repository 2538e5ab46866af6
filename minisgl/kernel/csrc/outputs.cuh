// What a product's sums go through before they are written.
#pragma once
#include "tensor_core.cuh"

__device__ inline float4 plus(float4 a, const float4& b) {
    return {a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w};
}

// Four outputs from this one on, with their biases, if there are any.
template <typename T>
__device__ inline float4 biased(float4 sum, const T* bias, int output) {
    if (bias == nullptr) return sum;
    const T* const at = bias + output;
    return plus(sum, {to_float(at[0]), to_float(at[1]), to_float(at[2]), to_float(at[3])});
}

// silu(gate) * up, of numbers that are rounded first as a tensor between the two steps would be.
template <typename T>
__device__ inline float gate_of(float gate, float up) {
    const float g = to_float(from_float<T>(gate)), u = to_float(from_float<T>(up));
    return g / (1.0f + __expf(-g)) * u;
}
template <typename T>
__device__ inline float4 gate_of(const float4& gate, const float4& up) {
    return {gate_of<T>(gate.x, up.x), gate_of<T>(gate.y, up.y), gate_of<T>(gate.z, up.z),
            gate_of<T>(gate.w, up.w)};
}

template <typename T>
__device__ inline void write_four(T* to, const float4& numbers) {
    *reinterpret_cast<uint2*>(to) = {pair<T>(numbers.x, numbers.y), pair<T>(numbers.z, numbers.w)};
}
