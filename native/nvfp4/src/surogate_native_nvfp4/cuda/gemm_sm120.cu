// Workstation Blackwell: mma.sync with block scales, accumulators in registers. It knows no clusters of more than one block.
#define ARCHITECTURE Sm120
#define TILE Shape<_128, _128, _128>
#define CLUSTER Shape<_1, _1, _1>
#include "gemm.h"
