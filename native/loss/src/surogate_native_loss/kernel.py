"""The kernel: results allocated, bodies launched, one block a row. For tensors on the CPU the bodies run on the host."""

from __future__ import annotations

from pathlib import Path

import torch
from surogate_native_kit import Kernels, Source
from torch import Tensor

SOURCE = Source(Path(__file__).with_name("cuda") / "cross_entropy.cu")
THREADS = 1024
NAMES = {torch.bfloat16: "bf16", torch.float32: "fp32"}
_kernels = Kernels(SOURCE)


def outputs(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Losses and log-sum-exps (R,), not yet written."""
    losses = logits.new_empty(logits.shape[0], dtype=torch.float32)
    return losses, torch.empty_like(losses)


def cross_entropy_(
    logits: Tensor, labels: Tensor, weights: Tensor, factor: Tensor | None = None, gradient: bool = True
) -> tuple[Tensor, Tensor]:
    """:func:`surogate_native_loss.reference.cross_entropy_`, of contiguous bfloat16 or float32 logits; ValueError for others, since
    writing over a copy of them would be lost."""
    if logits.ndim != 2 or logits.dtype not in NAMES or not logits.is_contiguous():
        raise ValueError(f"logits {tuple(logits.shape)} {logits.dtype}: the kernel takes contiguous rows, bfloat16 or float32")
    if not labels.shape == weights.shape == logits.shape[:1]:
        raise ValueError(f"{len(logits)} rows of logits with labels {tuple(labels.shape)} and weights {tuple(weights.shape)}")
    found = losses, normalisers = outputs(logits)
    labels, weights = labels.to(torch.int64).contiguous(), weights.to(torch.float32).contiguous()
    factor = None if factor is None else factor.to(torch.float32)
    if logits.numel():
        given = (logits, labels, weights, factor, losses, normalisers)
        addresses = [0 if tensor is None else tensor.data_ptr() for tensor in given]
        name = f"cross_entropy_{NAMES[logits.dtype]}"
        _kernels.launch(name, logits.device, (len(logits),), (THREADS,), *addresses, logits.shape[1], int(gradient))
    if gradient:
        torch.autograd.graph.increment_version(logits)
    return found
