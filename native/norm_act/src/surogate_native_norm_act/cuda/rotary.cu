// Norm of each head and rotary positions in one pass: x (T heads, D), D = 64, 128 or 256, cos and sin (T, D) float32.
//
//   z = w x rstd,  y = z cos + turned(z) sin,  turned(z) = (-second half, first half)
//   dz = dy cos - turned(dy sin),  dx = rstd (dz w - x rstd^2 mean(dz w x));  dw is the norm's, from dz
//
// D / 8 lanes of a warp have a head, 8 values each; the other half of a head is D / 16 lanes away.
#include "rows.h"

namespace {
constexpr int OWN = 8;

SUROGATE_INLINE float head_sum(float value, int lanes) {
    for (lanes /= 2; lanes; lanes /= 2) value += __shfl_xor_sync(0xffffffffu, value, lanes);
    return value;
}

template <class T, bool BACK>
SUROGATE_INLINE void rotary(
    const void* x_, const void* weight_, const float* cosine, const float* sine, void* y_, float* rstd, const void* dy_, void* dz_,
    Emit emit, int64_t rows, int64_t heads, int64_t size, float epsilon
) {
    typedef typename T::Stored Stored;
    const int lanes = int(size) / OWN;
    const int64_t at = int64_t(blockIdx.x) * THREADS + threadIdx.x, row = at / lanes, place = at % lanes * OWN;
    const bool inside = row < rows;  // all lanes take part in the shuffles
    const int64_t from = inside ? row * size + place : 0, angle = inside ? row / heads * size + place : 0;
    const float side = place < size / 2 ? -1.0f : 1.0f;
    float x[OWN], w[OWN], c[OWN], s[OWN];
    load_values<T, OWN>(static_cast<const Stored*>(x_) + from, x);
    load_values<T, OWN>(static_cast<const Stored*>(weight_) + place, w);
    load_values<Float32, OWN>(cosine + angle, c);
    load_values<Float32, OWN>(sine + angle, s);
    if (!BACK) {
        float squares = 0.0f;
#pragma unroll
        for (int i = 0; i < OWN; i++) squares += x[i] * x[i];
        const float inverse = 1.0f / sqrtf(head_sum(squares, lanes) / float(size) + epsilon);
#pragma unroll
        for (int i = 0; i < OWN; i++) {
            const float z = rounded<T>(rounded<T>(x[i] * inverse) * w[i]);
            const float other = __shfl_xor_sync(0xffffffffu, z, lanes / 2);
            x[i] = rounded<T>(z * c[i] + side * other * s[i]);
        }
        if (inside) {
            store_values<T, OWN>(static_cast<Stored*>(y_) + from, x);
            if (place == 0) rstd[row] = inverse;
            if (emit.bytes || emit.amax) emit.take<OWN>(x, from, OWN);
        }
        emit.finish();
        return;
    }
    const float inverse = inside ? rstd[row] : 0.0f;
    float dz[OWN], along = 0.0f;
    load_values<T, OWN>(static_cast<const Stored*>(dy_) + from, dz);
#pragma unroll
    for (int i = 0; i < OWN; i++) {
        const float other = __shfl_xor_sync(0xffffffffu, dz[i] * s[i], lanes / 2);
        dz[i] = rounded<T>(dz[i] * c[i] - side * other);
        along += dz[i] * w[i] * x[i];
    }
    const float mean = head_sum(along, lanes) * inverse / float(size);
#pragma unroll
    for (int i = 0; i < OWN; i++) x[i] = inverse * (dz[i] * w[i] - x[i] * inverse * mean);
    if (!inside) return;
    store_values<T, OWN>(static_cast<Stored*>(y_) + from, x);
    store_values<T, OWN>(static_cast<Stored*>(dz_) + from, dz);
}
}  // namespace

#define KERNELS(name, T)                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS) head_rotary_##name(                                                             \
        const void* x, const void* weight, const float* cosine, const float* sine, void* y, float* rstd, uint8_t* bytes,                  \
        const float* scale, uint32_t* amax, int64_t rows, int64_t heads, int64_t size, int64_t epsilon                                    \
    ) {                                                                                                                                   \
        const Emit emit = {bytes, scale, amax, 0u};                                                                                       \
        const float own = __uint_as_float(uint32_t(epsilon));                                                                             \
        rotary<T, false>(x, weight, cosine, sine, y, rstd, nullptr, nullptr, emit, rows, heads, size, own);                               \
    }                                                                                                                                     \
    extern "C" __global__ void __launch_bounds__(THREADS) head_rotary_backward_##name(                                                    \
        const void* x, const void* weight, const float* cosine, const float* sine, void* dx, float* rstd, const void* dy, void* dz,       \
        int64_t rows, int64_t heads, int64_t size                                                                                         \
    ) {                                                                                                                                   \
        rotary<T, true>(x, weight, cosine, sine, dx, rstd, dy, dz, {}, rows, heads, size, 0.0f);                                          \
    }

KERNELS(bf16, BFloat16)
KERNELS(fp32, Float32)
