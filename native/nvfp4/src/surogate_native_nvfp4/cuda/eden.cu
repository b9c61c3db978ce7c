// An operand (M, K), bfloat16 or float32, rotated along K in groups of 128 or not, with its largest magnitude known  ->  E2M1 codes, E4M3
// block scales and q * s (operand.h) by MS-EDEN. What eden.py defines of what rotation.py defines, bit for bit.
//
// A thread has one block of 16, eight neighbouring lanes a group: the transform's last three steps and the sums over a group are shuffles.
#include "operand.h"

namespace {
// Sum of the 128 values of eight lanes, 16 each, on all of them: (i, i + 64) are added first, then 32, ..., as the definition adds.
// While a lane has more than one value to add, it keeps half of the sums and sends what its partner keeps.
SUROGATE_INLINE float sum_of_group(float* own) {
#pragma unroll
    for (int lanes = LANES / 2; lanes; lanes /= 2) {
        const int half = lanes * BLOCK / LANES;
        const bool upper = threadIdx.x & lanes;
#pragma unroll
        for (int i = 0; i < BLOCK / 2; i++)
            if (i < half) own[i] = plus(upper ? own[i + half] : own[i], exchanged(upper ? own[i] : own[i + half], lanes));
    }
#pragma unroll
    for (int lanes = LANES / 2; lanes; lanes /= 2)
#pragma unroll
        for (int i = 0; i < BLOCK / LANES; i++) own[i] = plus(own[i], exchanged(own[i], lanes));
    return plus(own[0], own[1]);
}

template <class In, bool TURNED> SUROGATE_INLINE void eden(const Operand& given, const float* amax, const Results& to, const Draw& draw) {
    const int64_t blocks = (given.columns + WIDE - 1) / WIDE * LANES;
    float x[BLOCK], squares[BLOCK], along[BLOCK];
    const Place place = read<In, false, TURNED, WIDE>(given, blocks, x);
    const float decode = eden_decode(*amax), scale = eden_scale(x, decode), divisor = eden_divisor(scale, decode);
#pragma unroll
    for (int i = 0; i < BLOCK; i++) {
        const float z = over(x[i], divisor);
        x[i] = e2m1(z);
        squares[i] = times(z, z);
        along[i] = times(z, x[i]);
    }
    const float wanted = times(scale, eden_correction(sum_of_group(squares), sum_of_group(along)));
    if (place.row >= given.rows) return;

    float rounded = e4m3_near(wanted);
    if (draw.step) {  // 16 bits for each scale: a group of eight has a counter
        const int64_t block = place.row * blocks + place.block;
        uint32_t words[4];
        philox(uint32_t(draw.base / 4 + block / LANES), *draw.step, draw.key, words);
        const uint32_t two = block & 4 ? words[2] : words[0], other = block & 4 ? words[3] : words[1];
        rounded = e4m3_stochastic(wanted, (block & 2 ? other : two) >> block % 2 * 16 & 0xffffu);
    }
    write(to, place, blocks, x, rounded);
}
}  // namespace

#define KERNEL(name, In, TURNED)                                                                                                      \
    extern "C" __global__ void __launch_bounds__(THREADS) name(                                                                       \
        const void* x, const float* factor, const float* signs, const float* amax, uint8_t* codes, uint8_t* scales, uint16_t* fake,   \
        int64_t rows, int64_t columns, int64_t key, const int64_t* step, int64_t base                                                 \
    ) {                                                                                                                               \
        eden<In, TURNED>({x, factor, signs, rows, columns}, amax, {codes, scales, fake}, {(unsigned long long)key, step, base});      \
    }
#define KERNELS(name, In)                      \
    KERNEL(eden_##name, In, false)             \
    KERNEL(eden_##name##_turned, In, true)

KERNELS(bf16, BFloat16)
KERNELS(fp32, Float32)
