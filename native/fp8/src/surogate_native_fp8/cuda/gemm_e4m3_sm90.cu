// Forward: E4M3 · E4M3, sums as the matrix units keep them.
#define ELEMENT_A cutlass::float_e4m3_t
#define SCHEDULE cutlass::gemm::KernelTmaWarpSpecializedPingpongFP8FastAccum
#define NAME fp8_gemm_e4m3
#include "gemm_sm90.h"
