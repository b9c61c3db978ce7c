"""float32 masters of bfloat16 weights, in 2 more bytes a value: the weight is the master rounded, and the difference is kept.

As integers, the bits of a float32 are 65,536 times those of its upper half plus a remainder. With h the master's bits rounded to
the nearest multiple of 65,536 (ties upward, that is away from zero), h / 65,536 are the bits of the bfloat16 weight and the rest
fits an int16: weight and remainder together are the master, bit for bit. (Rounding ties to even would not be invertible.)
"""

from __future__ import annotations

import torch
from torch import Tensor

from surogate_core.config import CoreOptions


def keeps_masters(core: CoreOptions) -> bool:
    """Whether the weights that this run trains are bfloat16 ones with float32 masters. An adapter's masters are its own."""
    return core.master_dtype == "fp32" and core.model_dtype == "bf16" and not core.lora


def restore_(values: Tensor, remainder: Tensor) -> Tensor:
    """bfloat16 weights as float32 ``values`` become masters, in place. ``remainder``: int16 of the same shape."""
    values.view(torch.int32).add_(remainder)
    return values


def split_(masters: Tensor, remainder: Tensor) -> Tensor:
    """The weights (bfloat16) of float32 ``masters``; the rest goes to ``remainder`` (int16). NaN stays NaN."""
    bits = masters.view(torch.int32)
    upper = (bits + 2**15).bitwise_right_shift_(16)
    remainder.copy_(bits - upper.bitwise_left_shift(16))
    weights = upper.to(torch.int16).view(torch.bfloat16)
    # the carry of a NaN with all mantissa bits set would end in -0
    return weights.masked_fill_(masters.isnan(), torch.nan)
