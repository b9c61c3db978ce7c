// Gated activation of two halves of a row, gate e and up g, (M, 2 F): h = silu(e) g, and its gradients. One thread has 16 bytes of each.
//
//   de = dh g s (1 + e (1 - s)),  dg = dh e s,  s = 1 / (1 + exp(-e))
//
// silu(e) is rounded to the dtype of the input before it meets g, as the models' own modules do. The copy of the gradients is in E5M2.
#include "rows.h"

namespace {
template <class T>
SUROGATE_INLINE void forward(
    const void* both_, void* h_, uint8_t* bytes, const float* scale, uint32_t* amax, int64_t rows, int64_t columns
) {
    typedef typename T::Stored Stored;
    constexpr int VEC = T::PER_LOAD;
    const int64_t across = (columns + VEC - 1) / VEC, at = int64_t(blockIdx.x) * THREADS + threadIdx.x;
    const int64_t row = at / across, column = at % across * VEC;
    Emit emit = {bytes, scale, amax, 0u};
    if (row < rows) {
        const Stored* gate = static_cast<const Stored*>(both_) + row * 2 * columns;
        float e[VEC], g[VEC];
        read<T>(gate, column, columns, e);
        read<T>(gate + columns, column, columns, g);
#pragma unroll
        for (int i = 0; i < VEC; i++) e[i] = rounded<T>(rounded<T>(e[i] / (1.0f + expf(-e[i]))) * g[i]);
        write<T>(static_cast<Stored*>(h_) + row * columns, column, columns, e);
        if (bytes || amax) emit.take<VEC>(e, row * columns + column, columns - column);
    }
    emit.finish();
}

template <class T>
SUROGATE_INLINE void backward(
    const void* both_, const void* dh_, void* d_, uint8_t* bytes, const float* scale, uint32_t* amax, int64_t rows, int64_t columns
) {
    typedef typename T::Stored Stored;
    constexpr int VEC = T::PER_LOAD;
    const int64_t across = (columns + VEC - 1) / VEC, at = int64_t(blockIdx.x) * THREADS + threadIdx.x;
    const int64_t row = at / across, column = at % across * VEC;
    Emit emit = {bytes, scale, amax, 0u};
    if (row < rows) {
        const int64_t start = row * 2 * columns;
        const Stored* gate = static_cast<const Stored*>(both_) + start;
        Stored* to = static_cast<Stored*>(d_) + start;
        float e[VEC], g[VEC], dh[VEC];
        read<T>(gate, column, columns, e);
        read<T>(gate + columns, column, columns, g);
        read<T>(static_cast<const Stored*>(dh_) + row * columns, column, columns, dh);
#pragma unroll
        for (int i = 0; i < VEC; i++) {
            const float s = 1.0f / (1.0f + expf(-e[i])), up = dh[i] * e[i] * s;
            e[i] = rounded<T>(dh[i] * g[i] * s * (1.0f + e[i] * (1.0f - s)));
            g[i] = rounded<T>(up);
        }
        write<T>(to, column, columns, e);
        write<T>(to + columns, column, columns, g);
        if (bytes || amax) {
            emit.take<VEC, true>(e, start + column, columns - column);
            emit.take<VEC, true>(g, start + columns + column, columns - column);
        }
    }
    emit.finish();
}
}  // namespace

#define KERNELS(name, T)                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS) swiglu_##name(                                                                  \
        const void* both, void* h, uint8_t* bytes, const float* scale, uint32_t* amax, int64_t rows, int64_t columns                      \
    ) {                                                                                                                                   \
        forward<T>(both, h, bytes, scale, amax, rows, columns);                                                                           \
    }                                                                                                                                     \
    extern "C" __global__ void __launch_bounds__(THREADS) swiglu_backward_##name(                                                         \
        const void* both, const void* dh, void* d, uint8_t* bytes, const float* scale, uint32_t* amax, int64_t rows, int64_t columns      \
    ) {                                                                                                                                   \
        backward<T>(both, dh, d, bytes, scale, amax, rows, columns);                                                                      \
    }

KERNELS(bf16, BFloat16)
KERNELS(fp32, Float32)
