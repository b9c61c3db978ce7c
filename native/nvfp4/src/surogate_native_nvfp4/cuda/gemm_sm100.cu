// Data-centre Blackwell: tcgen05 with accumulators in tensor memory. Two multiprocessors share a tile; each loads half of the operands.
#define ARCHITECTURE Sm100
#define TILE Shape<_256, _128, _256>
#define CLUSTER Shape<_2, _1, _1>
#include "gemm.h"
