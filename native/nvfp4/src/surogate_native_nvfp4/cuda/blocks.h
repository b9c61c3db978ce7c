// One block of 16 values of a row, or with F = Rows one block of each of 16 rows: what blocks.py, rotation.py and eden.py define for
// it, bit for bit, apart from where values come from and go to.
#pragma once
#include "nvfp4.h"

constexpr int BLOCK = 16;

// Scales of a whole matrix: what its largest magnitude is encoded with, and the reciprocal, not a number for one that is not finite.
struct Whole {
    float encode, decode;
};
template <bool FOUR> SUROGATE_INLINE Whole whole_of(float amax) {
    float encode = at_most(over(FOUR ? 1536.0f : 2688.0f, amax), FLOAT_MAX);
    if (amax == 0.0f || encode == 0.0f) encode = 1.0f;
    return {encode, magnitude(amax) <= FLOAT_MAX ? over(1.0f, encode) : __uint_as_float(0x7fc00000u)};
}

// A block's E4M3 scale, and what its values are multiplied by.
template <class F> struct Choice {
    F scale, factor;
};

template <class F> SUROGATE_INLINE F factor_of(F scale, float decode) {
    return scale == 0.0f ? 0.0f : at_most(over(1.0f, times(scale, decode)), FLOAT_MAX);
}

// Bits of |x| order like the values, with what is not a number at the end.
template <class F> SUROGATE_INLINE F larger(F one, F other) {
    const auto a = bits_of(one), b = bits_of(other);
    return float_of(a > b ? a : b);
}
template <class F> SUROGATE_INLINE F largest_of(const F* x) {
    F found = magnitude(x[0]);
#pragma unroll
    for (int i = 1; i < BLOCK; i++) found = larger(found, magnitude(x[i]));
    return found;
}

// Over the 16 rows of a tile, halves first, as the definition adds: each row is a lane.
template <class F> SUROGATE_INLINE F largest_of_rows(F value) {
#pragma unroll
    for (int lanes = 8; lanes; lanes /= 2) value = larger(value, exchanged(value, lanes));
    return value;
}
template <class F> SUROGATE_INLINE F sum_of_rows(F value) {
#pragma unroll
    for (int lanes = 8; lanes; lanes /= 2) value = plus(value, exchanged(value, lanes));
    return value;
}

template <class F> SUROGATE_INLINE F square_error(const F* x, F factor, F scale, float decode) {
    F parts[BLOCK];
#pragma unroll
    for (int i = 0; i < BLOCK; i++) {
        const F error = plus(times(e2m1(times(x[i], factor)), times(scale, decode)), -x[i]);
        parts[i] = times(error, error);
    }
#pragma unroll
    for (int half = BLOCK / 2; half; half /= 2)
        for (int i = 0; i < half; i++) parts[i] = plus(parts[i], parts[i + half]);
    return parts[0];
}

// The scale of a block of 1 x 16, or with SQUARE of 16 x 16 of which each lane has a row; FOUR over six by square error.
template <bool SQUARE, bool FOUR, class F> SUROGATE_INLINE Choice<F> choose(const F* x, const Whole& whole) {
    F largest = largest_of(x);
    if (SQUARE) largest = largest_of_rows(largest);
    const F raw = FOUR ? times(over(largest, 6.0f), whole.encode) : times(largest, times(whole.encode, 1.0f / 6.0f));
    const F scale = e4m3_near(raw), factor = factor_of(scale, whole.decode);
    if (!FOUR) return {scale, factor};
    const F wider = e4m3_near(times(raw, 1.5f)), shorter = factor_of(wider, whole.decode);
    F six = square_error(x, factor, scale, whole.decode), four = square_error(x, shorter, wider, whole.decode);
    if (SQUARE) six = sum_of_rows(six), four = sum_of_rows(four);
    return {four < six ? wider : scale, four < six ? shorter : factor};
}

// Sums and differences of neighbours 1, 2, 4, ... apart: a Hadamard transform of SIZE values, but for its factor.
template <int SIZE, class F> SUROGATE_INLINE void butterflies(F* x) {
#pragma unroll
    for (int near = 1; near < SIZE; near *= 2)
#pragma unroll
        for (int i = 0; i < SIZE; i++)
            if (!(i & near)) {
                const F left = x[i], right = x[i + near];
                x[i] = plus(left, right);
                x[i + near] = plus(left, -right);
            }
}
template <int SIZE> SUROGATE_INLINE float hadamard_factor() {
    static_assert(SIZE == 16 || SIZE == 128, "the transforms that the recipes have");
    return SIZE == 16 ? 0.25f : 0.08838834764831845f;
}

// MS-EDEN before its correction: the decode scale of a matrix, the scale of a block, what its values are divided by.
constexpr float EDEN_TOP = 255.99f, EDEN_LIMIT = float(6.0 / (17.0 / 16.0 * 0.93));
SUROGATE_INLINE float eden_decode(float amax) {
    if (!(magnitude(amax) <= FLOAT_MAX)) return __uint_as_float(0x7fc00000u);
    return amax == 0.0f ? 1.0f : over(over(amax, EDEN_TOP), EDEN_LIMIT);
}
template <class F> SUROGATE_INLINE F eden_scale(const F* x, float decode) {
    const F scale = e4m3_near(over(over(largest_of(x), EDEN_LIMIT), decode));
    return scale == 0.0f ? 1.0f : scale;
}
template <class F> SUROGATE_INLINE F eden_divisor(F scale, float decode) { return at_most(times(scale, decode), FLOAT_MAX); }
// From the sums over a rotated group of z * z and of z * q.
template <class F> SUROGATE_INLINE F eden_correction(F squares, F along) { return along == 0.0f ? 1.0f : over(squares, along); }
