"""The cross-entropy, for ``make gpu-check``. Exponentials and sums may differ in their last bits: results are close, not equal."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from types import ModuleType

import torch
import torch.nn.functional as F
from surogate_native_kit.checks import Check, Shape
from torch import Tensor

from surogate_native_loss import kernel, reference

CLOSE = {torch.bfloat16: 2e-3, torch.float32: 5e-6}
"""Of the gradient."""
EXACT = 2e-6
"""Of losses and log-sum-exps."""
DROPPED = 7
"""Of so many rows one has no label and one no weight."""


def _inputs(dtype: torch.dtype, shape: Shape, draw: Callable[..., Tensor]) -> Sequence[Tensor]:
    rows, columns = shape
    labels = (draw(rows).abs() * 1e6).to(torch.int64) % columns
    labels[3::DROPPED] = -100
    weights = draw(rows).abs() + 0.1
    weights[5::DROPPED] = 0
    return (draw(*shape) * 3).to(dtype), labels, weights, torch.tensor(0.25)


def _run(side: ModuleType, logits: Tensor, labels: Tensor, weights: Tensor, factor: Tensor) -> Sequence[Tensor]:
    return logits, *side.cross_entropy_(logits, labels, weights, factor)


def _torch(logits: Tensor, labels: Tensor, weights: Tensor, factor: Tensor) -> Sequence[Tensor]:
    held = logits.detach().requires_grad_()
    losses = F.cross_entropy(held, labels, reduction="none") * weights
    return torch.autograd.grad(losses.sum() * factor, held)


def _traffic(dtype: torch.dtype, shape: Shape) -> int:
    """Logits read once and written once; rows that count for nothing only written."""
    rows, columns = shape
    dropped = len(range(3, rows, DROPPED)) + len(range(5, rows, DROPPED))
    return (2 * rows - dropped) * columns * dtype.itemsize


CHECKS = tuple(
    Check(
        name=f"cross_entropy {kernel.NAMES[dtype]}",
        inputs=functools.partial(_inputs, dtype),
        kernel=functools.partial(_run, kernel),
        reference=functools.partial(_run, reference),
        shapes=((1, 1), (7, 33), (9, 1000), (2, 50257)),
        large=(2048, 151936),
        traffic=functools.partial(_traffic, dtype),
        close=(CLOSE[dtype], EXACT, EXACT),
        baseline=("torch", _torch),
    )
    for dtype in (torch.bfloat16, torch.float32)
)
