// x (M, K), bfloat16 or float32, with max |x| known  ->  E2M1 codes (M, K16 / 2), E4M3 block scales in the order that Blackwell's matrix
// units read, and, when asked for, q * s in bfloat16 (M, K16). K16 is K rounded up to 16. What blocks.py defines, bit for bit.
//
// A thread has one block of 16 neighbours of a row: two 16-byte loads of bfloat16, one 8-byte store of codes. Of a 16 x 16 block 16
// neighbouring lanes have a row each, and meet in shuffles. Scales of padding are not written.
#include "nvfp4.h"
#include "surogate_values.h"

namespace {
constexpr int BLOCK = 16, THREADS = 256;

struct Arguments {
    const void* x;
    const float* amax;
    uint8_t* codes;
    uint8_t* scales;
    uint16_t* fake;
    int64_t rows, columns;
    unsigned long long key;
    const int64_t* step;
    int64_t base;
};

// 16 rows of a tile to one value: halves first, as the definition adds.
template <bool SQUARE> SUROGATE_INLINE float sum_of_rows(float value) {
    if (SQUARE)
#pragma unroll
        for (int lanes = 8; lanes; lanes /= 2) value = plus(value, __shfl_xor_sync(0xffffffffu, value, lanes));
    return value;
}

SUROGATE_INLINE float factor_of(float scale, float decode) {
    return scale == 0.0f ? 0.0f : at_most(over(1.0f, times(scale, decode)), FLOAT_MAX);
}

SUROGATE_INLINE float square_error(const float* x, float factor, float scale, float decode) {
    float parts[BLOCK];
#pragma unroll
    for (int i = 0; i < BLOCK; i++) {
        const float error = plus(times(e2m1(times(x[i], factor)), times(scale, decode)), -x[i]);
        parts[i] = times(error, error);
    }
#pragma unroll
    for (int half = BLOCK / 2; half; half /= 2)
        for (int i = 0; i < half; i++) parts[i] = plus(parts[i], parts[i + half]);
    return parts[0];
}

template <class In, bool SQUARE, bool FOUR, bool DRAWN> SUROGATE_INLINE void quantise(const Arguments& given) {
    typedef typename In::Stored Stored;
    const int64_t blocks = (given.columns + BLOCK - 1) / BLOCK;
    const int64_t at = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    int64_t row, block;
    if (SQUARE) {
        const int64_t tile = at / BLOCK;
        row = tile / blocks * BLOCK + at % BLOCK;
        block = tile % blocks;
    } else {
        row = at / blocks;
        block = at % blocks;
    }
    const bool inside = row < given.rows;
    const int64_t column = block * BLOCK;
    const Stored* from = static_cast<const Stored*>(given.x) + row * given.columns + column;
    float x[BLOCK];
    if (inside && column + BLOCK <= given.columns && given.columns % BLOCK == 0) {
        load_values<In, BLOCK>(from, x);
    } else {
#pragma unroll
        for (int i = 0; i < BLOCK; i++) x[i] = inside && column + i < given.columns ? In::value(from[i]) : 0.0f;
    }

    uint32_t bits = 0;  // of |x|: they order like the values, with what is not a number at the end
#pragma unroll
    for (int i = 0; i < BLOCK; i++) {
        const uint32_t own = __float_as_uint(x[i]) & 0x7fffffffu;
        bits = own > bits ? own : bits;
    }
    if (SQUARE)
#pragma unroll
        for (int lanes = 8; lanes; lanes /= 2) {
            const uint32_t other = __shfl_xor_sync(0xffffffffu, bits, lanes);
            bits = other > bits ? other : bits;
        }
    const float largest = __uint_as_float(bits), amax = *given.amax;
    float encode = at_most(over(FOUR ? 1536.0f : 2688.0f, amax), FLOAT_MAX);
    if (amax == 0.0f || encode == 0.0f) encode = 1.0f;
    const bool finite = magnitude(amax) <= FLOAT_MAX;
    const float decode = finite ? over(1.0f, encode) : __uint_as_float(0x7fc00000u);

    uint8_t code = e4m3(FOUR ? times(over(largest, 6.0f), encode) : times(largest, times(encode, 1.0f / 6.0f)));
    float scale = e4m3_value(code), factor = factor_of(scale, decode);
    if (FOUR) {
        const uint8_t other = e4m3(times(times(over(largest, 6.0f), encode), 1.5f));
        const float wider = e4m3_value(other), shorter = factor_of(wider, decode);
        const float six = sum_of_rows<SQUARE>(square_error(x, factor, scale, decode));
        const float four = sum_of_rows<SQUARE>(square_error(x, shorter, wider, decode));
        if (four < six) code = other, scale = wider, factor = shorter;
    }
    if (!inside) return;

    const int64_t width = blocks * BLOCK;
    uint32_t words[8];
    if (DRAWN) {
        const uint32_t counter = uint32_t((given.base + (row * width + column) / 2) / 4);
        philox(counter, *given.step, given.key, words);
        philox(counter + 1, *given.step, given.key, words + 4);
    }
    uint32_t packed[2] = {0, 0};
    uint16_t* fake = given.fake ? given.fake + row * width + column : nullptr;
#pragma unroll
    for (int i = 0; i < BLOCK; i += 2) {
        float low = times(x[i], factor), high = times(x[i + 1], factor);
        if (DRAWN) {
            low = e2m1_stochastic(low, words[i / 2] & 0xffffu);
            high = e2m1_stochastic(high, words[i / 2] >> 16);
        }
        packed[i / 8] |= uint32_t(e2m1_pair(low, high)) << i % 8 * 4;
        if (fake) {  // at most 6 significant bits: the upper half of the float32 is the bfloat16
            fake[i] = uint16_t(__float_as_uint(times(e2m1(low), scale)) >> 16);
            fake[i + 1] = uint16_t(__float_as_uint(times(e2m1(high), scale)) >> 16);
        }
    }
    uint32_t* to = reinterpret_cast<uint32_t*>(given.codes + (row * width + column) / 2);
    to[0] = packed[0];
    to[1] = packed[1];
    const int64_t atoms = (blocks + 3) / 4;
    given.scales[(row / 128 * atoms + block / 4) * 512 + row % 32 * 16 + row % 128 / 32 * 4 + block % 4] = code;
}
}  // namespace

