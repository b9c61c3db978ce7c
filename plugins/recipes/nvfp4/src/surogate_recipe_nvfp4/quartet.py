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
from surogate_native_nvfp4 import BLOCK, Blocks, draws, product, quantise, quantise_eden, rotate
from surogate_native_nvfp4.product import multiply
from torch import Tensor, nn

from surogate_core.contracts import Context, Site
from surogate_recipe_nvfp4.linear import Rules
from surogate_recipe_nvfp4.plugin import Options
from surogate_recipe_nvfp4.slot import Quantised, Slot, add_bias, bias_gradient, forget, shown

GROUP = 128
"""Values that are rotated together."""


class Product(torch.autograd.Function):
    """y (M, N) of x (M, K), weight (N, K), bias (N,) or None, by ``slot`` and ``rules``; gradients as in the module's text."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, slot: Slot, rules: Rules) -> Tensor:
        values, decode = slot.weight(weight)
        blocks = quantise(x, four_over_six=rules.four_over_six)
        rows = blocks.scaled()
        ctx.weight = weight if isinstance(weight, nn.Parameter) else None  # as in the other recipe
        ctx.save_for_backward(rows.to(torch.bfloat16), blocks.decode, *((values, decode) if ctx.weight is None else ()), bias)
        ctx.slot, ctx.rules, ctx.dtypes, ctx.width = slot, rules, (x.dtype, weight.dtype), x.shape[1]
        return add_bias(multiply(rows, values, blocks.decode * decode), bias, x.dtype)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        rows, rows_decode, *made, bias = ctx.saved_tensors
        values, decode = made or ctx.slot.weight(ctx.weight)
        (m, n), k = dy.shape, values.shape[1]
        dgrad, wgrad = drawn(ctx.slot, (m, k, n), (n, k, m))
        dx = dw = None
        if ctx.needs_input_grad[0]:
            weight = values.to(torch.float32) * decode
            dx = unbiased(dy, weight.t(), ctx.rules, dgrad)[:, : ctx.width].to(ctx.dtypes[0])
        if ctx.needs_input_grad[1]:
            x = rows.to(torch.float32) * rows_decode
            dw = unbiased(dy.t(), x.t(), ctx.rules, wgrad)[:, : ctx.width].to(ctx.dtypes[1])
        return dx, dw, bias_gradient(dy, bias) if ctx.needs_input_grad[2] else None, None, None


@frozen(eq=False)
class Drawn:
    """What one product draws: signs (128,) of its rotation, bits for the scales of its left and right operand."""

    signs: Tensor
    left: Tensor
    right: Tensor


def drawn(slot: Slot, *products: tuple[int, int, int]) -> list[Drawn]:
    """The draws of one backward pass, for products of (rows of the left operand, of the right, contracted size)."""
    shapes = [(rows, -(-size // GROUP) * (GROUP // BLOCK)) for left, right, size in products for rows in (left, right)]
    counts = [rows * blocks // 2 for rows, blocks in shapes]
    words = slot.draw(*[GROUP // 32] * len(products), *counts)
    bits = [draws.bits16(part, *shape) for part, shape in zip(words[len(products) :], shapes, strict=True)]
    return [Drawn(draws.signs(words[at]), *bits[2 * at : 2 * at + 2]) for at in range(len(products))]


def unbiased(left: Tensor, right: Tensor, rules: Rules, drawn: Drawn) -> Tensor:
    """left · right^T, both rotated alike and quantised by MS-EDEN."""

    return product(*(eden(matrix, rules, drawn.signs, bits)[1] for matrix, bits in ((left, drawn.left), (right, drawn.right))))


def eden(matrix: Tensor, rules: Rules, signs: Tensor, bits: Tensor) -> tuple[Tensor, Blocks]:
    """(rotated, quantised)."""
    rotated = rotate(matrix, signs) if rules.rotated else matrix
    return rotated, quantise_eden(rotated, bits if rules.stochastic else None, group=GROUP)


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

    @property
    def bounds(self) -> dict[str, float]:
        """For ``surogate recipe report``. MS-EDEN has 0.099 on normal values."""
        return {"operand": 0.15, "loss": 0.04}

    def operands(self, compute: Slot, x: Tensor, weight: Tensor, dy: Tensor) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
        """The operands of the three products as the next backward pass of ``compute`` would round them; see :func:`shown`. Those of
        gradients are rounded from what the forward pass has rounded, and compared with that."""
        metric, (m, n) = self.rules.four_over_six, dy.shape
        forward = {name: quantise(values, four_over_six=metric) for name, values in (("x", x), ("W", weight))}
        rounded = {name: blocks.dequantised() for name, blocks in forward.items()}
        dgrad, wgrad = drawn(compute, (m, rounded["W"].shape[1], n), (n, rounded["x"].shape[1], m))
        sides = {
            "dy": (dy, dgrad.signs, dgrad.left),
            "W, for dx": (rounded["W"].t(), dgrad.signs, dgrad.right),
            "dy, for dW": (dy.t(), wgrad.signs, wgrad.left),
            "x, for dW": (rounded["x"].t(), wgrad.signs, wgrad.right),
        }
        return {
            "x": shown(x, forward["x"]),
            "W": shown(weight, forward["W"]),
            **{name: shown(*eden(matrix, self.rules, signs, bits)) for name, (matrix, signs, bits) in sides.items()},
        }

    def stepped(self, computes: Mapping[str, nn.Module]) -> None:
        forget(computes)


def build(options: Options, context: Context) -> Quartet:
    return Quartet(Rules.of(options), context.config.train_seed)
