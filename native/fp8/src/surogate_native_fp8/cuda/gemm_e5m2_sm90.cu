// Backward: E5M2 · E4M3, sums moved to float32 registers on the way. The warp groups share a tile: one alone would spill these sums.
#define ELEMENT_A cutlass::float_e5m2_t
#define SCHEDULE cutlass::gemm::KernelTmaWarpSpecializedCooperative
#define EPILOGUE cutlass::epilogue::TmaWarpSpecializedCooperative
#define NAME fp8_gemm_e5m2
#include "gemm_sm90.h"
