"""What both recipes are made of: the module in a layer's compute slot, with its counter of random draws and its kept weight."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Mapping

import torch
from surogate_native_nvfp4 import BLOCK, Blocks
from surogate_native_nvfp4.draws import Draw
from surogate_native_nvfp4.formats import E2M1_MAX
from surogate_offload import Kept
from torch import Tensor, nn

from surogate_core.contracts import Copies, Site

WORD = 0xFFFFFFFF
Quantised = tuple[Tensor, ...]
"""What an operand is made from, of :mod:`surogate_native_nvfp4.operands` or, natively, of :mod:`surogate_native_nvfp4.packed`."""


class Slot(nn.Module):
    """The compute slot of one layer: ``f(x, weight, bias) -> y`` with x (..., K), weight (N, K), y (..., N).

    Random bits are a pure function of the training seed, the layer's name and ``draws``, the number of backward passes so far: a
    buffer, so that a continued run draws what the uninterrupted one would have drawn. Forward passes draw nothing, so that
    recomputing one changes nothing.
    """

    draws: Tensor

    def __init__(self, site: Site, seed: int, product: Callable[..., Tensor], weights: Callable[[Tensor], Quantised]):
        super().__init__()
        self.register_buffer("draws", torch.zeros((), dtype=torch.int64))
        self.key = (seed & WORD, zlib.crc32(site.name.encode()))
        self.product, self.weights = product, weights
        self.copies: Copies = Kept()
        self.trained = True

    @torch.compiler.disable
    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        y = self.product(x.reshape(-1, x.shape[-1]), weight, bias, self)
        return y.view(*x.shape[:-1], weight.shape[0])

    def weight(self, weight: Tensor) -> Quantised:
        """The quantised weight, kept until it is written to, replaced or moved: a frozen one is quantised once, a trained one
        once in an optimizer step (:func:`forget`). One that is unpacked for each use is not kept, unless ``copies`` says so."""
        state = (weight.data_ptr(), weight._version, weight.dtype, weight.device)
        self.trained = weight.requires_grad
        return self.copies.get(weight, state, lambda: self.weights(weight))

    def draw(self, *counts: int) -> tuple[Draw, ...]:
        """Random words of this backward pass, as many for each part as asked for, each part from a counter of its own on."""
        now = self.draws.clone()
        self.draws += 1
        ends = itertools.accumulate((-(-count // 4) * 4 for count in counts), initial=0)  # a counter has four
        return tuple(Draw(self.key, now, start) for start, _ in itertools.pairwise(ends))


def shown(exact: Tensor, blocks: Blocks) -> tuple[Tensor, Tensor, Tensor]:
    """For ``surogate recipe report``, of a matrix and what it was quantised to: (exact, what the product sees, whether a value lies
    beyond the largest of its block)."""
    rows, columns = exact.shape
    seen = blocks.dequantised()[:rows, :columns]
    most = (blocks.scales * blocks.decode).t().repeat_interleave(BLOCK, 1)[:rows, :columns] * E2M1_MAX
    return exact, seen, exact.abs().to(torch.float32) > most * (1 + 1e-6)


def forget(computes: Mapping[str, nn.Module]) -> None:
    """After an optimizer step: weights may have changed without a trace that :meth:`Slot.weight` sees; all but frozen ones are
    quantised again."""
    for module in computes.values():
        if isinstance(module, Slot) and module.trained:
            module.copies.forget()


def add_bias(y: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    return (y if bias is None else y.add_(bias.to(torch.float32))).to(dtype)


def bias_gradient(dy: Tensor, bias: Tensor | None) -> Tensor | None:
    return None if bias is None else dy.to(torch.float32).sum(0).to(bias.dtype)
