// Delayed scales of all tensors at once, one thread each; the rule is in reference.py, update_scales.
#include "surogate_device.h"

extern "C" __global__ void update_scales(
    float* history, float* scale, float* inverse, const float* largest, int64_t tensors, int64_t length
) {
    const int64_t tensor = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (tensor >= tensors) return;
    float* own = history + tensor * length;
    // Bits order like values that are not negative, and put what is not a number above infinity.
    uint32_t most = 0;
    for (int64_t slot = 0; slot < length; slot++) most = max(most, __float_as_uint(own[slot]));
    if (most > 0 && most < 0x7f800000u) {
        const float fresh = fminf(largest[tensor] / __uint_as_float(most), 3.402823466e38f);
        scale[tensor] = fresh;
        inverse[tensor * 4] = 1.0f / fresh;
    }
    const float staged = own[0];
    if (staged == 0.0f) return;
    for (int64_t slot = 1; slot < length; slot++) own[slot - 1] = own[slot];
    own[length - 1] = staged;
    own[0] = 0.0f;
}
