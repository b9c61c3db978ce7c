// An operand (M, K), bfloat16 or float32, rotated along K in groups of 16 or 128  ->  float32 (M, K rounded up to whole groups), and the
// largest magnitude of it, either of them if asked for. The magnitude alone is what has to be known before a rotated operand is quantised:
// one pass that writes nothing. What rotation.py defines, bit for bit.
#include "operand.h"

namespace {
template <class In, bool TURNED, int GROUP> SUROGATE_INLINE void rotate(const Operand& given, float* out, uint32_t* amax) {
    const int64_t blocks = (given.columns + GROUP - 1) / GROUP * (GROUP / BLOCK);
    float x[BLOCK];
    const Place place = read<In, false, TURNED, GROUP>(given, blocks, x);
    const bool inside = place.row < given.rows && place.block < blocks;
    if (amax) {
        float largest = inside ? largest_of(x) : 0.0f;
#pragma unroll
        for (int lanes = 16; lanes; lanes /= 2) largest = larger(largest, exchanged(largest, lanes));
        if (threadIdx.x % 32 == 0) atomicMax(amax, __float_as_uint(largest));
    }
    if (out && inside) store_values<Float32, BLOCK>(out + (place.row * blocks + place.block) * BLOCK, x);
}
}  // namespace

#define KERNEL(name, In, TURNED, GROUP)                                                                                              \
    extern "C" __global__ void __launch_bounds__(THREADS) name(                                                                      \
        const void* x, const float* factor, const float* signs, float* out, uint32_t* amax, int64_t rows, int64_t columns            \
    ) {                                                                                                                              \
        rotate<In, TURNED, GROUP>({x, factor, signs, rows, columns}, out, amax);                                                     \
    }
#define KERNELS(name, In)                             \
    KERNEL(rotate_16_##name, In, false, 16)           \
    KERNEL(rotate_16_##name##_turned, In, true, 16)   \
    KERNEL(rotate_128_##name, In, false, 128)         \
    KERNEL(rotate_128_##name##_turned, In, true, 128)

KERNELS(bf16, BFloat16)
KERNELS(fp32, Float32)
