// E2M1 and E4M3 from float32, and Philox4x32-10: what formats.py and draws.py define. F is a float, of one thread, or on a CPU `Rows`
// (rows.h): 16 of them side by side. The integer forms are what is tested on the host for every bfloat16; Blackwell (sm_100a, sm_120a)
// rounds to E2M1 by an instruction.
#pragma once
#include "surogate_fp8.h"

// float32 operations that no compiler joins into one: results must not depend on who compiled them.
#if defined(__CUDACC__)
SUROGATE_INLINE float times(float a, float b) { return __fmul_rn(a, b); }
SUROGATE_INLINE float plus(float a, float b) { return __fadd_rn(a, b); }
SUROGATE_INLINE float over(float a, float b) { return __fdiv_rn(a, b); }
#else
template <class A, class B> SUROGATE_INLINE auto times(A a, B b) -> decltype(a * b) { return a * b; }
template <class A, class B> SUROGATE_INLINE auto plus(A a, B b) -> decltype(a + b) { return a + b; }
template <class A, class B> SUROGATE_INLINE auto over(A a, B b) -> decltype(a / b) { return a / b; }
#endif

constexpr float FLOAT_MAX = 3.402823466e38f, E4M3_MAX = 448.0f;
SUROGATE_INLINE uint32_t bits_of(float x) { return __float_as_uint(x); }
SUROGATE_INLINE float float_of(uint32_t bits) { return __uint_as_float(bits); }
SUROGATE_INLINE float number_of(uint32_t count) { return float(count); }
SUROGATE_INLINE float cut(float x) { return float(int(x)); }  // towards 0
SUROGATE_INLINE float exchanged(float own, int lanes) { return __shfl_xor_sync(0xffffffffu, own, lanes); }
SUROGATE_INLINE void wide(uint32_t by, uint32_t word, uint32_t& low, uint32_t& high) {
    const unsigned long long whole = (unsigned long long)by * word;
    low = uint32_t(whole), high = uint32_t(whole >> 32);
}

template <class F> SUROGATE_INLINE F magnitude(F x) { return float_of(bits_of(x) & 0x7fffffffu); }
template <class F> SUROGATE_INLINE F with_sign_of(F value, F x) { return float_of(bits_of(value) | (bits_of(x) & 0x80000000u)); }
template <class F> SUROGATE_INLINE F at_most(F x, float bound) { return x > bound ? bound : x; }  // keeps what is not a number
template <class F> SUROGATE_INLINE F power(F x, float least) {  // largest power of two <= |x|, and >= least
    const F found = float_of(bits_of(x) & 0x7f800000u);
    return found < least ? least : found;
}

// Nearest E2M1 value, ties to the even code, saturating at 6; not a number stays so.
template <class F> SUROGATE_INLINE F e2m1(F x) {
    const F size = at_most(magnitude(x), 6.0f);
    const F anchor = power(size, 1.0f) * 4194304.0f;  // 2^22: where float32 has the spacing that E2M1 has at x
    return with_sign_of(plus(plus(size, anchor), -anchor), x);
}

// Nearest E4M3 value of x >= 0, likewise, saturating at 448.
template <class F> SUROGATE_INLINE F e4m3_near(F x) {
    const F size = at_most(x, E4M3_MAX), anchor = power(size, 0.015625f) * 1048576.0f;  // 2^-6 and 2^20
    return plus(plus(size, anchor), -anchor);
}

// One of the two neighbours, by 16 random bits.
template <class W> SUROGATE_INLINE auto chance(W bits) -> decltype(number_of(bits)) {
    return times(plus(number_of(bits), 0.5f), 1.0f / 65536.0f);
}
template <class F> SUROGATE_INLINE F floor_small(F x) { return x >= 0.0f && x < 8388608.0f ? cut(x) : x; }
template <class F, class W> SUROGATE_INLINE F e2m1_stochastic(F x, W bits) {
    const F size = at_most(magnitude(x), 6.0f), step = power(size, 1.0f) * 0.5f;
    const F inverse = float_of(0x7f000000u - bits_of(step));  // of a power of two: exact, and so is what it multiplies
    return with_sign_of(times(floor_small(plus(times(size, inverse), chance(bits))), step), x);
}
template <class F, class W> SUROGATE_INLINE F e4m3_stochastic(F x, W bits) {  // x >= 0
    const F step = power(x, 0.015625f) * 0.125f;
    return at_most(times(floor_small(plus(over(x, step), chance(bits))), step), E4M3_MAX);
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
template <class W> SUROGATE_INLINE void philox(W index, unsigned long long step, unsigned long long key, W* words) {
    W zero = index, one = index ^ index, two = one + uint32_t(step), three = one + uint32_t(step >> 32);
    uint32_t first = uint32_t(key), second = uint32_t(key >> 32);
    for (int round = 0; round < 10; round++) {
        W left, right, left_high, right_high;
        wide(0xd2511f53u, zero, left, left_high);
        wide(0xcd9e8d57u, two, right, right_high);
        zero = right_high ^ one ^ first;
        one = right;
        two = left_high ^ three ^ second;
        three = left;
        first += 0x9e3779b9u;
        second += 0xbb67ae85u;
    }
    words[0] = zero, words[1] = one, words[2] = two, words[3] = three;
}
