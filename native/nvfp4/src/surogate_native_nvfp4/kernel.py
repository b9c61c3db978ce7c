"""The kernels: results allocated, bodies launched; for tensors on the CPU the bodies run on the host. The tests compile them for
every architecture and run them on the host; they have not been run on a GPU.

The recipes call them, through :mod:`surogate_native_nvfp4.packed`, on a GPU that has block-scaled matrix units.

An operand is a matrix (rows, columns), blocks along columns, bfloat16 or float32. ``turned``: given is its transpose in memory.
``factor`` (float32 scalar): every value is multiplied by it first. ``signs`` (float32, 16 or 128): it is then rotated as
:func:`surogate_native_nvfp4.rotation.rotate` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from surogate_native_kit import Kernels, Source
from torch import Tensor

CUDA = Path(__file__).with_name("cuda")
QUANTISE, ROTATE, EDEN = (Source(CUDA / f"{name}.cu") for name in ("quantise", "rotate", "eden"))
BLOCK, GROUP, THREADS = 16, 128, 256
HIGH = 32
"""Rows of a tile where an operand is read turned; its columns are 128."""
NAMES = {torch.bfloat16: "bf16", torch.float32: "fp32"}
_quantise, _rotate, _eden = Kernels(QUANTISE), Kernels(ROTATE), Kernels(EDEN)
Results = tuple[Tensor, Tensor, Tensor]


def name_of(start: str, dtype: torch.dtype, **parts: bool) -> str:
    """The kernel for these choices: ``quantise_bf16_four_turned``."""
    return "_".join([start, NAMES[dtype], *(part for part, wanted in parts.items() if wanted)])


def whole(size: int, unit: int) -> int:
    """``size`` rounded up to a multiple of ``unit``."""
    return -(-size // unit) * unit


def grid_of(rows: int, width: int, *, square: bool = False, turned: bool = False) -> tuple[int]:
    """Blocks of threads for an operand whose columns are padded to ``width``."""
    if turned:
        return (-(-rows // HIGH) * -(-width // GROUP),)
    return (-(-(whole(rows, BLOCK) if square else rows) * (width // BLOCK) // THREADS),)


def empty(x: Tensor, rows: int, width: int, fake: bool) -> Results:
    """(codes (rows, width / 2), swizzled scales filled with zeros, q * s (rows, width) or nothing) for a kernel to write."""
    codes = torch.empty(rows, width // 2, dtype=torch.uint8, device=x.device)
    scales = torch.zeros(whole(rows, 128) * whole(width // BLOCK, 4), dtype=torch.uint8, device=x.device)
    return codes, scales, torch.empty(rows if fake else 0, width, dtype=torch.bfloat16, device=x.device)


def shape_of(x: Tensor, turned: bool) -> tuple[int, int]:
    """(rows, columns) of the operand."""
    return (x.shape[1], x.shape[0]) if turned else (x.shape[0], x.shape[1])


def _aligned(x: Tensor) -> Tensor:
    x = x.contiguous()
    return x.clone() if x.data_ptr() % 16 else x  # the loads are of 16 bytes


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None or not tensor.numel() else tensor.data_ptr()


def signed(key: Sequence[int]) -> int:
    """Two words of 32 bits as one of 64 with a sign."""
    both = key[0] | key[1] << 32
    return both if both < 1 << 63 else both - (1 << 64)


def rotate(x: Tensor, signs: Tensor, factor: Tensor | None, turned: bool, out: bool) -> tuple[Tensor, Tensor]:
    """→ (the rotated operand in float32 (rows, columns padded to len(signs)), its largest magnitude, float32 (1,)); without ``out``
    the second alone, beside an empty tensor, which writes nothing else. Raises ValueError for other than 16 or 128 signs."""
    if signs.numel() not in (BLOCK, GROUP):
        raise ValueError(f"a rotation of {signs.numel()} columns: the kernel takes {BLOCK} and {GROUP}")
    (rows, columns), held, kept = shape_of(x, turned), _aligned(x), _aligned(signs)
    width = whole(columns, signs.numel())
    found = torch.empty(rows if out else 0, width, dtype=torch.float32, device=x.device)
    amax = torch.zeros(1, dtype=torch.float32, device=x.device)
    if x.numel():
        name = name_of(f"rotate_{signs.numel()}", x.dtype, turned=turned)
        addresses = [held.data_ptr(), _address(factor), kept.data_ptr(), _address(found), amax.data_ptr()]
        _rotate.launch(name, x.device, grid_of(rows, width, turned=turned), (THREADS,), *addresses, rows, columns)
    return found, amax


def quantise(
    x: Tensor,
    amax: Tensor,
    signs: Tensor | None,
    factor: Tensor | None,
    turned: bool,
    square: bool,
    four_over_six: bool,
    key: Sequence[int],
    step: Tensor | None,
    base: int,
    fake: bool,
) -> Results:
    """An operand and its largest magnitude after rotation (float32, on its device) → packed codes (rows, columns padded to 16,
    / 2), scales as :func:`surogate_native_nvfp4.formats.swizzle` orders them, and q * s in bfloat16 if ``fake``, else nothing.

    With ``step`` (int64, on the device) rounding is stochastic, by the words that :func:`surogate_native_nvfp4.draws.words` gives
    for ``key`` and it, from word ``base``, a multiple of 4, on. Raises ValueError for what the kernel does not combine.
    """
    if square and (signs is not None or step is not None):
        raise ValueError("blocks of 16 x 16 are not rotated, and rounded to nearest")
    if signs is not None and signs.numel() != BLOCK:
        raise ValueError(f"a rotation of {signs.numel()} columns: the quantising kernel takes {BLOCK}")
    rows, columns = shape_of(x, turned)
    width = whole(columns, BLOCK)
    name = name_of("quantise", x.dtype, square=square, four=four_over_six, turned=turned)
    grid = grid_of(rows, width, square=square, turned=turned)
    return _launch(_quantise, name, grid, (rows, columns, width), (x, factor, signs, amax), (key, step, base), fake)


def quantise_eden(
    x: Tensor,
    amax: Tensor,
    signs: Tensor | None,
    factor: Tensor | None,
    turned: bool,
    key: Sequence[int],
    step: Tensor | None,
    base: int,
    fake: bool,
) -> Results:
    """MS-EDEN of an operand, likewise; columns are padded to 128, the words are for the scales."""
    if signs is not None and signs.numel() != GROUP:
        raise ValueError(f"a rotation of {signs.numel()} columns: MS-EDEN's kernel takes {GROUP}")
    rows, columns = shape_of(x, turned)
    width = whole(columns, GROUP)
    grid, name = grid_of(rows, width, turned=turned), name_of("eden", x.dtype, turned=turned)
    return _launch(_eden, name, grid, (rows, columns, width), (x, factor, signs, amax), (key, step, base), fake)


def _launch(
    kernels: Kernels,
    name: str,
    grid: tuple[int],
    shape: tuple[int, int, int],
    given: tuple[Tensor, Tensor | None, Tensor | None, Tensor],
    draw: tuple[Sequence[int], Tensor | None, int],
    fake: bool,
) -> Results:
    (rows, columns, width), (x, factor, signs, amax), (key, step, base) = shape, given, draw
    held, kept = _aligned(x), None if signs is None else _aligned(signs)
    results = empty(x, rows, width, fake)
    if x.numel():
        drawn = (0, 0) if step is None else (signed(key), step.data_ptr())
        addresses = [held.data_ptr(), _address(factor), _address(kept), amax.data_ptr(), *map(_address, results)]
        kernels.launch(name, x.device, grid, (THREADS,), *addresses, rows, columns, *drawn, base)
    return results
