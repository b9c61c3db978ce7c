"""``nvfp4``: the recipe NVIDIA trains with ("Pretraining Large Language Models with NVFP4", arXiv 2509.25149; Transformer Engine
``NVFP4BlockScaling``), with four over six.

The three products of a linear layer with x (M, K), W (N, K), dy (M, N); blocks lie along the contracted dimension, in brackets:

    y  = x [K]   · W [K]     x 1 x 16, W 16 x 16, both to nearest
    dx = dy [N]  · W [N]     dy 1 x 16 stochastically; W is the same as above, its blocks are square
    dW = dy [M]  · x [M]     both rotated by the 16-wide Hadamard transform along M; dy stochastically, x to nearest

Four over six is used in y and dW; in dx it would move the bias of clipping into the gradient of every layer below. Each operand is
quantised from the values themselves, never from another quantised copy. Sizes that 16 does not divide are padded with zeros.

Natively the operands are bytes that Blackwell's matrix units multiply, which is unverified on hardware
(:mod:`surogate_native_nvfp4.packed`); emulated they are the same values, multiplied where that is exact.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

import torch
from attrs import frozen
from surogate_native_nvfp4 import BLOCK, operands, packed, quantise, rotate
from surogate_native_nvfp4.blocks import Metric
from surogate_native_nvfp4.draws import Draw
from surogate_native_nvfp4.kernel import whole
from surogate_native_nvfp4.rotation import signs_of
from torch import Tensor, nn

from surogate_core.contracts import Context, Site
from surogate_recipe_nvfp4.plugin import Options
from surogate_recipe_nvfp4.slot import Quantised, Slot, add_bias, bias_gradient, forget, shown

UNVERIFIED = (
    "4-bit products on this GPU are unverified on hardware: everything up to their launch is tested, that it runs is not; "
    '`surogate recipe report` compares them with bf16, recipe_backend = "emulated" computes the same without them'
)


@frozen
class Rules:
    """four_over_six: the error that chooses, or None; rotated, stochastic: what is done to the operands of gradients; kernels: the
    option, which changes no result; native: products of bytes, otherwise emulated."""

    four_over_six: Metric | None = "mse"
    rotated: bool = True
    stochastic: bool = True
    kernels: str = "auto"
    native: bool = False

    @classmethod
    def of(cls, options: Options, context: Context) -> Rules:
        return cls(
            kernels=context.config.kernels,
            native=context.config.recipe_backend != "emulated",
            four_over_six="mse" if options.fp4_four_over_six else None,
            rotated=not options.no_fp4_hadamard,
            stochastic=not options.no_fp4_stochastic_rounding,
        )

    @property
    def operands(self) -> ModuleType:
        """Operands, how they are quantised and multiplied: two modules with the same functions."""
        return packed if self.native else operands

    @property
    def notices(self) -> tuple[str, ...]:
        """For the plan."""
        return (UNVERIFIED,) if self.native else ()


class Product(torch.autograd.Function):
    """y (M, N) of x (M, K), weight (N, K), bias (N,) or None, by ``slot`` and ``rules``; gradients as in the module's text."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, slot: Slot, rules: Rules) -> Tensor:
        made = slot.weight(weight)
        rows = rules.operands.quantised(x, four_over_six=rules.four_over_six, kernels=rules.kernels)
        # the copy of a parameter is asked for again: where it is kept is not for autograd to say
        ctx.weight = weight if isinstance(weight, nn.Parameter) else None
        ctx.save_for_backward(x, *(made if ctx.weight is None else ()), bias)
        ctx.slot, ctx.rules, ctx.weight_dtype = slot, rules, weight.dtype
        wanted = x.dtype if bias is None else torch.float32  # with a bias it is rounded once, after that
        return add_bias(rules.operands.product(rows, rules.operands.Operand.of(made), wanted, kernels=rules.kernels), bias, x.dtype)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, *made, bias = ctx.saved_tensors
        rules = ctx.rules
        dgrad, wgrad = draws_of(ctx.slot, *dy.shape) if rules.stochastic else (None, None)
        dx = dw = None
        if ctx.needs_input_grad[0]:
            rows = rules.operands.quantised(dy, draw=dgrad, kernels=rules.kernels)
            right = rules.operands.Operand.turned_of(made or ctx.slot.weight(ctx.weight))
            dx = rules.operands.product(rows, right, x.dtype, kernels=rules.kernels)[:, : x.shape[1]]
        if ctx.needs_input_grad[1]:
            left, right = along_rows(dy, rules, wgrad), along_rows(x, rules)
            dw = rules.operands.product(left, right, ctx.weight_dtype, kernels=rules.kernels)
        return dx, dw, bias_gradient(dy, bias) if ctx.needs_input_grad[2] else None, None, None


def along_rows(x: Tensor, rules: Rules, draw: Draw | None = None) -> Any:
    """x (M, columns) as an operand of the weight gradient: turned, and rotated along M if ``rules`` say so."""
    signs = signs_of(x.device) if rules.rotated else None
    metric, kernels = rules.four_over_six, rules.kernels
    return rules.operands.quantised(x, signs=signs, turned=True, four_over_six=metric, draw=draw, kernels=kernels)


def draws_of(slot: Slot, rows: int, columns: int) -> tuple[Draw, Draw]:
    """What one backward pass draws for dy (rows, columns) and for its transpose, both padded to whole blocks."""
    first, second = slot.draw(*(height * whole(width, BLOCK) // 2 for height, width in ((rows, columns), (columns, rows))))
    return first, second


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
        metric, kernels = self.rules.four_over_six, self.rules.kernels
        found = self.rules.operands.quantised(weight.detach(), square=True, four_over_six=metric, kernels=kernels)
        return found.tensors(both=True)

    @property
    def notices(self) -> tuple[str, ...]:
        return self.rules.notices

    @property
    def bounds(self) -> dict[str, float]:
        """For ``surogate recipe report``. Stochastic rounding has 0.153 on normal values."""
        return {"operand": 0.2, "loss": 0.04}

    def operands(self, compute: Slot, x: Tensor, weight: Tensor, dy: Tensor) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
        """The operands of the three products as the next backward pass of ``compute`` would round them; see :func:`shown`."""
        rules, metric = self.rules, self.rules.four_over_six
        dgrad = wgrad = None
        if rules.stochastic:
            first, second = draws_of(compute, *dy.shape)
            (m, n) = dy.shape
            dgrad, wgrad = first.bits(m, whole(n, BLOCK)), second.bits(n, whole(m, BLOCK))
        left, right = (rotate(values.t(), signs_of(dy.device)) if rules.rotated else values.t() for values in (dy, x))
        return {
            "x": shown(x, quantise(x, four_over_six=metric)),
            "W": shown(weight, quantise(weight, square=True, four_over_six=metric)),
            "dy": shown(dy, quantise(dy, bits=dgrad)),
            "dy, for dW": shown(left, quantise(left, four_over_six=metric, bits=wgrad)),
            "x, for dW": shown(right, quantise(right, four_over_six=metric)),
        }

    def stepped(self, computes: Mapping[str, nn.Module]) -> None:
        forget(computes)


def build(options: Options, context: Context) -> Nvfp4:
    return Nvfp4(Rules.of(options, context), context.config.train_seed)
