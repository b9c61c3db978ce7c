"""``nvfp4_quartet``: Quartet II (arXiv 2601.22813), for training all weights.

The products of a linear layer with x (M, K), W (N, K), dy (M, N); blocks of 1 x 16 lie along the contracted dimension, in brackets:

    y  = x' [K]  · W' [K]                    to nearest, with four over six if that is on; x' and W' are what is kept for gradients
    dx = eden(dy R [N]) · eden(W'^T R [N])   R: Hadamard transform of 128 with signs drawn for this product
    dW = eden(dy^T R [M]) · eden(x'^T R [M])

``eden`` is MS-EDEN: to nearest, with the bias taken out by stochastically rounded block scales. Sizes that 16, or 128 in gradients,
does not divide are padded with zeros.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from attrs import frozen
from surogate_native_nvfp4 import BLOCK, Blocks, product, quantise, quantise_eden, rotate
from surogate_native_nvfp4.product import multiply
from torch import Tensor, nn

from surogate_core.contracts import Context, Site
from surogate_recipe_nvfp4.linear import Rules
from surogate_recipe_nvfp4.plugin import Options
from surogate_recipe_nvfp4.slot import Quantised, Slot, add_bias, bias_gradient, forget

GROUP = 128
"""Values that are rotated together."""
DGRAD, WGRAD = 0, 3
"""First of three streams of random bits for each of the two products: signs, bits of the left operand, of the right."""


class Product(torch.autograd.Function):
    """y (M, N) of x (M, K), weight (N, K), bias (N,) or None, by ``slot`` and ``rules``; gradients as in the module's text."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, slot: Slot, rules: Rules) -> Tensor:
        values, decode = slot.weight(weight)
        blocks = quantise(x, four_over_six=rules.four_over_six)
        rows = blocks.scaled()
        ctx.save_for_backward(rows.to(torch.bfloat16), blocks.decode, values, decode, bias)
        ctx.slot, ctx.rules, ctx.dtypes, ctx.width = slot, rules, (x.dtype, weight.dtype), x.shape[1]
        return add_bias(multiply(rows, values, blocks.decode * decode), bias, x.dtype)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        rows, rows_decode, values, decode, bias = ctx.saved_tensors
        now = ctx.slot.next_draw()
        dx = dw = None
        if ctx.needs_input_grad[0]:
            weight = values.to(torch.float32) * decode
            dx = _unbiased(dy, weight.t(), ctx.slot, ctx.rules, DGRAD, now)[:, : ctx.width].to(ctx.dtypes[0])
        if ctx.needs_input_grad[1]:
            x = rows.to(torch.float32) * rows_decode
            dw = _unbiased(dy.t(), x.t(), ctx.slot, ctx.rules, WGRAD, now)[:, : ctx.width].to(ctx.dtypes[1])
        return dx, dw, bias_gradient(dy, bias) if ctx.needs_input_grad[2] else None, None, None


def _unbiased(left: Tensor, right: Tensor, slot: Slot, rules: Rules, stream: int, now: Tensor) -> Tensor:
    """left · right^T, both rotated alike and quantised by MS-EDEN."""
    if rules.rotated:
        signs = slot.signs(GROUP, stream, now)
        left, right = rotate(left, signs), rotate(right, signs)

    def eden(matrix: Tensor, own: int) -> Blocks:
        groups = -(-matrix.shape[1] // GROUP)
        bits = slot.bits(matrix.shape[0], groups * (GROUP // BLOCK), own, now) if rules.stochastic else None
        return quantise_eden(matrix, bits, group=GROUP)

    return product(eden(left, stream + 1), eden(right, stream + 2))


@frozen
class Quartet:
    """The recipe: claims every linear site."""

    rules: Rules
    seed: int

    def claim(self, site: Site) -> str | None:
        return None

    def linear(self, site: Site) -> Slot:
        def compute(x: Tensor, weight: Tensor, bias: Tensor | None, slot: Slot) -> Tensor:
            return Product.apply(x, weight, bias, slot, self.rules)

        return Slot(site, self.seed, compute, self.weight)

    def weight(self, weight: Tensor) -> Quantised:
        blocks = quantise(weight.detach(), four_over_six=self.rules.four_over_six)
        return blocks.scaled().to(torch.bfloat16), blocks.decode

    def stepped(self, computes: Mapping[str, nn.Module]) -> None:
        forget(computes)


def build(options: Options, context: Context) -> Quartet:
    return Quartet(Rules.of(options), context.config.train_seed)
