// One AdamW update of blocks of 256 values whose moments are held in the dynamic 8-bit format; the rule is in reference.py, the format
// in codes.py. The functions work on N values at a time: 16 in each thread of the GPU, a whole block on the CPU.
#pragma once
#include "surogate_device.h"

namespace adam8 {
constexpr int BLOCK = 256, ROW = 4096;
// The upper 16 bits of float32 values from 2^-24 to 1 number the cells of the tables. A cell has at most one boundary between two codes;
// smaller values lie below all of them.
constexpr int FIRST = 0x3380, CELLS = 0x3f80 - FIRST + 1;
constexpr uint32_t INFINITE = 0x7f800000u, NOT_A_NUMBER = 0x7fc0;
constexpr float TINY = 1.1754943508222875e-38f, LARGEST = 3.4028234663852886e38f;

// Of one moment: what a code stands for, and for each cell (of positive values, then of negative ones) the two codes in it: bits 0 to
// 7 and 8 to 15, the second one for values whose lower 16 bits are above the entry's upper 16.
template <int SIGNS>
struct Table {
    float values[256];
    uint32_t cells[SIGNS * CELLS];
    static constexpr int SIDES = SIGNS;
};
struct Tables {
    Table<2> m;
    Table<1> v;
};

struct Hyper {
    float lr, correction, beta1, left1, beta2, left2, epsilon, scale;
};

// A parameter: its values lie in the arena from `start`, a multiple of the block. `grad` may be null, which is a gradient of 0.
struct Segment {
    void* param;
    const void* grad;
    int64_t start, count;
    float decay;
    int bfloat16;
};

// Everything by position in the arena. Blocks below `coded` have codes and scales, the others exact moments. Without `remainder`
// bfloat16 values are rounded by noise: the sum of one number by position in a row of 4096 and one by row.
struct Arena {
    uint8_t *m_codes, *v_codes;
    float *m_absmax, *v_absmax, *m_exact, *v_exact;
    short* remainder;
    const short *noise, *noise_of_rows;
    const Hyper* hyper;
    const Tables* tables;
    const Segment* segments;
    const int* owners;
    int64_t coded;
};

// Where the entry of a value is, and which of its codes the value has.
template <class Table>
SUROGATE_INLINE int cell_of(uint32_t bits) {
    const int cell = min(max(int((bits & 0x7fffffffu) >> 16), FIRST) - FIRST, CELLS - 1);
    return Table::SIDES == 2 ? cell + int(bits >> 31) * CELLS : cell;
}
SUROGATE_INLINE uint8_t code_of(uint32_t bits, uint32_t entry) { return uint8_t((bits & 0xffffu) > entry >> 16 ? entry >> 8 : entry); }

template <int N>
SUROGATE_INLINE void update(const Hyper& hyper, float decay, const float* g, float* p, float* m, float* v) {
    const float rate = hyper.lr * hyper.correction, kept = 1.0f - hyper.lr * decay;
#pragma unroll
    for (int i = 0; i < N; i++) {
        const float grad = g[i] * hyper.scale;
        const float first = hyper.beta1 * m[i] + hyper.left1 * grad;
        const float second = hyper.beta2 * v[i] + hyper.left2 * grad * grad;
        const bool good = second <= LARGEST;  // the square of every gradient is in it
        m[i] = good ? first : 0.0f;
        v[i] = good ? second : 0.0f;
        const float moved = p[i] - m[i] / (sqrtf(v[i]) + hyper.epsilon) * rate;
        p[i] = good ? moved * kept : p[i];
    }
}

// The bits of max |x|, which order like the values.
template <int N>
SUROGATE_INLINE uint32_t largest(const float* x) {
    uint32_t most = 0;
#pragma unroll
    for (int i = 0; i < N; i++) most = max(most, __float_as_uint(x[i]) & 0x7fffffffu);
    return most;
}

template <int N>
SUROGATE_INLINE void from_bfloat16(const uint16_t* raw, float* p) {
#pragma unroll
    for (int i = 0; i < N; i++) p[i] = __uint_as_float(uint32_t(raw[i]) << 16);
}
template <int N>
SUROGATE_INLINE void add_remainder(const short* remainder, float* p) {
#pragma unroll
    for (int i = 0; i < N; i++) p[i] = __uint_as_float(__float_as_uint(p[i]) + uint32_t(int(remainder[i])));
}

SUROGATE_INLINE uint16_t upper_of(float value, uint32_t bits) {
    return uint16_t((__float_as_uint(value) & 0x7fffffffu) > INFINITE ? NOT_A_NUMBER : bits >> 16);
}
// To the nearest bfloat16, ties away from zero, and what is left.
template <int N>
SUROGATE_INLINE void split(const float* p, short* remainder, uint16_t* raw) {
#pragma unroll
    for (int i = 0; i < N; i++) {
        const uint32_t bits = __float_as_uint(p[i]), nearest = bits + 0x8000u;
        remainder[i] = short(bits - (nearest & 0xffff0000u));
        raw[i] = upper_of(p[i], nearest);
    }
}
// Up or down by the sum of two numbers, modulo 2^16.
template <int N>
SUROGATE_INLINE void round_by(const float* p, const short* noise, short of_row, uint16_t* raw) {
#pragma unroll
    for (int i = 0; i < N; i++) raw[i] = upper_of(p[i], __float_as_uint(p[i]) + uint32_t(int(short(noise[i] + of_row))) + 0x8000u);
}
}  // namespace adam8
