"""Tensors in host memory that a device uses piece by piece: pinned buffers, copies on streams of their own, two buffers in turn.

``Cuda`` has not been run on a GPU. ``StandIn`` is a device that a test can look into: its copies come as late, or as early, as
their order allows, so that a missing wait is a wrong number.
"""

from surogate_offload.ahead import Ahead, Away  # noqa: F401
from surogate_offload.copies import Kept, Lasting, Offloaded, Unkept  # noqa: F401
from surogate_offload.device import Cuda, Device, Mark, open_device, opening  # noqa: F401
from surogate_offload.standin import StandIn  # noqa: F401
from surogate_offload.turns import in_turns, size_of_turns  # noqa: F401
