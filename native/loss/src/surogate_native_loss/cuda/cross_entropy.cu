// Weighted cross-entropy of rows of logits z (R, V) against a label each, and its gradient written over them:
//
//   loss = w (m + log s - z_label),  dz = f w (exp(z - m) / s - [label]),  m = max z,  s = sum exp(z - m)
//
// One block has a row. The first pass keeps a running maximum and the sum relative to it (Milakov and Gimelshein, arXiv 1805.02867,
// algorithm 3), the second reads the row again and writes the gradient. A row without weight or label is not read: zeros are written.
// A row may start at any element: what lies before the first multiple of 16 bytes and behind the last is taken one by one.
#include "surogate_values.h"

// One block fills a multiprocessor: few rows are on their way at once, and the L2 cache may still have one when it is read again.
constexpr int THREADS = 1024, WARPS = THREADS / 32;
constexpr float LOWEST = -3.4028234e38f;

namespace {
// exp(x), x <= 0, results below 2^-126 as 0: one instruction on a GPU, which the host build cannot test.
SUROGATE_INLINE float power(float x) {
    const float twos = x * 1.44269504f;
#if defined(__CUDACC__)
    float found;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(found) : "f"(twos));
    return found;
#else
    return exp2f(twos);
#endif
}

struct Sum {
    float most, sum;  // sum of exp(z - most)

    template <int COUNT> SUROGATE_INLINE void take(float* values) {
        float top = most;
#pragma unroll
        for (int i = 0; i < COUNT; i++) top = fmaxf(top, values[i]);
        sum *= power(most - top);
        most = top;
#pragma unroll
        for (int i = 0; i < COUNT; i++) sum += power(values[i] - top);
    }
    SUROGATE_INLINE void join(float other, float others) {
        const float top = fmaxf(most, other);
        sum = sum * power(most - top) + others * power(other - top);
        most = top;
    }
};

struct Slope {
    float most, factor;

    template <int COUNT> SUROGATE_INLINE void take(float* values) {
#pragma unroll
        for (int i = 0; i < COUNT; i++) values[i] = power(values[i] - most) * factor;
    }
};

struct Nothing {
    template <int COUNT> SUROGATE_INLINE void take(float* values) {
#pragma unroll
        for (int i = 0; i < COUNT; i++) values[i] = 0.0f;
    }
};

// Shows every value of a row to one thread of the block and, if WRITE, stores what it made of it. Not by load16: the row changes.
template <class T, bool READ, bool WRITE, class Visitor>
SUROGATE_INLINE void walk(typename T::Stored* row, int64_t columns, Visitor& visitor) {
    constexpr int VEC = T::PER_LOAD;
    const int64_t ahead = (16 - int64_t(row) % 16) % 16 / int64_t(sizeof(*row)), lead = ahead < columns ? ahead : columns;
    const int64_t chunks = (columns - lead) / VEC;
#pragma unroll 4
    for (int64_t chunk = threadIdx.x; chunk < chunks; chunk += THREADS) {
        uint4* at = reinterpret_cast<uint4*>(row + lead) + chunk;
        float values[VEC];
        if (READ) T::spread(*at, values);
        visitor.template take<VEC>(values);
        if (WRITE) *at = T::gather(values);
    }
    if (int64_t(threadIdx.x) >= columns - chunks * VEC) return;
    typename T::Stored* at = row + threadIdx.x + (int64_t(threadIdx.x) < lead ? 0 : chunks * VEC);
    float value = READ ? T::value(*at) : 0.0f;
    visitor.template take<1>(&value);
    if (WRITE) *at = T::narrow(value);
}

// Of all threads of the block; every thread gets it.
SUROGATE_INLINE Sum over_block(Sum own) {
    __shared__ float mosts[WARPS], sums[WARPS];
#pragma unroll
    for (int lanes = 16; lanes; lanes /= 2) {
        const float other = __shfl_xor_sync(0xffffffffu, own.most, lanes);
        own.join(other, __shfl_xor_sync(0xffffffffu, own.sum, lanes));
    }
    if (threadIdx.x % 32 == 0) {
        mosts[threadIdx.x / 32] = own.most;
        sums[threadIdx.x / 32] = own.sum;
    }
    __syncthreads();
    Sum all = {mosts[0], sums[0]};
    for (int warp = 1; warp < WARPS; warp++) all.join(mosts[warp], sums[warp]);
    return all;
}

template <class T>
SUROGATE_INLINE void cross_entropy(
    void* logits, const int64_t* labels, const float* weights, const float* factor, float* losses, float* normalisers, int64_t columns,
    int64_t gradient
) {
    typename T::Stored* row = static_cast<typename T::Stored*>(logits) + int64_t(blockIdx.x) * columns;
    const int64_t label = labels[blockIdx.x];
    const float weight = weights[blockIdx.x];
    if (label < 0 || weight == 0.0f) {
        Nothing nothing;
        if (gradient) walk<T, false, true>(row, columns, nothing);
        if (threadIdx.x == 0) losses[blockIdx.x] = normalisers[blockIdx.x] = 0.0f;
        return;
    }
    const bool inside = label < columns;  // otherwise loss and gradient are not a number
    const float own = inside ? T::value(row[label]) : __uint_as_float(0x7fc00000u);
    Sum sum = {LOWEST, 0.0f};
    walk<T, true, false>(row, columns, sum);
    const Sum all = over_block(sum);  // every thread has read its part, and the label's logit
    const float log_sum = logf(all.sum), over = own - all.most - log_sum;
    if (threadIdx.x == 0) {
        losses[blockIdx.x] = -weight * over;
        normalisers[blockIdx.x] = all.most + log_sum;
    }
    if (!gradient) return;
    const float scale = inside ? weight * (factor ? *factor : 1.0f) : own;
    Slope slope = {all.most, scale / all.sum};
    walk<T, true, true>(row, columns, slope);
    __syncthreads();
    if (threadIdx.x == 0 && inside) row[label] = T::narrow(scale * expm1f(over));  // 1 is taken off before it is rounded
}
}  // namespace

#define KERNEL(name, T)                                                                                                                 \
    extern "C" __global__ void __launch_bounds__(THREADS) cross_entropy_##name(                                                         \
        void* logits, const int64_t* labels, const float* weights, const float* factor, float* losses, float* normalisers,              \
        int64_t columns, int64_t gradient                                                                                               \
    ) {                                                                                                                                 \
        cross_entropy<T>(logits, labels, weights, factor, losses, normalisers, columns, gradient);                                      \
    }

KERNEL(bf16, BFloat16)
KERNEL(fp32, Float32)
