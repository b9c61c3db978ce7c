// E4M3 (finite only, largest 448) and E5M2 (largest finite 57344) from float32: nearest, ties to even, saturating; not a number stays
// so. The integer form is what is tested on the host for every bfloat16; from sm_89 on the GPU has an instruction for each.
#pragma once
#include "surogate_device.h"

// MANTISSA bits and an exponent with this BIAS; LARGEST is the code of the largest value, LIMIT that value as the bits of a float.
template <int MANTISSA, int BIAS, uint32_t LIMIT, uint8_t LARGEST>
SUROGATE_INLINE uint8_t narrowed(float value) {
    constexpr int shift = 23 - MANTISSA;
    constexpr uint32_t normal = uint32_t(128 - BIAS) << 23;             // the smallest normal value
    constexpr uint32_t anchor = uint32_t(151 - BIAS - MANTISSA) << 23;  // a float whose last bit is the step below it
    const uint32_t bits = __float_as_uint(value);
    const uint8_t sign = uint8_t(bits >> 24) & 0x80;
    uint32_t u = bits & 0x7fffffffu;
    if (u > 0x7f800000u) return 0x7f;
    if (u >= LIMIT) return sign | LARGEST;
    if (u < normal)  // let the float adder round
        return sign | uint8_t(__float_as_uint(__uint_as_float(u) + __uint_as_float(anchor)) - anchor);
    u += (uint32_t(BIAS - 127) << 23) + ((1u << (shift - 1)) - 1) + ((u >> shift) & 1);
    return sign | uint8_t(u >> shift);
}

SUROGATE_INLINE uint8_t e4m3(float value) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
    uint16_t pair;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(0.0f), "f"(value));
    return uint8_t(pair);
#else
    return narrowed<3, 7, 0x43e00000u, 0x7e>(value);  // 448
#endif
}

SUROGATE_INLINE uint8_t e5m2(float value) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
    uint16_t pair;
    asm("cvt.rn.satfinite.e5m2x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(0.0f), "f"(value));
    return uint8_t(pair);
#else
    return narrowed<2, 15, 0x47600000u, 0x7b>(value);  // 57344
#endif
}

// What an E4M3 code stands for.
SUROGATE_INLINE float e4m3_value(uint8_t code) {
    const uint32_t sign = uint32_t(code & 0x80u) << 24, exponent = code >> 3 & 15u, fraction = code & 7u;
    if ((code & 0x7fu) == 0x7fu) return __uint_as_float(0x7fc00000u | sign);
    const float small = float(fraction) * 0.001953125f;  // 2^-9
    return __uint_as_float((exponent ? (exponent + 120u) << 23 | fraction << 20 : __float_as_uint(small)) | sign);
}
