"""What lies between the matrix products of a decoder layer: residual and root mean square norm, per-head norm and rotary positions,
gated activations; forward and backward. Each forward and the backward of activations can write the largest magnitude and an FP8
copy of their result.

Each op has a definition in plain torch (``reference``) and a CUDA kernel (``cuda/``). The kernels are compiled for every
architecture and run on the host in the tests; they have not been run on a GPU, and no model calls them yet.
"""

from surogate_native_norm_act.ops import (  # noqa: F401
    head_rotary,
    head_rotary_backward,
    rms_norm,
    rms_norm_backward,
    swiglu,
    swiglu_backward,
)
