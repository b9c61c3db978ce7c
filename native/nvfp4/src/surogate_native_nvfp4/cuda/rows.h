// 16 rows of a matrix side by side, for the CPU's own build: what nvfp4.h and blocks.h do with a float, for 16 of them at once. Included
// before these, whose templates look for the functions here; for g++ and compilers that have its vectors.
#pragma once
#include "surogate_device.h"

constexpr int SIDE = 16;
typedef float Rows __attribute__((vector_size(4 * SIDE)));
typedef uint32_t RowBits __attribute__((vector_size(4 * SIDE)));
typedef int32_t RowCounts __attribute__((vector_size(4 * SIDE)));

SUROGATE_INLINE RowBits bits_of(Rows x) { return reinterpret_cast<RowBits>(x); }
SUROGATE_INLINE Rows float_of(RowBits bits) { return reinterpret_cast<Rows>(bits); }
SUROGATE_INLINE Rows number_of(RowBits count) { return __builtin_convertvector(reinterpret_cast<RowCounts>(count), Rows); }  // below 2^31
SUROGATE_INLINE Rows cut(Rows x) { return __builtin_convertvector(__builtin_convertvector(x, RowCounts), Rows); }
SUROGATE_INLINE Rows exchanged(Rows own, int lanes) {
    Rows other;
    for (int row = 0; row < SIDE; row++) other[row] = own[row ^ lanes];
    return other;
}
SUROGATE_INLINE void wide(uint32_t by, RowBits word, RowBits& low, RowBits& high) {
    uint32_t words[SIDE], lows[SIDE], highs[SIDE];
    memcpy(words, &word, sizeof words);
    for (int row = 0; row < SIDE; row++) {
        const uint64_t whole = uint64_t(by) * words[row];
        lows[row] = uint32_t(whole), highs[row] = uint32_t(whole >> 32);
    }
    memcpy(&low, lows, sizeof lows);
    memcpy(&high, highs, sizeof highs);
}
