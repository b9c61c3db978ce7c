// Forward: E4M3 · E4M3, sums as the matrix units keep them. The warp groups take turns, each with a tile of its own (ping-pong).
#define ELEMENT_A cutlass::float_e4m3_t
#define SCHEDULE cutlass::gemm::KernelTmaWarpSpecializedPingpongFP8FastAccum
#define EPILOGUE cutlass::epilogue::TmaWarpSpecialized
#define NAME fp8_gemm_e4m3
#include "gemm_sm90.h"
