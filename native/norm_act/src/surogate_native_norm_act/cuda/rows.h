// What the kernels of this family share: chunks of 16 bytes of a row, sums over a block, and what may be emitted beside a result.
#pragma once
#include "surogate_fp8.h"
#include "surogate_values.h"

constexpr int THREADS = 256;

// VEC neighbours of a row of `columns` from `column` on; zeros beyond its end. Rows whose length VEC does not divide are not aligned.
template <class T> SUROGATE_INLINE void read(const typename T::Stored* row, int64_t column, int64_t columns, float* out) {
    if (columns % T::PER_LOAD == 0) {
        load_values<T, T::PER_LOAD>(row + column, out);
    } else {
#pragma unroll
        for (int i = 0; i < T::PER_LOAD; i++) out[i] = column + i < columns ? T::value(row[column + i]) : 0.0f;
    }
}
template <class T> SUROGATE_INLINE void write(typename T::Stored* row, int64_t column, int64_t columns, const float* values) {
    if (columns % T::PER_LOAD == 0) {
        store_values<T, T::PER_LOAD>(row + column, values);
    } else {
#pragma unroll
        for (int i = 0; i < T::PER_LOAD; i++)
            if (column + i < columns) row[column + i] = T::narrow(values[i]);
    }
}
template <class T> SUROGATE_INLINE float rounded(float value) { return T::value(T::narrow(value)); }

// Over the threads of a block, in a fixed order; every thread gets it.
SUROGATE_INLINE float block_sum(float value) {
    __shared__ float parts[THREADS / 32];
#pragma unroll
    for (int lanes = 16; lanes; lanes /= 2) value += __shfl_xor_sync(0xffffffffu, value, lanes);
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = value;
    __syncthreads();
    float sum = 0.0f;
#pragma unroll
    for (int warp = 0; warp < THREADS / 32; warp++) sum += parts[warp];
    __syncthreads();
    return sum;
}

// A copy in E4M3 or E5M2 (null: none) and the largest magnitude (null: none) of what a kernel writes: bits of |x| order like the values and
// keep what is not a number.
struct Emit {
    uint8_t* bytes;
    const float* scale;
    uint32_t* amax;
    uint32_t most;

    template <int COUNT, bool E5M2 = false> SUROGATE_INLINE void take(const float* values, int64_t at, int64_t left) {
        const float factor = bytes ? *scale : 1.0f;
        uint32_t words[COUNT / 4] = {};
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
            const uint32_t own = i < left ? __float_as_uint(values[i]) & 0x7fffffffu : 0u;
            most = own > most ? own : most;
            const uint32_t code = !bytes ? 0u : E5M2 ? e5m2(values[i] * factor) : e4m3(values[i] * factor);
            words[i / 4] |= code << i % 4 * 8;
        }
        if (!bytes) return;
        if (left >= COUNT && at % COUNT == 0) {
            uint32_t* to = reinterpret_cast<uint32_t*>(bytes + at);
#pragma unroll
            for (int i = 0; i < COUNT / 4; i++) to[i] = words[i];
        } else {
            for (int i = 0; i < COUNT && i < left; i++) bytes[at + i] = uint8_t(words[i / 4] >> i % 4 * 8);
        }
    }
    // All threads of a block, once.
    SUROGATE_INLINE void finish() {
        if (!amax) return;
#pragma unroll
        for (int lanes = 16; lanes; lanes /= 2) {
            const uint32_t other = __shfl_xor_sync(0xffffffffu, most, lanes);
            most = other > most ? other : most;
        }
        if (threadIdx.x % 32 == 0) atomicMax(amax, most);
    }
};
