"""The definition, in plain torch on any device."""

from __future__ import annotations

import torch
from torch import Tensor


def cross_entropy_(
    logits: Tensor, labels: Tensor, weights: Tensor, factor: Tensor | None = None, gradient: bool = True
) -> tuple[Tensor, Tensor]:
    """Weighted cross-entropy of each row, nats, and its log-sum-exp, both (R,) in float32, or in float64 for float64 logits.

    ``logits`` (R, V) are overwritten, if ``gradient``, with (softmax - one-hot) · weight · ``factor``. ``labels`` (R,) int64,
    ``weights`` (R,), ``factor`` one value (None: 1), which the losses do not have. A row whose label is negative or whose weight is
    0 counts for nothing, whatever its logits: loss, log-sum-exp and gradient are 0. A label of V or more makes loss and gradient of
    its row not a number.
    """
    exact = torch.float64 if logits.dtype == torch.float64 else torch.float32
    columns = logits.shape[1]
    kept, inside = (labels >= 0) & (weights != 0), labels < columns
    z, w = logits.to(exact), weights.to(exact)
    place = labels.clamp(0, columns - 1)[:, None]
    normaliser = z.logsumexp(1)
    own = torch.where(inside, z.gather(1, place)[:, 0], torch.nan)
    if gradient:
        scale = torch.where(inside, w if factor is None else w * factor.to(exact), torch.nan)
        slope = (z - normaliser[:, None]).exp_().scatter_add_(1, place, -torch.ones_like(own)[:, None]).mul_(scale[:, None])
        logits.copy_(torch.where(kept[:, None], slope, 0))
    return torch.where(kept, w * (normaliser - own), 0), torch.where(kept, normaliser, 0)
