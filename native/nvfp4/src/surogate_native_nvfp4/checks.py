"""The kernels of NVFP4 and cuBLASLt's product, for ``make gpu-check``."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from surogate_native_kit.checks import Check, Run, Shape
from torch import Tensor

from surogate_native_nvfp4 import draws, kernel, packed, reference
from surogate_native_nvfp4.rotation import RHT_SIGNS

KEY = (0x12345678, 0xFEDCBA98)
BASE = 64
SHAPES = ((1, 1), (17, 33), (130, 80))
"""Of operands in memory."""


def _matrix(dtype: torch.dtype, group: int, shape: Shape, draw: Callable[..., Tensor]) -> Sequence[Tensor]:
    """(x, about the largest magnitude of the operand, signs, factor, step)."""
    x = (draw(*shape) * torch.exp2((draw(shape[0], 1) * 4).round())).to(dtype)
    step, factor = torch.tensor([(5 << 32) + 1]), draw(1).abs() if group else torch.ones(1)
    signs = torch.tensor(RHT_SIGNS).float() if group == 16 else draws.signs(draws.words(group // 32, KEY, step[0]))
    return x, x.abs().max().float() * factor, signs, factor, step


def _rotate(run: Run, turned: bool, out: bool, *given: Tensor) -> Sequence[Tensor]:
    x, _, signs, factor, _ = given
    return run(x, signs, factor, turned, out)


def _quantise(run: Run, turned: bool, chosen: tuple[bool, ...], drawn: bool, *given: Tensor) -> Sequence[Tensor]:
    x, amax, signs, factor, step = given
    operand = (signs, factor) if signs.numel() else (None, None)
    return run(x, amax, *operand, turned, *chosen, KEY, step if drawn else None, BASE, True)


def _check(name: str, inputs: tuple[torch.dtype, int], run: Any, traffic: float, native: Run, plain: Run) -> Check:
    """``traffic``: bytes written for a value."""
    return Check(
        name=name,
        inputs=functools.partial(_matrix, *inputs),
        kernel=functools.partial(run, native),
        reference=functools.partial(run, plain),
        shapes=SHAPES,
        large=(8192, 4096),
        traffic=lambda shape: int(shape[0] * shape[1] * (inputs[0].itemsize + traffic)),
        baseline=("torch", functools.partial(run, plain)),
    )


def _reorder(run: Any, *fixed: Any) -> Any:
    return lambda native, *given: run(native, *fixed, *given)


QUANTISED = 9 / 16 + 2
"""Codes, scales, and q * s in bfloat16."""


def _checks(dtype: torch.dtype) -> list[Check]:
    found = []
    for group, turned, out in itertools.product((16, 128), (False, True), (False, True)):
        name = kernel.name_of(f"rotate_{group}", dtype, turned=turned) + ("" if out else " amax")
        run = _reorder(_rotate, turned, out)
        found.append(_check(name, (dtype, group), run, 4.0 * out, kernel.rotate, reference.rotate))
    for square, four, drawn, turned in itertools.product(*[(False, True)] * 4):
        if not (square and drawn):
            group = 16 if turned and not square else 0
            name = kernel.name_of("quantise", dtype, square=square, four=four, turned=turned)
            name += " drawn" * drawn + " rotated" * bool(group)
            run, given = _reorder(_quantise, turned, (square, four), drawn), (dtype, group)
            found.append(_check(name, given, run, QUANTISED, kernel.quantise, reference.quantise))
    for turned, drawn, group in itertools.product((False, True), (False, True), (0, 128)):
        if group or not turned:
            name = kernel.name_of("eden", dtype, turned=turned) + " drawn" * drawn + " rotated" * bool(group)
            run, given = _reorder(_quantise, turned, (), drawn), (dtype, group)
            found.append(_check(name, given, run, QUANTISED, kernel.quantise_eden, reference.quantise_eden))
    return found


def _operands(shape: Shape, draw: Callable[..., Tensor]) -> Sequence[Tensor]:
    m, n, k = shape
    a, b = (packed.quantised(draw(rows, k), four_over_six="mse") for rows in (m, n))
    return a.codes, b.codes, a.scales, b.scales, a.decode, b.decode


def _bf16(a: Tensor, b: Tensor, a_scales: Tensor, b_scales: Tensor, *decode: Tensor) -> Sequence[Tensor]:
    left, right = (packed.Operand(*one).values for one in ((a, a_scales, decode[0]), (b, b_scales, decode[1])))
    return (left @ right.t(),)


PRODUCT = Check(
    name="scaled_mm",
    inputs=_operands,
    kernel=lambda *given: (torch.ops.surogate_nvfp4.scaled_mm(*given, torch.bfloat16),),
    reference=lambda a, b, sa, sb, da, db: (packed.scaled_mm(a, b, sa, sb, da, db, torch.bfloat16),),
    shapes=((1, 16, 32), (33, 50, 80), (130, 144, 272)),
    large=(8192, 8192, 8192),
    traffic=lambda shape: 9 * (shape[0] + shape[1]) * shape[2] // 16 + 2 * shape[0] * shape[1],
    flops=lambda shape: 2 * shape[0] * shape[1] * shape[2],
    close=3e-3,  # of a result in bfloat16
    baseline=("bf16, unpacked", _bf16),
    on_host=False,
    needs=(10, 0),
)
"""Unverified on hardware."""

CHECKS = (*(check for dtype in (torch.bfloat16, torch.float32) for check in _checks(dtype)), PRODUCT)
