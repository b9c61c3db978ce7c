// Residual and root mean square norm, forward and backward. One block a row, 16 bytes a thread at a time; the second pass over a row
// reads it again, from the cache.
//
//   r = x + residual,  rstd = (mean r^2 + eps)^-1/2,  h = r rstd,  y = h w
//   dx = rstd (dy w - h mean(dy w h)) + dr,  dw = sum over rows of dy h
//
// r and h are rounded to the dtype of x on the way, as the models' own modules do. dw is summed over chunks of rows in a fixed order;
// the caller adds the chunks.
#include "rows.h"

namespace {
// x + residual, rounded as it is stored; x alone where there is no residual.
template <class T>
SUROGATE_INLINE void read_sum(
    const typename T::Stored* x, const typename T::Stored* residual, int64_t column, int64_t columns, float (&values)[T::PER_LOAD]
) {
    float more[T::PER_LOAD];
    read<T>(x, column, columns, values);
    if (!residual) return;
    read<T>(residual, column, columns, more);
#pragma unroll
    for (int i = 0; i < T::PER_LOAD; i++) values[i] = rounded<T>(values[i] + more[i]);
}

template <class T>
SUROGATE_INLINE void forward(
    const void* x_, const void* residual_, const void* weight_, void* r_, void* y_, float* rstd, uint8_t* bytes, const float* scale,
    uint32_t* amax, int64_t columns, float epsilon
) {
    typedef typename T::Stored Stored;
    constexpr int VEC = T::PER_LOAD;
    const int64_t start = int64_t(blockIdx.x) * columns;
    const Stored* x = static_cast<const Stored*>(x_) + start;
    const Stored* residual = residual_ ? static_cast<const Stored*>(residual_) + start : nullptr;
    const Stored* weight = static_cast<const Stored*>(weight_);
    Stored *r = residual_ ? static_cast<Stored*>(r_) + start : nullptr, *y = static_cast<Stored*>(y_) + start;

    float squares = 0.0f;
    for (int64_t column = threadIdx.x * VEC; column < columns; column += THREADS * VEC) {
        float values[VEC];
        read_sum<T>(x, residual, column, columns, values);
        if (residual) write<T>(r, column, columns, values);
#pragma unroll
        for (int i = 0; i < VEC; i++) squares += values[i] * values[i];
    }
    const float inverse = 1.0f / sqrtf(block_sum(squares) / float(columns) + epsilon);
    if (threadIdx.x == 0) rstd[blockIdx.x] = inverse;

    Emit emit = {bytes, scale, amax, 0u};
    for (int64_t column = threadIdx.x * VEC; column < columns; column += THREADS * VEC) {
        float values[VEC], more[VEC];
        read_sum<T>(x, residual, column, columns, values);
        read<T>(weight, column, columns, more);
#pragma unroll
        for (int i = 0; i < VEC; i++) values[i] = rounded<T>(rounded<T>(values[i] * inverse) * more[i]);
        write<T>(y, column, columns, values);
        if (bytes || amax) emit.take<VEC>(values, start + column, columns - column);
    }
    emit.finish();
}

template <class T>
SUROGATE_INLINE void backward(
    const void* r_, const void* weight_, const void* dy_, const void* dr_, const float* rstd, void* dx_, int64_t columns
) {
    typedef typename T::Stored Stored;
    constexpr int VEC = T::PER_LOAD;
    const int64_t start = int64_t(blockIdx.x) * columns;
    const Stored *r = static_cast<const Stored*>(r_) + start, *dy = static_cast<const Stored*>(dy_) + start;
    const Stored *weight = static_cast<const Stored*>(weight_), *dr = dr_ ? static_cast<const Stored*>(dr_) + start : nullptr;
    Stored* dx = static_cast<Stored*>(dx_) + start;
    const float inverse = rstd[blockIdx.x];
    float along = 0.0f;
    for (int64_t column = threadIdx.x * VEC; column < columns; column += THREADS * VEC) {
        float values[VEC], slope[VEC], own[VEC];
        read<T>(r, column, columns, values);
        read<T>(dy, column, columns, slope);
        read<T>(weight, column, columns, own);
#pragma unroll
        for (int i = 0; i < VEC; i++) along += slope[i] * own[i] * values[i];
    }
    const float mean = block_sum(along) * inverse / float(columns);
    for (int64_t column = threadIdx.x * VEC; column < columns; column += THREADS * VEC) {
        float values[VEC], slope[VEC], own[VEC];
        read<T>(r, column, columns, values);
        read<T>(dy, column, columns, slope);
        read<T>(weight, column, columns, own);
#pragma unroll
        for (int i = 0; i < VEC; i++) values[i] = inverse * (slope[i] * own[i] - values[i] * inverse * mean);
        if (dr) {
            read<T>(dr, column, columns, own);
#pragma unroll
            for (int i = 0; i < VEC; i++) values[i] += own[i];
        }
        write<T>(dx, column, columns, values);
    }
}

// Chunk blockIdx.y of `each` rows: their sum of dy h, float32, into row blockIdx.y of parts.
template <class T>
SUROGATE_INLINE void weight_gradient(
    const void* r_, const void* dy_, const float* rstd, float* parts, int64_t rows, int64_t columns, int64_t each
) {
    typedef typename T::Stored Stored;
    constexpr int VEC = T::PER_LOAD;
    const int64_t column = (int64_t(blockIdx.x) * THREADS + threadIdx.x) * VEC;
    if (column >= columns) return;
    float sums[VEC];
#pragma unroll
    for (int i = 0; i < VEC; i++) sums[i] = 0.0f;
    const int64_t first = int64_t(blockIdx.y) * each, last = first + each < rows ? first + each : rows;
    for (int64_t row = first; row < last; row++) {
        float values[VEC], slope[VEC];
        read<T>(static_cast<const Stored*>(r_) + row * columns, column, columns, values);
        read<T>(static_cast<const Stored*>(dy_) + row * columns, column, columns, slope);
#pragma unroll
        for (int i = 0; i < VEC; i++) sums[i] += slope[i] * values[i] * rstd[row];
    }
    float* to = parts + int64_t(blockIdx.y) * columns + column;
    for (int i = 0; i < VEC && column + i < columns; i++) to[i] = sums[i];
}
}  // namespace

#define KERNELS(name, T)                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS) rms_norm_##name(                                                                \
        const void* x, const void* residual, const void* weight, void* r, void* y, float* rstd, uint8_t* bytes, const float* scale,       \
        uint32_t* amax, int64_t columns, int64_t epsilon                                                                                  \
    ) {                                                                                                                                   \
        forward<T>(x, residual, weight, r, y, rstd, bytes, scale, amax, columns, __uint_as_float(uint32_t(epsilon)));                     \
    }                                                                                                                                     \
    extern "C" __global__ void __launch_bounds__(THREADS) rms_norm_backward_##name(                                                       \
        const void* r, const void* weight, const void* dy, const void* dr, const float* rstd, void* dx, int64_t columns                   \
    ) {                                                                                                                                   \
        backward<T>(r, weight, dy, dr, rstd, dx, columns);                                                                                \
    }                                                                                                                                     \
    extern "C" __global__ void __launch_bounds__(THREADS) rms_norm_weight_##name(                                                         \
        const void* r, const void* dy, const float* rstd, float* parts, int64_t rows, int64_t columns, int64_t each                       \
    ) {                                                                                                                                   \
        weight_gradient<T>(r, dy, rstd, parts, rows, columns, each);                                                                      \
    }

KERNELS(bf16, BFloat16)
KERNELS(fp32, Float32)
