"""FP8 for linear layers: cast, transpose and amax in one pass over the data; delayed scales; GEMM.

Each op has a definition in plain torch (``reference``) and a CUDA kernel (``cuda/``); the device of the tensors chooses, unless
``kernels`` forces one. The kernels are compiled for every architecture and run on the host in the tests; they have not been run
on a GPU.
"""

from surogate_native_fp8.ops import cast_transpose, scaled_mm, update_scales  # noqa: F401
from surogate_native_fp8.reference import current_scale  # noqa: F401
