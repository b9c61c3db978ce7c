"""The kernels of NVFP4, for ``make gpu-check``."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from surogate_native_kit.checks import Check, Run, Shape
from torch import Tensor

from surogate_native_nvfp4 import draws, kernel, reference
from surogate_native_nvfp4.rotation import RHT_SIGNS

KEY = (0x12345678, 0xFEDCBA98)
BASE = 64
SHAPES = ((1, 1), (17, 33), (130, 80))
"""Of operands in memory."""


def _matrix(dtype: torch.dtype, turned: bool, group: int, shape: Shape, draw: Callable[..., Tensor]) -> Sequence[Tensor]:
    """(x, amax of the operand, signs, factor, step)."""
    x = (draw(*shape) * torch.exp2((draw(shape[0], 1) * 4).round())).to(dtype)
    step, factor = torch.tensor([(5 << 32) + 1]), draw(1).abs()
    if not group:
        return x, x.float().abs().max().reshape(1), torch.empty(0), torch.ones(1), step
    signs = torch.tensor(RHT_SIGNS).float() if group == 16 else draws.signs(draws.words(group // 32, KEY, step[0]))
    return x, reference.rotate(x, signs, factor, turned, False)[1], signs, factor, step


def _rotate(run: Run, turned: bool, out: bool, *given: Tensor) -> Sequence[Tensor]:
    x, _, signs, factor, _ = given
    return run(x, signs, factor, turned, out)


def _quantise(run: Run, turned: bool, chosen: tuple[bool, ...], drawn: bool, *given: Tensor) -> Sequence[Tensor]:
    x, amax, signs, factor, step = given
    operand = (signs, factor) if signs.numel() else (None, None)
    return run(x, amax, *operand, turned, *chosen, KEY, step if drawn else None, BASE, True)


def _check(name: str, inputs: tuple[torch.dtype, bool, int], run: Any, traffic: float, native: Run, plain: Run) -> Check:
    """``traffic``: bytes written for a value."""
    return Check(
        name=name,
        inputs=functools.partial(_matrix, *inputs),
        kernel=functools.partial(run, native),
        reference=functools.partial(run, plain),
        shapes=SHAPES,
        large=(8192, 8192),
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
        found.append(_check(name, (dtype, turned, group), run, 4.0 * out, kernel.rotate, reference.rotate))
    for square, four, drawn, turned, group in itertools.product(*[(False, True)] * 4, (0, 16)):
        if not (square and (drawn or group)) and (square or turned == bool(group)):
            name = kernel.name_of("quantise", dtype, square=square, four=four, turned=turned) + " drawn" * drawn
            run = _reorder(_quantise, turned, (square, four), drawn)
            found.append(
                _check(name + " rotated" * bool(group), (dtype, turned, group), run, QUANTISED, kernel.quantise, reference.quantise)
            )
    for turned, drawn, group in itertools.product((False, True), (False, True), (0, 128)):
        if group or not turned:
            name = kernel.name_of("eden", dtype, turned=turned) + " drawn" * drawn + " rotated" * bool(group)
            run = _reorder(_quantise, turned, (), drawn)
            given = dtype, turned, group
            found.append(_check(name, given, run, QUANTISED, kernel.quantise_eden, reference.quantise_eden))
    return found


CHECKS = tuple(check for dtype in (torch.bfloat16, torch.float32) for check in _checks(dtype))
