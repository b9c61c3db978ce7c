"""The ops: ``torch.ops.surogate_nvfp4``, by the kernel on a GPU and by the definition elsewhere; meta tensors get shapes.

Operands and results are as in :mod:`surogate_native_nvfp4.kernel`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from surogate_native_nvfp4 import kernel, reference
from surogate_native_nvfp4.kernel import BLOCK, GROUP, Results, shape_of, whole

_library = torch.library.Library("surogate_nvfp4", "DEF")
_OPERAND = "Tensor x, Tensor amax, Tensor? signs, Tensor? factor, bool turned"
_DRAW = "int[] key, Tensor? step, int base, bool fake"
_library.define("rotate(Tensor x, Tensor signs, Tensor? factor, bool turned, bool out) -> (Tensor, Tensor)")
_library.define(f"quantise({_OPERAND}, bool square, bool four_over_six, {_DRAW}) -> (Tensor, Tensor, Tensor)")
_library.define(f"quantise_eden({_OPERAND}, {_DRAW}) -> (Tensor, Tensor, Tensor)")


def _rotated(x: Tensor, signs: Tensor, factor: Tensor | None, turned: bool, out: bool) -> tuple[Tensor, Tensor]:
    rows, columns = shape_of(x, turned)
    shape = rows if out else 0, whole(columns, signs.numel())
    return x.new_empty(shape, dtype=torch.float32), x.new_empty(1, dtype=torch.float32)


def _quantised(x: Tensor, turned: bool, unit: int, fake: bool) -> Results:
    rows, columns = shape_of(x, turned)
    return kernel.empty(x, rows, whole(columns, unit), fake)


_META = {
    "rotate": _rotated,
    "quantise": lambda x, amax, signs, factor, turned, *rest: _quantised(x, turned, BLOCK, rest[-1]),
    "quantise_eden": lambda x, amax, signs, factor, turned, *rest: _quantised(x, turned, GROUP, rest[-1]),
}
for _name, _meta in _META.items():
    _library.impl(_name, getattr(reference, _name), "CPU")
    _library.impl(_name, getattr(kernel, _name), "CUDA")
    _library.impl(_name, _meta, "Meta")


def _chosen(name: str, kernels: str) -> Callable[..., Any]:
    return getattr(reference if kernels == "reference" else torch.ops.surogate_nvfp4, name)


def rotate(
    x: Tensor, signs: Tensor, *, factor: Tensor | None = None, turned: bool = False, out: bool = True, kernels: str = "auto"
) -> tuple[Tensor, Tensor]:
    """:func:`surogate_native_nvfp4.kernel.rotate` on the tensors' device, or its definition where ``kernels = "reference"``."""
    return _chosen("rotate", kernels)(x, signs, factor, turned, out)


def quantise(
    x: Tensor,
    amax: Tensor,
    *,
    signs: Tensor | None = None,
    factor: Tensor | None = None,
    turned: bool = False,
    square: bool = False,
    four_over_six: bool = False,
    key: tuple[int, int] = (0, 0),
    step: Tensor | None = None,
    base: int = 0,
    fake: bool = False,
    kernels: str = "auto",
) -> Results:
    """:func:`surogate_native_nvfp4.kernel.quantise`, likewise."""
    given = x, amax, signs, factor, turned, square, four_over_six
    return _chosen("quantise", kernels)(*given, key, step, base, fake)


def quantise_eden(
    x: Tensor,
    amax: Tensor,
    *,
    signs: Tensor | None = None,
    factor: Tensor | None = None,
    turned: bool = False,
    key: tuple[int, int] = (0, 0),
    step: Tensor | None = None,
    base: int = 0,
    fake: bool = False,
    kernels: str = "auto",
) -> Results:
    """:func:`surogate_native_nvfp4.kernel.quantise_eden`, likewise."""
    return _chosen("quantise_eden", kernels)(x, amax, signs, factor, turned, key, step, base, fake)
