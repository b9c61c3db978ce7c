"""``nvfp4_quartet``: Quartet II (arXiv 2601.22813), for training all weights.

The products of a linear layer with x (M, K), W (N, K), dy (M, N); blocks of 1 x 16 lie along the contracted dimension, in brackets:

    y  = x' [K]  · W' [K]                    to nearest, with four over six if that is on; x' and W' are what is kept for gradients
    dx = eden(dy R [N]) · eden(W'^T R [N])   R: Hadamard transform of 128 with signs drawn for this product
    dW = eden(dy^T R [M]) · eden(x'^T R [M])

``eden`` is MS-EDEN: to nearest, with the bias taken out by stochastically rounded block scales. Sizes that 16, or 128 in gradients,
does not divide are padded with zeros. Natively, which is unverified on hardware, operands are bytes as in the other recipe.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from attrs import frozen
from surogate_native_nvfp4 import BLOCK, Blocks, draws, quantise, quantise_eden, rotate
from surogate_native_nvfp4.draws import Draw
from surogate_native_nvfp4.kernel import whole
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
        made = slot.weight(weight)
        rows = rules.operands.quantised(x, four_over_six=rules.four_over_six, kernels=rules.kernels)
        kept = rows.tensors()
        ctx.weight = weight if isinstance(weight, nn.Parameter) else None  # as in the other recipe
        ctx.save_for_backward(*kept, *(made if ctx.weight is None else ()), bias)
        ctx.slot, ctx.rules, ctx.dtypes, ctx.width, ctx.kept = slot, rules, (x.dtype, weight.dtype), x.shape[1], len(kept)
        wanted = x.dtype if bias is None else torch.float32  # as in the other recipe
        return add_bias(rules.operands.product(rows, rules.operands.Operand.of(made), wanted, kernels=rules.kernels), bias, x.dtype)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        *saved, bias = ctx.saved_tensors
        kept, made, rules = saved[: ctx.kept], saved[ctx.kept :], ctx.rules
        (m, n), k = dy.shape, whole(ctx.width, BLOCK)
        dgrad, wgrad = drawn(ctx.slot, (m, k, n), (n, k, m))
        dx = dw = None
        if ctx.needs_input_grad[0]:
            weight = rules.operands.Operand.of(made or ctx.slot.weight(ctx.weight))
            left, right = Side(dy), Side(weight.values, weight.decode, turned=True)
            dx = unbiased(left, right, rules, dgrad, ctx.dtypes[0])[:, : ctx.width]
        if ctx.needs_input_grad[1]:
            rows = rules.operands.Operand.of(kept)
            left, right = Side(dy, turned=True), Side(rows.values, rows.decode, turned=True)
            dw = unbiased(left, right, rules, wgrad, ctx.dtypes[1])[:, : ctx.width]
        return dx, dw, bias_gradient(dy, bias) if ctx.needs_input_grad[2] else None, None, None


@frozen(eq=False)
class Drawn:
    """What one product draws: signs (128,) of its rotation, words for the scales of its left and right operand."""

    signs: Tensor
    left: Draw
    right: Draw


@frozen(eq=False)
class Side:
    """An operand of a gradient: a matrix, or its transpose, times ``factor``."""

    matrix: Tensor
    factor: Tensor | None = None
    turned: bool = False


def drawn(slot: Slot, *products: tuple[int, int, int]) -> list[Drawn]:
    """The draws of one backward pass, for products of (rows of the left operand, of the right, contracted size)."""
    counts = [rows * _scales(size) // 2 for left, right, size in products for rows in (left, right)]
    parts = slot.draw(*[GROUP // 32] * len(products), *counts)
    signs, scales = parts[: len(products)], parts[len(products) :]
    return [Drawn(draws.signs(one.words(GROUP // 32)), *scales[2 * at : 2 * at + 2]) for at, one in enumerate(signs)]


def _scales(size: int) -> int:
    """Block scales of a row."""
    return whole(size, GROUP) // BLOCK


def unbiased(left: Side, right: Side, rules: Rules, drawn: Drawn, dtype: torch.dtype) -> Tensor:
    """left · right^T in ``dtype``, both rotated alike and quantised by MS-EDEN."""
    signs = drawn.signs if rules.rotated else None

    def operand(side: Side, draw: Draw) -> Any:
        return rules.operands.quantised_eden(
            side.matrix,
            signs=signs,
            factor=side.factor,
            turned=side.turned,
            draw=draw if rules.stochastic else None,
            kernels=rules.kernels,
        )

    return rules.operands.product(operand(left, drawn.left), operand(right, drawn.right), dtype, kernels=rules.kernels)


def eden(matrix: Tensor, rules: Rules, signs: Tensor, draw: Draw) -> tuple[Tensor, Blocks]:
    """(rotated, quantised), for the report."""
    rotated = rotate(matrix, signs) if rules.rotated else matrix
    bits = draw.bits(matrix.shape[0], _scales(matrix.shape[1])) if rules.stochastic else None
    return rotated, quantise_eden(rotated, bits, group=GROUP)


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
        rules = self.rules
        return rules.operands.quantised(weight.detach(), four_over_six=rules.four_over_six, kernels=rules.kernels).tensors()

    @property
    def notices(self) -> tuple[str, ...]:
        return self.rules.notices

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
    return Quartet(Rules.of(options, context), context.config.train_seed)
