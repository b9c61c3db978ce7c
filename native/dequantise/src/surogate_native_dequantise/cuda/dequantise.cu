// Frozen weights to bfloat16 or float32. A thread reads 16 bytes at once: 32 values of NF4, 16 of E4M3.
//
// NF4: flat codes, two to a byte with the first in the high half; value = level[code] absmax[i / block]. The 16 levels lie in shared
// memory once for each lane, so that no two lanes of a warp want one bank.
// E4M3 in tiles: codes (N, K); value = code scale[row / tile][column / tile], tile divisible by 16.
#include "surogate_fp8.h"
#include "surogate_values.h"

namespace {
constexpr int THREADS = 256;

template <class Out>
SUROGATE_INLINE void nf4(const uint8_t* codes, const float* absmax, const float* levels, void* out_, int64_t values, int64_t block) {
    __shared__ float table[16][32];
    for (int at = threadIdx.x; at < 16 * 32; at += THREADS) table[at / 32][at % 32] = levels[at / 32];
    __syncthreads();
    const int lane = threadIdx.x % 32;
    const int64_t first = (int64_t(blockIdx.x) * THREADS + threadIdx.x) * 32;
    typename Out::Stored* out = static_cast<typename Out::Stored*>(out_) + first;
    if (first + 32 <= values) {
        const uint4 raw = load16(reinterpret_cast<const uint4*>(codes + first / 2));
        const uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
        const float scale = absmax[first / block];
#pragma unroll
        for (int word = 0; word < 4; word++) {
            float found[8];
#pragma unroll
            for (int i = 0; i < 8; i++) found[i] = table[words[word] >> (i / 2 * 8 + (i % 2 ? 0 : 4)) & 15u][lane] * scale;
            store_values<Out, 8>(out + word * 8, found);
        }
    } else {
        for (int64_t i = 0; first + i < values; i++) {
            const uint8_t byte = codes[(first + i) / 2];
            out[i] = Out::narrow(table[(first + i) % 2 ? byte & 15u : byte >> 4][lane] * absmax[(first + i) / block]);
        }
    }
}

template <class Out>
SUROGATE_INLINE void tiles(const uint8_t* codes, const float* scales, void* out_, int64_t rows, int64_t columns, int64_t tile) {
    const int64_t across = (columns + 15) / 16, at = int64_t(blockIdx.x) * THREADS + threadIdx.x;
    const int64_t row = at / across, column = at % across * 16;
    if (row >= rows) return;
    const float scale = scales[row / tile * ((columns + tile - 1) / tile) + column / tile];
    const uint8_t* from = codes + row * columns + column;
    typename Out::Stored* out = static_cast<typename Out::Stored*>(out_) + row * columns + column;
    if (columns % 16 == 0) {
        const uint4 raw = load16(reinterpret_cast<const uint4*>(from));
        const uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
        float found[16];
#pragma unroll
        for (int i = 0; i < 16; i++) found[i] = e4m3_value(uint8_t(words[i / 4] >> i % 4 * 8)) * scale;
        store_values<Out, 16>(out, found);
    } else {
        for (int i = 0; i < 16 && column + i < columns; i++) out[i] = Out::narrow(e4m3_value(from[i]) * scale);
    }
}
}  // namespace

#define KERNELS(name, Out)                                                                                                                \
    extern "C" __global__ void __launch_bounds__(THREADS) nf4_##name(                                                                     \
        const uint8_t* codes, const float* absmax, const float* levels, void* out, int64_t values, int64_t block                          \
    ) {                                                                                                                                   \
        nf4<Out>(codes, absmax, levels, out, values, block);                                                                              \
    }                                                                                                                                     \
    extern "C" __global__ void __launch_bounds__(THREADS) tiles_##name(                                                                   \
        const uint8_t* codes, const float* scales, void* out, int64_t rows, int64_t columns, int64_t tile                                 \
    ) {                                                                                                                                   \
        tiles<Out>(codes, scales, out, rows, columns, tile);                                                                              \
    }

KERNELS(bf16, BFloat16)
KERNELS(fp32, Float32)
