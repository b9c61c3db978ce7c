"""The quantising kernel on a GPU: compiled for every architecture and run on the host by the tests, not run on a GPU.

It is not in the path of the recipes: without block-scaled matrix products they are emulated from :func:`quantise`, whose bytes the
kernel's equal.
"""

from __future__ import annotations

from pathlib import Path

import torch
from surogate_native_kit import Kernels, Source
from torch import Tensor

CUDA = Path(__file__).with_name("cuda")
QUANTISE = Source(CUDA / "quantise.cu")
BLOCK, THREADS = 16, 256
NAMES = {torch.bfloat16: "bf16", torch.float32: "fp32"}
_kernels = Kernels(QUANTISE)


def name_of(dtype: torch.dtype, *, square: bool = False, four_over_six: bool = False, drawn: bool = False) -> str:
    """The kernel for these choices."""
    parts = ["quantise", NAMES[dtype], *(["square"] if square else []), *(["four"] if four_over_six else [])]
    return "_".join([*parts, *(["drawn"] if drawn else [])])


def grid_of(rows: int, columns: int, square: bool) -> int:
    """Blocks of threads for a matrix."""
    high = -(-rows // BLOCK) * BLOCK if square else rows
    return -(-high * -(-columns // BLOCK) // THREADS)


def empty(x: Tensor, fake: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """(codes, swizzled scales filled with zeros, q * s) for the kernel to write."""
    rows, blocks = x.shape[0], -(-x.shape[1] // BLOCK)
    codes = torch.empty(rows, blocks * 8, dtype=torch.uint8, device=x.device)
    scales = torch.zeros(-(-rows // 128) * -(-blocks // 4) * 512, dtype=torch.uint8, device=x.device)
    return codes, scales, torch.empty(rows, blocks * BLOCK, dtype=torch.bfloat16, device=x.device) if fake else None


def quantise_on_gpu(
    x: Tensor,
    amax: Tensor,
    *,
    square: bool = False,
    four_over_six: bool = False,
    key: tuple[int, int] | None = None,
    step: Tensor | None = None,
    base: int = 0,
    fake: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """A matrix (rows, columns) of bfloat16 or float32 and its largest magnitude (float32, on its device) → packed codes (rows,
    columns padded to 16, / 2), scales as :func:`surogate_native_nvfp4.formats.swizzle` orders them, and q * s in bfloat16 if
    ``fake``.

    With ``key`` rounding is stochastic, by the words that :func:`surogate_native_nvfp4.draws.words` gives for ``key`` and ``step``
    (int64, on the device) from word ``base``, a multiple of 4, on.
    """
    x = x.contiguous()
    if x.data_ptr() % 16:
        x = x.clone()  # the loads are of 16 bytes
    codes, scales, values = empty(x, fake)
    if x.numel():
        name = name_of(x.dtype, square=square, four_over_six=four_over_six, drawn=key is not None)
        addresses = [tensor.data_ptr() for tensor in (x, amax, codes, scales)]
        packed = 0 if key is None else key[0] | key[1] << 32
        _kernels.launch(
            name,
            x.device,
            (grid_of(x.shape[0], x.shape[1], square),),
            (THREADS,),
            *addresses,
            0 if values is None else values.data_ptr(),
            *x.shape,
            packed if packed < 1 << 63 else packed - (1 << 64),
            0 if step is None else step.data_ptr(),
            base,
        )
    return codes, scales, values
