"""The ops: ``torch.ops.surogate_dequantise``, by the kernel on a GPU and by the definition elsewhere; meta tensors get shapes."""

from __future__ import annotations

from pathlib import Path

import torch
from surogate_native_kit import Kernels, Source
from torch import Tensor

from surogate_native_dequantise import reference

DEQUANTISE = Source(Path(__file__).with_name("cuda") / "dequantise.cu")
THREADS = 256
NAMES = {torch.bfloat16: "bf16", torch.float32: "fp32"}
_kernels = Kernels(DEQUANTISE)

_library = torch.library.Library("surogate_dequantise", "DEF")
_library.define("nf4(Tensor codes, Tensor absmax, int values, int block, ScalarType dtype) -> Tensor")
_library.define("tiles(Tensor codes, Tensor scales, int tile, ScalarType dtype) -> Tensor")


def _aligned(codes: Tensor) -> Tensor:
    codes = codes.contiguous()
    return codes.clone() if codes.data_ptr() % 16 else codes  # the loads are of 16 bytes


def nf4_kernel(codes: Tensor, absmax: Tensor, values: int, block: int, dtype: torch.dtype) -> Tensor:
    """:func:`surogate_native_dequantise.reference.nf4` by the kernel: on a GPU, or its body on the host for tensors there. Raises
    ValueError for a block that 32 does not divide."""
    if block % 32:
        raise ValueError(f"blocks of {block} values: the kernel takes multiples of 32")
    out, held = codes.new_empty(values, dtype=dtype), _aligned(codes)
    levels = reference.levels(codes.device)
    addresses = (held.data_ptr(), absmax.data_ptr(), levels.data_ptr(), out.data_ptr())
    if values:
        grid = (-(-values // (32 * THREADS)),)
        _kernels.launch(f"nf4_{NAMES[dtype]}", codes.device, grid, (THREADS,), *addresses, values, block)
    return out


def tiles_kernel(codes: Tensor, scales: Tensor, tile: int, dtype: torch.dtype) -> Tensor:
    """:func:`surogate_native_dequantise.reference.tiles`, likewise. Raises ValueError for a tile that 16 does not divide."""
    if tile % 16:
        raise ValueError(f"tiles of {tile} values: the kernel takes multiples of 16")
    (rows, columns), held = codes.shape, _aligned(codes)
    out = codes.new_empty(rows, columns, dtype=dtype)
    if out.numel():
        grid = (-(-rows * -(-columns // 16) // THREADS),)
        addresses = (held.data_ptr(), scales.data_ptr(), out.data_ptr())
        _kernels.launch(f"tiles_{NAMES[dtype]}", codes.device, grid, (THREADS,), *addresses, rows, columns, tile)
    return out


_library.impl("nf4", reference.nf4, "CPU")
_library.impl("nf4", nf4_kernel, "CUDA")
_library.impl("nf4", lambda codes, absmax, values, block, dtype: codes.new_empty(values, dtype=dtype), "Meta")
_library.impl("tiles", reference.tiles, "CPU")
_library.impl("tiles", tiles_kernel, "CUDA")
_library.impl("tiles", lambda codes, scales, tile, dtype: codes.new_empty(codes.shape, dtype=dtype), "Meta")


def nf4(codes: Tensor, absmax: Tensor, values: int, block: int, dtype: torch.dtype) -> Tensor:
    """:func:`surogate_native_dequantise.reference.nf4` by the kernel of the tensors' device."""
    return torch.ops.surogate_dequantise.nf4(codes, absmax, values, block, dtype)


def tiles(codes: Tensor, scales: Tensor, tile: int, dtype: torch.dtype) -> Tensor:
    """:func:`surogate_native_dequantise.reference.tiles`, likewise."""
    return torch.ops.surogate_dequantise.tiles(codes, scales, tile, dtype)
