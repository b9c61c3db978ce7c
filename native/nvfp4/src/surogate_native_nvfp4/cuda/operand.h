// Where threads get the blocks of an operand from, and where they put what becomes of them. Not for the CPU's own build.
//
// An operand is a matrix (rows, columns) with blocks along columns. Straight, a thread has 16 neighbours of a row: two 16-byte loads of
// bfloat16. TURNED, memory has the transpose: 256 threads bring 128 columns x 32 rows to shared memory, along rows, and a thread has a
// block of it; eight neighbouring lanes have the eight blocks of 128 columns either way. SQUARE, 16 neighbouring lanes have 16 rows.
#pragma once
#include "blocks.h"
#include "surogate_values.h"

constexpr int THREADS = 256, HIGH = 32, WIDE = 128, LANES = WIDE / BLOCK;
constexpr int PITCH = BLOCK * HIGH + 4;  // of a block in shared memory: eight blocks of four rows lie in 32 banks

struct Operand {
    const void* x;
    const float* factor;  // what every value is multiplied by first, or nothing
    const float* signs;   // of the rotation, as many as are rotated together, or nothing
    int64_t rows, columns;
};
struct Place {
    int64_t row, block;
};

template <class In> SUROGATE_INLINE float value_at(const void* x, int64_t at) {
    return In::value(static_cast<const typename In::Stored*>(x)[at]);
}

template <class In> SUROGATE_INLINE Place read_straight(const Operand& given, Place place, float* x) {
    const int64_t column = place.block * BLOCK;
    const bool inside = place.row < given.rows;
    if (inside && column + BLOCK <= given.columns && given.columns % BLOCK == 0) {
        load_values<In, BLOCK>(static_cast<const typename In::Stored*>(given.x) + place.row * given.columns + column, x);
    } else {
#pragma unroll
        for (int i = 0; i < BLOCK; i++)
            x[i] = inside && column + i < given.columns ? value_at<In>(given.x, place.row * given.columns + column + i) : 0.0f;
    }
    return place;
}

template <class In, bool SQUARE> SUROGATE_INLINE Place read_turned(const Operand& given, float* x) {
    __shared__ float tile[LANES * PITCH];
    constexpr int EACH = In::PER_LOAD, ACROSS = HIGH / EACH;
    const int64_t across = (given.rows + HIGH - 1) / HIGH;
    const int64_t first_row = blockIdx.x % across * HIGH, first_column = blockIdx.x / across * WIDE;
#pragma unroll
    for (int piece = threadIdx.x; piece < WIDE * ACROSS; piece += THREADS) {
        const int own_column = piece / ACROSS, own_row = piece % ACROSS * EACH;
        const int64_t column = first_column + own_column, row = first_row + own_row, at = column * given.rows + row;
        float values[EACH];
        if (column < given.columns && row + EACH <= given.rows && given.rows % EACH == 0) {
            load_values<In, EACH>(static_cast<const typename In::Stored*>(given.x) + at, values);
        } else {
#pragma unroll
            for (int i = 0; i < EACH; i++)
                values[i] = column < given.columns && row + i < given.rows ? value_at<In>(given.x, at + i) : 0.0f;
        }
#pragma unroll
        for (int i = 0; i < EACH; i++) tile[own_column / BLOCK * PITCH + own_column % BLOCK * HIGH + own_row + i] = values[i];
    }
    __syncthreads();
    const int t = threadIdx.x, block = SQUARE ? t / BLOCK % LANES : t % LANES;
    const int high = SQUARE ? t % BLOCK + t / (BLOCK * LANES) * BLOCK : t / LANES;
#pragma unroll
    for (int i = 0; i < BLOCK; i++) x[i] = tile[block * PITCH + i * HIGH + high];
    return {first_row + high, first_column / BLOCK + block};
}

// The thread's block of the operand with `blocks` of them in a row, zeros outside, multiplied by the factor, and rotated in groups of
// GROUP columns (of which a thread has 16) where there are signs. All threads of a warp come here together.
template <class In, bool SQUARE, bool TURNED, int GROUP> SUROGATE_INLINE Place read(const Operand& given, int64_t blocks, float* x) {
    const int64_t at = int64_t(blockIdx.x) * THREADS + threadIdx.x, tile = at / BLOCK;
    const Place straight = SQUARE ? Place{tile / blocks * BLOCK + at % BLOCK, tile % blocks} : Place{at / blocks, at % blocks};
    const Place place = TURNED ? read_turned<In, SQUARE>(given, x) : read_straight<In>(given, straight, x);
    if (given.factor) {
        const float factor = *given.factor;
#pragma unroll
        for (int i = 0; i < BLOCK; i++) x[i] = times(x[i], factor);
    }
    if (!given.signs) return place;
    float signs[BLOCK];
    load_values<Float32, BLOCK>(given.signs + place.block * BLOCK % GROUP, signs);
#pragma unroll
    for (int i = 0; i < BLOCK; i++) x[i] = times(x[i], signs[i]);
    butterflies<BLOCK>(x);
#pragma unroll
    for (int lanes = 1; lanes < GROUP / BLOCK; lanes *= 2)
#pragma unroll
        for (int i = 0; i < BLOCK; i++) {
            const float other = exchanged(x[i], lanes);
            x[i] = threadIdx.x & lanes ? plus(other, -x[i]) : plus(x[i], other);
        }
#pragma unroll
    for (int i = 0; i < BLOCK; i++) x[i] = times(x[i], hadamard_factor<GROUP>());
    return place;
}

// E2M1 codes (rows, 8 * blocks), E4M3 scales in the order that Blackwell's matrix units read (those of padding are not written), and,
// when asked for, q * s in bfloat16 (rows, 16 * blocks).
struct Results {
    uint8_t* codes;
    uint8_t* scales;
    uint16_t* fake;
};

// `z`: E2M1 values, or what the nearest are wanted of.
SUROGATE_INLINE void write(const Results& to, const Place& place, int64_t blocks, const float* z, float scale) {
    const int64_t block = place.row * blocks + place.block;
    uint32_t packed[2] = {0, 0};
#pragma unroll
    for (int i = 0; i < BLOCK; i += 2) packed[i / 8] |= uint32_t(e2m1_pair(z[i], z[i + 1])) << i % 8 * 4;
    if (to.fake) {
        float values[BLOCK];
#pragma unroll
        for (int i = 0; i < BLOCK; i++) values[i] = times(e2m1(z[i]), scale);
        store_values<BFloat16, BLOCK>(to.fake + block * BLOCK, values);  // exact: at most 6 significant bits
    }
    uint32_t* codes = reinterpret_cast<uint32_t*>(to.codes + block * BLOCK / 2);
    codes[0] = packed[0];
    codes[1] = packed[1];
    const int64_t row = place.row, atom = row / 128 * ((blocks + 3) / 4) + place.block / 4;
    to.scales[atom * 512 + row % 32 * 16 + row % 128 / 32 * 4 + place.block % 4] = e4m3(scale);
}

// Which random words an operand is rounded with: counters of `key` and `*step` from word `base` on, a multiple of 4; none without step.
struct Draw {
    unsigned long long key;
    const int64_t* step;
    int64_t base;
};
