"""The op ``torch.ops.surogate_loss.cross_entropy_``: the kernel on a GPU, the definition elsewhere; meta tensors get shapes."""

from __future__ import annotations

import torch
from torch import Tensor

from surogate_native_loss import kernel, reference

_library = torch.library.Library("surogate_loss", "DEF")
_library.define(
    "cross_entropy_(Tensor(a!) logits, Tensor labels, Tensor weights, Tensor? factor, bool gradient) -> (Tensor, Tensor)"
)
_library.impl("cross_entropy_", reference.cross_entropy_, "CPU")
_library.impl("cross_entropy_", kernel.cross_entropy_, "CUDA")
_library.impl("cross_entropy_", lambda logits, labels, weights, factor, gradient: kernel.outputs(logits), "Meta")


def cross_entropy_(
    logits: Tensor, labels: Tensor, weights: Tensor, factor: Tensor | None = None, *, gradient: bool = True
) -> tuple[Tensor, Tensor]:
    """:func:`surogate_native_loss.reference.cross_entropy_` by the kernel of the tensors' device."""
    return torch.ops.surogate_loss.cross_entropy_(logits, labels, weights, factor, gradient)
