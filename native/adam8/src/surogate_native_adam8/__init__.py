"""AdamW with 8-bit moments over a flat arena: the format, the definition in plain torch, and one source that is the CUDA kernel and
the CPU's code.

The kernel is compiled for every architecture and its body is run on the host in the tests; it has not been run on a GPU.
"""

from surogate_native_adam8.codes import BLOCK, Codebook, codebook  # noqa: F401
from surogate_native_adam8.ops import States, Update, native_on  # noqa: F401
from surogate_native_adam8.reference import Rates, update_  # noqa: F401