#define KERNEL(name, In, SQUARE, FOUR, DRAWN)                                                                                             \
    extern "C" __global__ void __launch_bounds__(THREADS) name(                                                                           \
        const void* x, const float* amax, uint8_t* codes, uint8_t* scales, uint16_t* fake, int64_t rows, int64_t columns, int64_t key,    \
        const int64_t* step, int64_t base                                                                                                 \
    ) {                                                                                                                                  \
        quantise<In, SQUARE, FOUR, DRAWN>({x, amax, codes, scales, fake, rows, columns, (unsigned long long)key, step, base});            \
    }
#define KERNELS(name, In)                                  \
    KERNEL(quantise_##name, In, false, false, false)       \
    KERNEL(quantise_##name##_four, In, false, true, false) \
    KERNEL(quantise_##name##_square, In, true, false, false) \
    KERNEL(quantise_##name##_square_four, In, true, true, false) \
    KERNEL(quantise_##name##_drawn, In, false, false, true) \
    KERNEL(quantise_##name##_four_drawn, In, false, true, true)

KERNELS(bf16, BFloat16)
KERNELS(fp32, Float32)

#if !defined(__CUDACC__)
extern "C" uint8_t host_e2m1(float low, float high) { return e2m1_pair(low, high); }
extern "C" uint8_t host_e4m3(float value) { return e4m3(value); }
extern "C" float host_e4m3_value(uint8_t code) { return e4m3_value(code); }
#endif
