// E2M1 from float32, and Philox4x32-10: what formats.py and draws.py define, for a thread. Also plain C++:
// the integer forms are what is tested on the host for every bfloat16; Blackwell (sm_100a, sm_120a) rounds to E2M1 by an instruction.
#pragma once
#include "surogate_fp8.h"

// float32 operations that no compiler joins into one: results must not depend on who compiled them.
#if defined(__CUDACC__)
SUROGATE_INLINE float times(float a, float b) { return __fmul_rn(a, b); }
SUROGATE_INLINE float plus(float a, float b) { return __fadd_rn(a, b); }
SUROGATE_INLINE float over(float a, float b) { return __fdiv_rn(a, b); }
#else
SUROGATE_INLINE float times(float a, float b) { return a * b; }
SUROGATE_INLINE float plus(float a, float b) { return a + b; }
SUROGATE_INLINE float over(float a, float b) { return a / b; }
#endif

constexpr float FLOAT_MAX = 3.402823466e38f;
SUROGATE_INLINE float magnitude(float x) { return __uint_as_float(__float_as_uint(x) & 0x7fffffffu); }
SUROGATE_INLINE float with_sign_of(float value, float x) {
    return __uint_as_float(__float_as_uint(value) | (__float_as_uint(x) & 0x80000000u));
}
SUROGATE_INLINE float at_most(float x, float bound) { return x > bound ? bound : x; }  // keeps what is not a number
SUROGATE_INLINE float power(float x, float least) {                                    // largest power of two <= x, and >= least
    const float found = __uint_as_float(__float_as_uint(x) & 0x7f800000u);
    return found < least ? least : found;
}

// Nearest E2M1 value, ties to the even code, saturating at 6; not a number stays so.
SUROGATE_INLINE float e2m1(float x) {
    const float size = at_most(magnitude(x), 6.0f);
    const float anchor = power(size, 1.0f) * 4194304.0f;  // 2^22: where float32 has the spacing that E2M1 has at x
    return with_sign_of(plus(plus(size, anchor), -anchor), x);
}

// One of the two neighbours, by 16 random bits.
SUROGATE_INLINE float chance(uint32_t bits) { return times(plus(float(bits), 0.5f), 1.0f / 65536.0f); }
SUROGATE_INLINE float floor_small(float x) { return x >= 0.0f && x < 8388608.0f ? float(int(x)) : x; }
SUROGATE_INLINE float e2m1_stochastic(float x, uint32_t bits) {
    const float size = at_most(magnitude(x), 6.0f), step = power(size, 1.0f) * 0.5f;
    return with_sign_of(floor_small(plus(over(size, step), chance(bits))) * step, x);
}

// Code of a value that is E2M1 already; 7 for what is not a number.
SUROGATE_INLINE uint8_t e2m1_code(float value) {
    const float size = magnitude(value);
    if (!(size <= 6.0f)) return 7;
    const uint32_t bits = __float_as_uint(size);
    const uint8_t index = size < 1.0f ? uint8_t(size * 2.0f) : uint8_t((bits >> 22) - 252u);
    return uint8_t(__float_as_uint(value) >> 28 & 8u) | index;
}

// Two float32 values to a byte, the first in the low half: nearest, saturating.
SUROGATE_INLINE uint8_t e2m1_pair(float low, float high) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
    uint32_t pair;
    asm("{ .reg .b8 byte; cvt.rn.satfinite.e2m1x2.f32 byte, %2, %1; mov.b32 %0, {byte, byte, byte, byte}; }"
        : "=r"(pair)
        : "f"(low), "f"(high));
    return uint8_t(pair);
#else
    return uint8_t(e2m1_code(e2m1(low)) | e2m1_code(e2m1(high)) << 4);
#endif
}

// Four words of 32 random bits for counter (index, 0, step).
SUROGATE_INLINE void philox(uint32_t index, unsigned long long step, unsigned long long key, uint32_t* words) {
    uint32_t zero = index, one = 0, two = uint32_t(step), three = uint32_t(step >> 32);
    uint32_t first = uint32_t(key), second = uint32_t(key >> 32);
    for (int round = 0; round < 10; round++) {
        const unsigned long long left = 0xd2511f53ull * zero, right = 0xcd9e8d57ull * two;
        zero = uint32_t(right >> 32) ^ one ^ first;
        one = uint32_t(right);
        two = uint32_t(left >> 32) ^ three ^ second;
        three = uint32_t(left);
        first += 0x9e3779b9u;
        second += 0xbb67ae85u;
    }
    words[0] = zero, words[1] = one, words[2] = two, words[3] = three;
}
