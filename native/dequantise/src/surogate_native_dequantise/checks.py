"""Unpacking of frozen weights, for ``make gpu-check``."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from surogate_native_kit.checks import Check, Shape
from torch import Tensor

from surogate_native_dequantise import ops, reference

BLOCK, TILE = 64, 128


def _nf4_inputs(shape: Shape, draw: Callable[..., Tensor]) -> Sequence[Tensor]:
    (values,) = shape
    return (draw(-(-values // 2)) * 1e4).to(torch.int32).to(torch.uint8), draw(-(-values // BLOCK)).abs()


def _tile_inputs(shape: Shape, draw: Callable[..., Tensor]) -> Sequence[Tensor]:
    rows, columns = shape
    return (draw(*shape) * 60).clamp(-448, 448).to(torch.float8_e4m3fn), draw(-(-rows // TILE), -(-columns // TILE)).abs()


def _nf4(run: Callable[..., Tensor], dtype: torch.dtype) -> Callable[..., Sequence[Tensor]]:
    return lambda codes, absmax: [run(codes, absmax, min(2 * codes.numel(), absmax.numel() * BLOCK), BLOCK, dtype)]


def _tiles(run: Callable[..., Tensor], dtype: torch.dtype) -> Callable[..., Sequence[Tensor]]:
    return lambda codes, scales: [run(codes, scales, TILE, dtype)]


CHECKS = (
    *(
        Check(
            name=f"nf4 {ops.NAMES[dtype]}",
            inputs=_nf4_inputs,
            kernel=_nf4(ops.nf4_kernel, dtype),
            reference=_nf4(reference.nf4, dtype),
            shapes=((2,), (70,), (8192,), (20_000,)),
            large=(1 << 26,),
            traffic=lambda shape, size=dtype.itemsize: shape[0] // 2 + shape[0] // 16 + shape[0] * size,  # type: ignore[misc]
            baseline=("torch", _nf4(reference.nf4, dtype)),
        )
        for dtype in (torch.bfloat16, torch.float32)
    ),
    *(
        Check(
            name=f"fp8_block {ops.NAMES[dtype]}",
            inputs=_tile_inputs,
            kernel=_tiles(ops.tiles_kernel, dtype),
            reference=_tiles(reference.tiles, dtype),
            shapes=((1, 1), (130, 272), (5, 33)),
            large=(8192, 8192),
            traffic=lambda shape, size=dtype.itemsize: shape[0] * shape[1] * (1 + size),  # type: ignore[misc]
            baseline=("torch", _tiles(reference.tiles, dtype)),
        )
        for dtype in (torch.bfloat16, torch.float32)
    ),
)
