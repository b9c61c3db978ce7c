"""What a fusion asks before it takes a module's place."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Function = Callable[[], Tensor | tuple[Tensor, ...]]


def alike(theirs: Function, ours: Function, inputs: Sequence[Tensor], within: float = 0.0) -> bool:
    """Whether two functions give the same tensors, and the same gradients of ``inputs`` for one random slope of each tensor.

    ``inputs`` are what both compute from, on the CPU, with ``requires_grad``. ``within`` is the largest difference, relative to the
    largest value of a tensor of theirs; 0: bit for bit. False where theirs raises: it takes something else.
    """
    with torch.enable_grad(), torch.device("cpu"):
        try:
            wanted = _with_gradients(theirs, inputs)
        except (RuntimeError, TypeError, ValueError, AttributeError):
            return False
        got = _with_gradients(ours, inputs)
    return [t.shape for t in got] == [t.shape for t in wanted] and all(
        (a - b).abs().max() <= within * b.abs().max() for a, b in zip(got, wanted, strict=True)
    )


def _with_gradients(function: Function, inputs: Sequence[Tensor]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    given = function()
    out = [given] if isinstance(given, Tensor) else list(given)
    slopes = [torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype) for tensor in out]
    return [*out, *torch.autograd.grad(out, inputs, slopes)]
