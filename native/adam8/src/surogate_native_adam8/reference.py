"""The definition of the update, in plain torch on any device.

AdamW (Loshchilov and Hutter, arXiv 1711.05101) for a gradient g at step t, in float32::

    m = b1 m + (1 - b1) g        v = b2 v + (1 - b2) g^2
    p = (p - lr sqrt(1 - b2^t) / (1 - b1^t) * m / (sqrt(v) + eps sqrt(1 - b2^t))) * (1 - lr wd)

as bitsandbytes' CUDA kernel has it, weight decay last. An element whose gradient is not finite (or whose square is not) keeps its
value and starts over with m = v = 0.
"""

from __future__ import annotations

import math

import torch
from attrs import frozen
from torch import Tensor


@frozen(kw_only=True)
class Rates:
    """beta1, beta2 and epsilon of the rule, at one step (from 1)."""

    beta1: float
    beta2: float
    epsilon: float
    step: int

    @property
    def root(self) -> float:
        return math.sqrt(1 - self.beta2**self.step)

    @property
    def correction(self) -> float:
        """What the learning rate is multiplied by."""
        return self.root / (1 - self.beta1**self.step)


def update_(param: Tensor, grad: Tensor, m: Tensor, v: Tensor, lr: Tensor, rates: Rates, weight_decay: float) -> None:
    """One update of float32 tensors (n,), in place; ``lr`` is a float32 scalar on their device."""
    m.mul_(rates.beta1).add_(grad, alpha=1 - rates.beta1)
    v.mul_(rates.beta2).addcmul_(grad, grad, value=1 - rates.beta2)
    # v holds a square of every gradient: it tells what is not finite
    bad = _not_finite(v)
    if bad is not None:
        m.masked_fill_(bad, 0)
        v.masked_fill_(bad, 0)
    change = m / v.sqrt().add_(rates.epsilon * rates.root)
    param.sub_(change.mul_(lr * rates.correction))
    if weight_decay:
        kept = 1 - lr * weight_decay
        param.mul_(kept if bad is None else torch.where(bad, 1.0, kept))


def _not_finite(v: Tensor) -> Tensor | None:
    """Where v >= 0 is infinite or NaN. None on the CPU, where looking at a value costs nothing, when there is no such place."""
    if v.device.type == "cpu" and math.isfinite(v.amax()):
        return None
    return (v <= torch.finfo(v.dtype).max).logical_not_()
