// An operand (M, K), bfloat16 or float32, rotated along K or not, with its largest magnitude known  ->  E2M1 codes, E4M3 block scales and
// q * s (operand.h). What blocks.py defines of what rotation.py defines, bit for bit: both operands of a weight gradient in one pass.
//
// A thread has one block of 16. Of a 16 x 16 block 16 neighbouring lanes have a row each, and meet in shuffles.
#include "operand.h"

namespace {
template <class In, bool SQUARE, bool FOUR, bool TURNED>
SUROGATE_INLINE void quantise(const Operand& given, const float* amax, const Results& to, const Draw& draw) {
    const int64_t blocks = (given.columns + BLOCK - 1) / BLOCK;
    float x[BLOCK];
    const Place place = read<In, SQUARE, TURNED, BLOCK>(given, blocks, x);
    const Choice<float> choice = choose<SQUARE, FOUR>(x, whole_of<FOUR>(*amax));
    if (place.row >= given.rows || place.block >= blocks) return;

#pragma unroll
    for (int i = 0; i < BLOCK; i++) x[i] = times(x[i], choice.factor);
    if (draw.step) {
        const uint32_t counter = uint32_t(draw.base / 4 + 2 * (place.row * blocks + place.block));
        uint32_t words[8];
        philox(counter, *draw.step, draw.key, words);
        philox(counter + 1, *draw.step, draw.key, words + 4);
#pragma unroll
        for (int i = 0; i < BLOCK; i++) x[i] = e2m1_stochastic(x[i], words[i / 2] >> i % 2 * 16 & 0xffffu);
    }
    write(to, place, blocks, x, choice.scale);
}
}  // namespace

#define KERNEL(name, In, SQUARE, FOUR, TURNED)                                                                                        \
    extern "C" __global__ void __launch_bounds__(THREADS) name(                                                                       \
        const void* x, const float* factor, const float* signs, const float* amax, uint8_t* codes, uint8_t* scales, uint16_t* fake,   \
        int64_t rows, int64_t columns, int64_t key, const int64_t* step, int64_t base                                                 \
    ) {                                                                                                                               \
        quantise<In, SQUARE, FOUR, TURNED>(                                                                                           \
            {x, factor, signs, rows, columns}, amax, {codes, scales, fake}, {(unsigned long long)key, step, base}                     \
        );                                                                                                                            \
    }
#define READINGS(name, In, SQUARE, FOUR)      \
    KERNEL(name, In, SQUARE, FOUR, false)     \
    KERNEL(name##_turned, In, SQUARE, FOUR, true)
#define KERNELS(name, In)                                     \
    READINGS(quantise_##name, In, false, false)               \
    READINGS(quantise_##name##_four, In, false, true)         \
    READINGS(quantise_##name##_square, In, true, false)       \
    READINGS(quantise_##name##_square_four, In, true, true)

KERNELS(bf16, BFloat16)
KERNELS(fp32, Float32)

#if !defined(__CUDACC__)
extern "C" uint8_t host_e2m1(float low, float high) { return e2m1_pair(low, high); }
extern "C" uint8_t host_e4m3(float value) { return e4m3(value); }
extern "C" float host_e4m3_value(uint8_t code) { return e4m3_value(code); }
extern "C" float host_e4m3_near(float value) { return e4m3_near(value); }
#endif
