"""``nvfp4``: the recipe NVIDIA trains with ("Pretraining Large Language Models with NVFP4", arXiv 2509.25149; Transformer Engine
``NVFP4BlockScaling``), with four over six.

The three products of a linear layer with x (M, K), W (N, K), dy (M, N); blocks lie along the contracted dimension, in brackets:

    y  = x [K]   · W [K]     x 1 x 16, W 16 x 16, both to nearest
    dx = dy [N]  · W [N]     dy 1 x 16 stochastically; W is the same as above, its blocks are square
    dW = dy [M]  · x [M]     both rotated by the 16-wide Hadamard transform along M; dy stochastically, x to nearest

Four over six is used in y and dW; in dx it would move the bias of clipping into the gradient of every layer below. Each operand is
quantised from the values themselves, never from another quantised copy. Sizes that 16 does not divide are padded with zeros.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from attrs import frozen
from surogate_native_nvfp4 import BLOCK, product, quantise, rotate
from surogate_native_nvfp4.blocks import Metric
from surogate_native_nvfp4.product import multiply
from surogate_native_nvfp4.rotation import signs_of
from torch import Tensor, nn

from surogate_core.contracts import Context, Site
from surogate_recipe_nvfp4.plugin import Options
from surogate_recipe_nvfp4.slot import Quantised, Slot, add_bias, bias_gradient, forget

DGRAD, WGRAD = 0, 1
"""Streams of random bits of one backward pass."""


@frozen
class Rules:
    """four_over_six: the error that chooses, or None; rotated, stochastic: what is done to the operands of gradients."""

    four_over_six: Metric | None = "mse"
    rotated: bool = True
    stochastic: bool = True

    @classmethod
    def of(cls, options: Options) -> Rules:
        return cls(
            four_over_six="mse" if options.fp4_four_over_six else None,
            rotated=not options.no_fp4_hadamard,
            stochastic=not options.no_fp4_stochastic_rounding,
        )


class Product(torch.autograd.Function):
    """y (M, N) of x (M, K), weight (N, K), bias (N,) or None, by ``slot`` and ``rules``; gradients as in the module's text."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, slot: Slot, rules: Rules) -> Tensor:
        values, decode = slot.weight(weight)
        rows = quantise(x, four_over_six=rules.four_over_six)
        ctx.save_for_backward(x, values, decode, bias)
        ctx.slot, ctx.rules, ctx.weight_dtype = slot, rules, weight.dtype
        return add_bias(multiply(rows.scaled(), values, rows.decode * decode), bias, x.dtype)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, values, decode, bias = ctx.saved_tensors
        slot, rules = ctx.slot, ctx.rules
        now = slot.next_draw()
        dx = dw = None
        if ctx.needs_input_grad[0]:
            bits = slot.bits(dy.shape[0], _padded(dy.shape[1]), DGRAD, now) if rules.stochastic else None
            rows = quantise(dy, bits=bits)
            dx = multiply(rows.scaled()[:, : dy.shape[1]], values.t(), rows.decode * decode)[:, : x.shape[1]].to(x.dtype)
        if ctx.needs_input_grad[1]:
            left, right = dy.t(), x.t()
            if rules.rotated:
                signs = signs_of(dy.device)
                left, right = rotate(left, signs), rotate(right, signs)
            bits = slot.bits(dy.shape[1], _padded(dy.shape[0]), WGRAD, now) if rules.stochastic else None
            columns = quantise(left, four_over_six=rules.four_over_six, bits=bits)
            dw = product(columns, quantise(right, four_over_six=rules.four_over_six)).to(ctx.weight_dtype)
        return dx, dw, bias_gradient(dy, bias) if ctx.needs_input_grad[2] else None, None, None


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


@frozen
class Nvfp4:
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
        blocks = quantise(weight.detach(), square=True, four_over_six=self.rules.four_over_six)
        return blocks.scaled().to(torch.bfloat16), blocks.decode

    def stepped(self, computes: Mapping[str, nn.Module]) -> None:
        forget(computes)


def build(options: Options, context: Context) -> Nvfp4:
    return Nvfp4(Rules.of(options), context.config.train_seed)
