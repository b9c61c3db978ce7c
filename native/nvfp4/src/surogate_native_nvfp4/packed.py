"""Operands as the bytes that Blackwell's block-scaled matrix units read, and their product, ``torch.ops.surogate_nvfp4.scaled_mm``.

On a GPU operands are quantised by the kernels and multiplied by cuBLASLt, through torch, which takes the order of scales of
:func:`surogate_native_nvfp4.formats.swizzle`. Elsewhere both are their definitions: the product unpacks the very bytes that
cuBLASLt would read and puts the scales back into rows, so that a wrong layout gives wrong numbers. The functions are those of
:mod:`surogate_native_nvfp4.operands`, where operands are values, and give the same results but for the order of float32 sums.

**Unverified on hardware**: neither the kernels nor this product have run on a GPU of compute capability 10.0 or more. Tested is
everything up to the launch: the bytes, the order of scales, the sizes, and the call by torch's own check of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from attrs import frozen
from torch import Tensor
from torch.nn.functional import ScalingType, SwizzleType

from surogate_native_nvfp4 import blocks, eden, formats, ops
from surogate_native_nvfp4.blocks import BLOCK, Metric
from surogate_native_nvfp4.draws import Draw
from surogate_native_nvfp4.kernel import whole
from surogate_native_nvfp4.product import product as exact

STEP = 16
"""cuBLASLt wants the bytes of a row and the rows of the right operand divisible by this; the left one may have any rows."""
SCALING = [ScalingType.BlockWise1x16, ScalingType.TensorWise]
SWIZZLE = [SwizzleType.SWIZZLE_32_4_4, SwizzleType.NO_SWIZZLE]


@frozen(eq=False)
class Operand:
    """``codes`` (rows, columns / 2) uint8, columns padded to whole blocks, the even one in the low half of a byte; ``scales``
    uint8, E4M3, one for 16 columns, in the order of :func:`surogate_native_nvfp4.formats.swizzle`; ``decode``: float32 scalar."""

    codes: Tensor
    scales: Tensor
    decode: Tensor

    @property
    def values(self) -> Tensor:
        """q * s in bfloat16, which is exact, (rows, columns)."""
        rows, cells = self.codes.shape[0], 2 * self.codes.shape[1] // BLOCK
        scales = formats.unswizzle(self.scales, rows, cells).view(torch.float8_e4m3fn).to(torch.bfloat16)
        pairs = formats.byte_values(self.codes.device).to(torch.bfloat16)
        return F.embedding(self.codes.int(), pairs).view(rows, cells, BLOCK).mul_(scales[..., None]).flatten(1)

    def tensors(self, both: bool = False) -> tuple[Tensor, ...]:
        """What :meth:`of` makes the operand from. ``both``, of blocks of 16 x 16: and :meth:`turned_of` its transpose."""
        own = self.codes, self.scales, self.decode
        return (*own, *self._turned()) if both else own

    @classmethod
    def of(cls, tensors: Sequence[Tensor]) -> Operand:
        return cls(*tensors[:3])

    @classmethod
    def turned_of(cls, tensors: Sequence[Tensor]) -> Operand:
        codes, scales = tensors[3:]
        return cls(codes, scales, tensors[2])

    def _turned(self) -> tuple[Tensor, Tensor]:
        """(codes, scales) of the transpose: the same in other places. Quantised anew, its sums of errors would have another order,
        and four over six could choose otherwise."""
        rows, width = self.codes.shape
        codes = F.pad(formats.unpack(self.codes), (0, 0, 0, -rows % BLOCK)).t()
        scales = formats.unswizzle(self.scales, rows, 2 * width // BLOCK)[::BLOCK].t()  # one for each block
        return formats.pack(codes), formats.swizzle(scales.repeat_interleave(BLOCK, dim=0))


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
    """:func:`surogate_native_nvfp4.operands.quantised` as bytes. ``kernels``: the option, "reference" for the definition. Raises
    ValueError for four over six by another error than the squared one."""
    if four_over_six not in (None, "mse"):
        raise ValueError(f'four_over_six = "{four_over_six}": the kernel chooses by "mse"')
    amax, four = _largest(x, signs, factor, turned, kernels), four_over_six is not None
    operand: dict[str, Any] = {"signs": signs, "factor": factor, "turned": turned}
    made = ops.quantise(x, amax, **operand, square=square, four_over_six=four, kernels=kernels, **_drawn(draw))
    top = blocks.FOUR_OVER_SIX_MAX if four else formats.E4M3_MAX
    return Operand(made[0], made[1], blocks.encode_scale(amax.view(()), formats.E2M1_MAX, top)[1])


def quantised_eden(
    x: Tensor,
    *,
    signs: Tensor | None = None,
    factor: Tensor | None = None,
    turned: bool = False,
    draw: Draw | None = None,
    kernels: str = "auto",
) -> Operand:
    """:func:`surogate_native_nvfp4.operands.quantised_eden`, likewise."""
    amax = _largest(x, signs, factor, turned, kernels)
    made = ops.quantise_eden(x, amax, signs=signs, factor=factor, turned=turned, kernels=kernels, **_drawn(draw))
    return Operand(made[0], made[1], eden.decode_scale(amax.view(())))


def product(a: Operand, b: Operand, dtype: torch.dtype = torch.float32, *, kernels: str = "auto") -> Tensor:
    """a · b^T: (rows of a, rows of b), summed in float32 and rounded once to ``dtype``. The operands have equally many columns."""
    run = scaled_mm if kernels == "reference" else torch.ops.surogate_nvfp4.scaled_mm
    return run(a.codes, b.codes, a.scales, b.scales, a.decode, b.decode, dtype)


def scaled_mm(
    a: Tensor, b: Tensor, a_scales: Tensor, b_scales: Tensor, a_decode: Tensor, b_decode: Tensor, dtype: torch.dtype
) -> Tensor:
    """The definition: codes a (M, K / 2) and b (N, K / 2) with their scales → (M, N)."""

    def unpacked(codes: Tensor, scales: Tensor, decode: Tensor) -> blocks.Blocks:
        rows = formats.unswizzle(scales, codes.shape[0], 2 * codes.shape[1] // BLOCK)
        return blocks.unpack(codes, rows.view(torch.float8_e4m3fn), decode)

    return exact(unpacked(a, a_scales, a_decode), unpacked(b, b_scales, b_decode)).to(dtype)


def scaled_mm_kernel(
    a: Tensor, b: Tensor, a_scales: Tensor, b_scales: Tensor, a_decode: Tensor, b_decode: Tensor, dtype: torch.dtype
) -> Tensor:
    """By cuBLASLt. Sizes that it does not take are padded with zeros, for which the scales have room."""
    rows, width = b.shape[0], whole(a.shape[1], STEP)
    left, right = _padded(a, a.shape[0], width), _padded(b, whole(rows, STEP), width)
    found = F.scaled_mm(
        left.view(torch.float4_e2m1fn_x2),
        right.view(torch.float4_e2m1fn_x2).t(),
        [a_scales.view(torch.float8_e4m3fn), a_decode],
        SCALING,
        [b_scales.view(torch.float8_e4m3fn), b_decode],
        SCALING,
        SWIZZLE,
        SWIZZLE,
        output_dtype=dtype,
    )
    return found.narrow(1, 0, rows)


def _padded(codes: Tensor, rows: int, width: int) -> Tensor:
    lacking = width - codes.shape[1], rows - codes.shape[0]
    return F.pad(codes, (0, lacking[0], 0, lacking[1])) if any(lacking) else codes


def _largest(x: Tensor, signs: Tensor | None, factor: Tensor | None, turned: bool, kernels: str) -> Tensor:
    """Largest magnitude of the operand, float32 (1,)."""
    if signs is not None:
        return ops.rotate(x, signs, factor=factor, turned=turned, out=False, kernels=kernels)[1]
    if not x.numel():
        return x.new_zeros(1, dtype=torch.float32)
    low, high = torch.aminmax(x)
    amax = torch.maximum(-low, high).to(torch.float32).view(1)
    return amax if factor is None else amax * factor


def _drawn(draw: Draw | None) -> dict[str, Any]:
    return {} if draw is None else {"key": draw.key, "step": draw.step, "base": draw.base}


_library = torch.library.Library("surogate_nvfp4", "FRAGMENT")
_library.define(
    "scaled_mm(Tensor a, Tensor b, Tensor a_scales, Tensor b_scales, Tensor a_decode, Tensor b_decode, ScalarType dtype) -> Tensor"
)
_library.impl("scaled_mm", scaled_mm, "CPU")
_library.impl("scaled_mm", scaled_mm_kernel, "CUDA")
_library.impl("scaled_mm", lambda a, b, *rest: a.new_empty(a.shape[0], b.shape[0], dtype=rest[-1]), "Meta")
