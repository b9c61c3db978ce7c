// Included first by every kernel source. A CUDA compiler knows what the kernels use; for a C++ compiler, surogate_host.h has it.
#pragma once
#if defined(__CUDACC__)
#define SUROGATE_INLINE __device__ __forceinline__
typedef unsigned char uint8_t;
typedef unsigned short uint16_t;
typedef unsigned int uint32_t;
typedef long long int64_t;
#else
#include "surogate_host.h"
#define SUROGATE_INLINE inline __attribute__((always_inline))  // also into functions made for a newer processor
#endif

// 16 bytes in one load: written as an assignment, the compiler may split it. The address is a multiple of 16, and the data do not
// change while the kernel runs.
SUROGATE_INLINE uint4 load16(const uint4* from) {
#if defined(__CUDACC__)
    return __ldg(from);
#else
    return *from;
#endif
}
