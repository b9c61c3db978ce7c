"""Operands of emulated products: what a matrix is quantised to, as q * s in float32 and the decode scale of the matrix.

By the definition in plain torch; on a CPU with a C++ compiler by ``cuda/operands.cpp``, which goes through the matrix twice (for
its largest magnitude, then for the values), with the blocks' arithmetic from the kernels' own headers. Both give the same bits, and
the same strides, so that a product's sums have the same order.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from ctypes import c_int64, c_void_p

import torch
from attrs import frozen
from surogate_native_kit import HostProgram, Source, addressable
from surogate_native_kit.host import spread, usable
from torch import Tensor

from surogate_native_nvfp4 import blocks, eden, formats, kernel, reference
from surogate_native_nvfp4.blocks import BLOCK, Metric
from surogate_native_nvfp4.draws import Draw
from surogate_native_nvfp4.kernel import GROUP, shape_of, whole
from surogate_native_nvfp4.product import multiply

OPERANDS = Source(kernel.CUDA / "operands.cpp")
FAST = ("-fno-math-errno", "-fno-trapping-math", "-Wno-psabi")
"""Results are the same with and without; functions that take vectors are inlined, how they would be called does not matter."""
LEVELS = {"AVX512": "-march=x86-64-v4", "AVX2": "-march=x86-64-v3"}
SIDE, SHARE = 16, 4
"""Rows of a tile; tiles below which a thread is not worth its start."""
NO_DRAW = (0, 0, 0, 0)


@frozen(eq=False)
class Operand:
    """``values``: q * s, float32 (rows, columns padded to whole blocks), columns outermost; ``decode``: float32 scalar."""

    values: Tensor
    decode: Tensor

    def tensors(self, both: bool = False) -> tuple[Tensor, ...]:
        """What :meth:`of` makes the operand from, and :meth:`turned_of` its transpose, which takes nothing more if ``both`` are
        wanted: q * s in bfloat16, which is exact."""
        return self.values.to(torch.bfloat16), self.decode

    @classmethod
    def of(cls, tensors: Sequence[Tensor]) -> Operand:
        return cls(*tensors)

    @classmethod
    def turned_of(cls, tensors: Sequence[Tensor]) -> Operand:
        return cls(tensors[0].t(), tensors[1])


def quantised(
    x: Tensor,
    *,
    signs: Tensor | None = None,
    factor: Tensor | None = None,
    turned: bool = False,
    square: bool = False,
    four_over_six: Metric | None = None,
    draw: Draw | None = None,
    kernels: str = "auto",
) -> Operand:
    """:func:`surogate_native_nvfp4.quantise` of the matrix x (or, ``turned``, of its transpose), times ``factor``, rotated with
    ``signs``; rounded stochastically with ``draw``. ``kernels``: the option, "reference" for plain torch."""
    if compiled(x, kernels) and four_over_six in (None, "mse"):
        rows, columns = shape_of(x, turned)
        request = _Request(x.contiguous(), signs, factor, turned, draw)
        amax = request.largest(BLOCK)
        top = formats.E4M3_MAX if four_over_six is None else blocks.FOUR_OVER_SIX_MAX
        name = "quantise" + "_square" * square + "_four" * (four_over_six is not None)
        values = request.run(name, amax, rows, whole(columns, BLOCK))
        return Operand(values, blocks.encode_scale(amax, formats.E2M1_MAX, top)[1])
    matrix = reference.operand(x, signs, factor, turned)
    bits = None if draw is None else draw.bits(matrix.shape[0], whole(matrix.shape[1], BLOCK))
    made = blocks.quantise(matrix, square=square, four_over_six=four_over_six, bits=bits)
    return Operand(made.scaled(), made.decode)


def quantised_eden(
    x: Tensor,
    *,
    signs: Tensor | None = None,
    factor: Tensor | None = None,
    turned: bool = False,
    draw: Draw | None = None,
    kernels: str = "auto",
) -> Operand:
    """:func:`surogate_native_nvfp4.quantise_eden`, likewise; ``draw`` is for the scales."""
    if compiled(x, kernels):
        rows, columns = shape_of(x, turned)
        request = _Request(x.contiguous(), signs, factor, turned, draw)
        amax = request.largest(GROUP)
        return Operand(request.run("eden", amax, rows, whole(columns, GROUP)), eden.decode_scale(amax))
    matrix = reference.operand(x, signs, factor, turned)
    bits = None if draw is None else draw.bits(matrix.shape[0], whole(matrix.shape[1], GROUP) // BLOCK)
    made = eden.quantise_eden(matrix, bits, group=GROUP)
    return Operand(made.scaled(), made.decode)


def product(a: Operand, b: Operand, dtype: torch.dtype = torch.float32, *, kernels: str = "auto") -> Tensor:
    """a · b^T, in float32 and rounded to ``dtype``; columns that only one of them has are padding. Torch multiplies under any
    ``kernels``."""
    width = min(a.values.shape[1], b.values.shape[1])
    return multiply(a.values[:, :width], b.values[:, :width], a.decode * b.decode).to(dtype)


def compiled(x: Tensor, kernels: str) -> bool:
    """Whether the CPU's own build quantises ``x``. Raises PluginError for ``native`` where it cannot be had."""
    mine = x.device.type == "cpu" and x.dtype in kernel.NAMES and x.numel() > 0 and addressable(x)
    return mine and available(kernels)


@functools.cache
def available(kernels: str) -> bool:
    """Whether there is the CPU's own build under the option ``kernels``: :func:`surogate_native_kit.host.usable`."""
    return usable(_program, kernels, "NVFP4's emulation")


@functools.cache
def _program() -> HostProgram:
    level = LEVELS.get(torch.backends.cpu.get_cpu_capability())
    return HostProgram(OPERANDS, (*FAST, *([level] if level else [])))


class _Request:
    """What ``cuda/operands.cpp`` is asked for."""

    def __init__(self, x: Tensor, signs: Tensor | None, factor: Tensor | None, turned: bool, draw: Draw | None):
        self.held = x, signs, factor
        shape = *shape_of(x, turned), int(x.dtype == torch.float32), int(turned)
        drawn = NO_DRAW if draw is None else (1, kernel.signed(draw.key), int(draw.step), draw.base)
        self.given = [x.data_ptr(), *(0 if tensor is None else tensor.data_ptr() for tensor in (factor, signs))]
        self.rest = *shape, *drawn

    def largest(self, group: int) -> Tensor:
        """Largest magnitude of the rotated operand, float32 scalar."""
        tiles = torch.empty(-(-self.rest[0] // SIDE))
        self._call(f"largest_{group}", 0, tiles)
        return tiles.amax()

    def run(self, name: str, amax: Tensor, rows: int, width: int) -> Tensor:
        out = torch.empty(width, rows)
        self._call(name, amax.data_ptr(), out)
        return out.t()

    def _call(self, name: str, amax: int, out: Tensor) -> None:
        request = torch.tensor([*self.given, amax, out.data_ptr(), *self.rest])
        work = _program().function(name, None, c_void_p, c_int64, c_int64)
        spread(work, request.data_ptr(), 0, -(-self.rest[0] // SIDE), SHARE)
