"""What the kernel packages share: the compiler, the cache of its results, the launcher, and the host that runs kernel bodies.

A kernel package is a distribution ``native/<family>`` with CUDA sources, ``torch.library`` ops on top of them, and a definition of
each op in plain torch that runs on any device. Kernels take 64-bit integers alone (addresses and sizes), so that one calling
convention serves the GPU and the host.
"""

from surogate_native_kit.compiler import ARCHITECTURES, cubin  # noqa: F401
from surogate_native_kit.host import HostProgram  # noqa: F401
from surogate_native_kit.launch import Kernels, addressable  # noqa: F401
from surogate_native_kit.source import Source  # noqa: F401
