"""The kernels: results allocated, bodies launched. For tensors on the CPU the bodies run on the host."""

from __future__ import annotations

import struct
from pathlib import Path

import torch
from surogate_native_kit import Kernels, Source
from torch import Tensor

CUDA = Path(__file__).with_name("cuda")
NORM, SWIGLU, ROTARY = (Source(CUDA / f"{name}.cu") for name in ("norm", "swiglu", "rotary"))
THREADS, CHUNKS = 256, 132
NAMES = {torch.bfloat16: "bf16", torch.float32: "fp32"}
HEADS = (64, 128, 256)
"""Sizes of a head that the rotary kernel takes."""
_norm, _swiglu, _rotary = Kernels(NORM), Kernels(SWIGLU), Kernels(ROTARY)


def _aligned(*tensors: Tensor | None) -> list[Tensor | None]:
    """Contiguous, at addresses for 16-byte loads."""
    whole = [None if tensor is None else tensor.contiguous() for tensor in tensors]
    return [tensor.clone() if tensor is not None and tensor.data_ptr() % 16 else tensor for tensor in whole]


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _bits(value: float) -> int:
    return struct.unpack("I", struct.pack("f", value))[0]


def _touched(amax: Tensor | None) -> None:
    if amax is not None:
        torch.autograd.graph.increment_version(amax)


def copy_of(result: Tensor, scale: Tensor | None, dtype: torch.dtype = torch.float8_e4m3fn) -> Tensor:
    """What the copy of a result is written to."""
    return result.new_empty(0 if scale is None else result.shape, dtype=dtype)


def _emit(copy: Tensor, scale: Tensor | None, amax: Tensor | None) -> list[int]:
    return [0 if scale is None else copy.data_ptr(), _address(scale), _address(amax)]


