// x (M, K), bfloat16 or float32  ->  q (M16, K16) and, when asked for, its transpose t (K16, M16), one byte a value, zeros beyond x;
// and max |x| into amax. M16 and K16 are M and K rounded up to 16, which FP8 GEMMs want of every dimension.
//
// One block takes 64 x 64 values, each of its 256 threads 16 neighbours of a row: 16-byte loads, one 16-byte store for q. The bytes
// meet in shared memory, whose rows are 4 bytes longer than the tile so that columns fall into different banks, and leave it by
// column, 16 bytes a thread. The maximum is taken of the bits of |x|, which order like the values and keep what is not a number.
#include "surogate_fp8.h"
#include "surogate_values.h"

namespace {
constexpr int TILE = 64, CHUNK = 16, THREADS = TILE * TILE / CHUNK;

struct E4M3 {
    static SUROGATE_INLINE uint8_t cast(float value) { return e4m3(value); }
};
struct E5M2 {
    static SUROGATE_INLINE uint8_t cast(float value) { return e5m2(value); }
};

SUROGATE_INLINE int64_t padded(int64_t size) { return (size + 15) / 16 * 16; }

template <class In, class Out>
SUROGATE_INLINE void cast_transpose(
    const void* x_, const float* scale, uint32_t* amax, uint8_t* q, uint8_t* t, int64_t rows, int64_t columns
) {
    __shared__ uint32_t tile[TILE][TILE / 4 + 1];
    __shared__ uint32_t largest[THREADS / 32];
    typedef typename In::Stored Stored;
    const Stored* x = static_cast<const Stored*>(x_);
    const int thread = threadIdx.x;
    const int64_t rows16 = padded(rows), columns16 = padded(columns);
    const int64_t row0 = int64_t(blockIdx.x) * TILE, column0 = int64_t(blockIdx.y) * TILE;
    const int own_row = thread / (TILE / CHUNK), own_column = thread % (TILE / CHUNK) * CHUNK;
    const int64_t row = row0 + own_row, column = column0 + own_column;
    const float factor = *scale;

    float values[CHUNK];
    if (row < rows && column + CHUNK <= columns && columns % In::PER_LOAD == 0) {
        load_values<In, CHUNK>(x + row * columns + column, values);
    } else {
#pragma unroll
        for (int i = 0; i < CHUNK; i++)
            values[i] = row < rows && column + i < columns ? In::value(x[row * columns + column + i]) : 0.0f;
    }
    uint32_t most = 0;
    uint8_t bytes[CHUNK];
#pragma unroll
    for (int i = 0; i < CHUNK; i++) {
        most = max(most, __float_as_uint(values[i]) & 0x7fffffffu);
        bytes[i] = Out::cast(values[i] * factor);
    }
    const uint4 packed = pack_bytes(bytes);
    if (row < rows16 && column < columns16) *reinterpret_cast<uint4*>(q + row * columns16 + column) = packed;

#pragma unroll
    for (int lanes = 16; lanes; lanes /= 2) most = max(most, __shfl_xor_sync(0xffffffffu, most, lanes));
    if (thread % 32 == 0) largest[thread / 32] = most;
    if (t) {
        uint32_t* place = &tile[own_row][own_column / 4];
        place[0] = packed.x;
        place[1] = packed.y;
        place[2] = packed.z;
        place[3] = packed.w;
    }
    __syncthreads();
    if (thread == 0) {
        for (int warp = 1; warp < THREADS / 32; warp++) most = max(most, largest[warp]);
        atomicMax(amax, most);
    }
    if (!t) return;
    const int out_column = thread / (TILE / CHUNK), out_row = thread % (TILE / CHUNK) * CHUNK;
    if (column0 + out_column >= columns16 || row0 + out_row >= rows16) return;
    uint8_t turned[CHUNK];
#pragma unroll
    for (int i = 0; i < CHUNK; i++) turned[i] = uint8_t(tile[out_row + i][out_column / 4] >> out_column % 4 * 8);
    *reinterpret_cast<uint4*>(t + (column0 + out_column) * rows16 + row0 + out_row) = pack_bytes(turned);
}
}  // namespace

#define KERNEL(name, In, Out)                                                                                                            \
    extern "C" __global__ void __launch_bounds__(THREADS) name(                                                                           \
        const void* x, const float* scale, uint32_t* amax, uint8_t* q, uint8_t* t, int64_t rows, int64_t columns                          \
    ) {                                                                                                                                  \
        cast_transpose<In, Out>(x, scale, amax, q, t, rows, columns);                                                                     \
    }

KERNEL(cast_transpose_bf16_e4m3, BFloat16, E4M3)
KERNEL(cast_transpose_bf16_e5m2, BFloat16, E5M2)
KERNEL(cast_transpose_fp32_e4m3, Float32, E4M3)
KERNEL(cast_transpose_fp32_e5m2, Float32, E5M2)

#if !defined(__CUDACC__)
extern "C" uint8_t host_e4m3(float value) { return e4m3(value); }
extern "C" uint8_t host_e5m2(float value) { return e5m2(value); }
#endif
