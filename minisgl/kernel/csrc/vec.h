// One register of floats as a type, and the few operations on it that the kernels need.
// Wide where the compiler was told of AVX-512, half as wide elsewhere; nothing else depends on it.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace minisgl {

#if defined(__AVX512F__)
constexpr int kLanes = 16;  // floats in a register
constexpr int kRows = 12;   // rows of one tile of a matrix product: 24 of 32 registers are sums
#else
constexpr int kLanes = 8;
constexpr int kRows = 6;  // 12 of 16 registers
#endif
constexpr int kPanel = 2 * kLanes;  // columns of one tile

typedef float Vec __attribute__((vector_size(kLanes * 4)));
typedef int32_t IntVec __attribute__((vector_size(kLanes * 4)));

inline Vec load(const float* from) {
    Vec out;
    std::memcpy(&out, from, sizeof(out));
    return out;
}

inline void store(float* to, Vec x) {
    std::memcpy(to, &x, sizeof(x));
}

// x in every lane: x - 0 is x whatever its sign, while -0 + 0 is not and would have to be computed.
inline Vec splat(float x) {
    return x - Vec{};
}

// Weights that are kept in 16 bits become floats here; every one of them is a float exactly.
struct Half {
    uint16_t bits;
};
struct Bfloat {
    uint16_t bits;
};

inline Vec load(const Bfloat* from) {
    IntVec wide;
#if defined(__AVX512F__)
    __m512i bits =
        _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
    std::memcpy(&wide, &bits, sizeof(wide));
#elif defined(__AVX2__)
    __m256i bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
    std::memcpy(&wide, &bits, sizeof(wide));
#else
    for (int i = 0; i < kLanes; ++i) wide[i] = from[i].bits;
#endif
    wide <<= 16;
    Vec out;
    std::memcpy(&out, &wide, sizeof(out));
    return out;
}

inline Vec load(const Half* from) {
    Vec out;
#if defined(__AVX512F__)
    __m512 wide = _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
    std::memcpy(&out, &wide, sizeof(out));
#elif defined(__F16C__)
    __m256 wide = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
    std::memcpy(&out, &wide, sizeof(out));
#else
    for (int i = 0; i < kLanes; ++i) {
        uint32_t bits = from[i].bits, magnitude = (bits & 0x7fffu) << 13;
        float x;
        std::memcpy(&x, &magnitude, sizeof(x));
        x *= 0x1p112f;  // the exponents' biases differ by 112; this is right for subnormals too
        out[i] = bits & 0x8000u ? -x : x;
    }
#endif
    return out;
}

inline Vec max(Vec a, Vec b) {
    return a > b ? a : b;
}

inline float sum(Vec x) {
    float parts[kLanes];
    store(parts, x);
    for (int half = kLanes / 2; half; half /= 2) {
        for (int i = 0; i < half; ++i) parts[i] += parts[i + half];
    }
    return parts[0];
}

// e^x to about 2e-7 of its value; 0 below -87. Source: Cephes, expf, by S. Moshier (the method).
inline Vec exp(Vec x) {
    IntVec tiny = x < -87.0f;
    x = max(x, splat(-87.0f));
    x = x < 88.0f ? x : splat(88.0f);
    Vec scaled = x * 1.44269504088896341f;
    IntVec whole =
        __builtin_convertvector(scaled + (scaled < 0.0f ? splat(-0.5f) : splat(0.5f)), IntVec);
    Vec n = __builtin_convertvector(whole, Vec);
    Vec r = x - n * 0.693359375f + n * 2.12194440e-4f;  // log(2) in two parts
    Vec y = splat(1.9875691500e-4f);
    y = y * r + 1.3981999507e-3f;
    y = y * r + 8.3334519073e-3f;
    y = y * r + 4.1665795894e-2f;
    y = y * r + 1.6666665459e-1f;
    y = y * r + 5.0000001201e-1f;
    y = y * r * r + r + 1.0f;
    IntVec power = (whole + 127) << 23;
    Vec factor;
    std::memcpy(&factor, &power, sizeof(factor));
    return tiny ? Vec{} : y * factor;
}

}  // namespace minisgl