def norm_outputs(x: Tensor, residual: Tensor | None, scale: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rstd = x.new_empty(x.shape[0], dtype=torch.float32)
    return x.new_empty(0 if residual is None else x.shape), x.new_empty(x.shape), rstd, copy_of(x, scale)


def rms_norm(
    x: Tensor, residual: Tensor | None, weight: Tensor, epsilon: float, scale: Tensor | None, amax: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    found = r, y, rstd, copy = norm_outputs(x, residual, scale)
    held = _aligned(x, residual, weight)
    if x.numel():
        addresses = [*map(_address, held), r.data_ptr(), y.data_ptr(), rstd.data_ptr(), *_emit(copy, scale, amax)]
        _norm.launch(f"rms_norm_{NAMES[x.dtype]}", x.device, (x.shape[0],), (THREADS,), *addresses, x.shape[1], _bits(epsilon))
    _touched(amax)
    return found


def rms_norm_backward(r: Tensor, weight: Tensor, rstd: Tensor, dy: Tensor, dr: Tensor | None) -> tuple[Tensor, Tensor]:
    dx = r.new_empty(r.shape)
    held = _aligned(r, weight, dy, dr)
    if r.numel():
        addresses = [*map(_address, held), rstd.data_ptr(), dx.data_ptr()]
        _norm.launch(f"rms_norm_backward_{NAMES[r.dtype]}", r.device, (r.shape[0],), (THREADS,), *addresses, r.shape[1])
    return dx, weight_gradient(r, dy, rstd)


def weight_gradient(r: Tensor, dy: Tensor, rstd: Tensor) -> Tensor:
    """Sum over rows of dy · r · rstd (N,): chunks of rows by the kernel, in a fixed order, then their sum."""
    (rows, columns), (held, slope) = r.shape, _aligned(r, dy)
    assert held is not None
    assert slope is not None
    each = max(1, -(-rows // CHUNKS))
    chunks = -(-rows // each)
    parts = r.new_empty(chunks, columns, dtype=torch.float32)
    grid = (-(-columns // (THREADS * 16 // r.dtype.itemsize)), chunks)
    if r.numel():
        addresses = (held.data_ptr(), slope.data_ptr(), rstd.data_ptr(), parts.data_ptr())
        _norm.launch(f"rms_norm_weight_{NAMES[r.dtype]}", r.device, grid, (THREADS,), *addresses, rows, columns, each)
    return parts.sum(0)


def swiglu(both: Tensor, scale: Tensor | None, amax: Tensor | None) -> tuple[Tensor, Tensor]:
    rows, columns = both.shape[0], both.shape[1] // 2
    h = both.new_empty(rows, columns)
    copy = copy_of(h, scale)
    (held,) = _aligned(both)
    addresses = [_address(held), h.data_ptr(), *_emit(copy, scale, amax)]
    if h.numel():
        _swiglu.launch(
            f"swiglu_{NAMES[both.dtype]}", both.device, _grid(both, rows, columns), (THREADS,), *addresses, rows, columns
        )
    _touched(amax)
    return h, copy


def swiglu_backward(both: Tensor, dh: Tensor, scale: Tensor | None, amax: Tensor | None) -> tuple[Tensor, Tensor]:
    rows, columns = both.shape[0], both.shape[1] // 2
    found = torch.empty_like(both, memory_format=torch.contiguous_format)
    copy = copy_of(both, scale, torch.float8_e5m2)
    held = _aligned(both, dh)
    addresses = [*map(_address, held), found.data_ptr(), *_emit(copy, scale, amax)]
    if found.numel():
        name, grid = f"swiglu_backward_{NAMES[both.dtype]}", _grid(both, rows, columns)
        _swiglu.launch(name, both.device, grid, (THREADS,), *addresses, rows, columns)
    _touched(amax)
    return found, copy


def _grid(both: Tensor, rows: int, columns: int) -> tuple[int]:
    return (-(-rows * -(-columns // (16 // both.dtype.itemsize)) // THREADS),)


def _heads(x: Tensor) -> tuple[int, int, int, tuple[int]]:
    """(rows, heads, size, grid)."""
    tokens, heads, size = x.shape
    if size not in HEADS:
        raise ValueError(f"heads of {size} values: the kernel takes {', '.join(map(str, HEADS))}")
    rows = tokens * heads
    return rows, heads, size, (-(-rows * (size // 8) // THREADS),)


def head_rotary(
    x: Tensor, weight: Tensor, cosine: Tensor, sine: Tensor, epsilon: float, scale: Tensor | None, amax: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    rows, heads, size, grid = _heads(x)
    y, rstd, copy = x.new_empty(x.shape), x.new_empty(x.shape[:2], dtype=torch.float32), copy_of(x, scale)
    held = _aligned(x, weight, cosine, sine)
    addresses = [*map(_address, held), y.data_ptr(), rstd.data_ptr(), *_emit(copy, scale, amax)]
    if x.numel():
        name = f"head_rotary_{NAMES[x.dtype]}"
        _rotary.launch(name, x.device, grid, (THREADS,), *addresses, rows, heads, size, _bits(epsilon))
    _touched(amax)
    return y, rstd, copy


def head_rotary_backward(
    x: Tensor, weight: Tensor, cosine: Tensor, sine: Tensor, rstd: Tensor, dy: Tensor
) -> tuple[Tensor, Tensor]:
    rows, heads, size, grid = _heads(x)
    dx, dz = x.new_empty(x.shape), x.new_empty(x.shape)
    held = _aligned(x, weight, cosine, sine, dy)
    given = [_address(tensor) for tensor in held]
    if x.numel():
        addresses = [*given[:4], dx.data_ptr(), rstd.data_ptr(), given[4], dz.data_ptr()]
        _rotary.launch(f"head_rotary_backward_{NAMES[x.dtype]}", x.device, grid, (THREADS,), *addresses, rows, heads, size)
    return dx, weight_gradient(x.contiguous().view(rows, size), dz.view(rows, size), rstd.view(rows))
