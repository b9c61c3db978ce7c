"""Frozen weights back to bfloat16 or float32: NF4 in bitsandbytes' bytes, and E4M3 in square tiles.

Each op has a definition in plain torch (``reference``) and a CUDA kernel that equals it bit for bit. The kernels are compiled for
every architecture and run on the host in the tests; they have not been run on a GPU, and no quantiser calls them yet.
"""

from surogate_native_dequantise.ops import nf4, tiles  # noqa: F401
