// Backward: E5M2 · E4M3, sums moved to float32 registers on the way.
#define ELEMENT_A cutlass::float_e5m2_t
#define SCHEDULE cutlass::gemm::KernelTmaWarpSpecializedPingpong
#define NAME fp8_gemm_e5m2
#include "gemm_sm90.h"
