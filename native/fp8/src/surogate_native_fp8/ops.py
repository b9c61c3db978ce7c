"""The ops: ``torch.ops.surogate_fp8``, and functions that choose between kernel and definition."""

from __future__ import annotations

from pathlib import Path

import torch
from surogate_native_kit import Kernels, Source
from torch import Tensor

from surogate_native_fp8 import reference
from surogate_native_fp8.reference import E4M3, E5M2, padded

CUDA = Path(__file__).with_name("cuda")
CAST_TRANSPOSE, UPDATE_SCALES = Source(CUDA / "cast_transpose.cu"), Source(CUDA / "update_scales.cu")
TILE, THREADS = 64, 256
NAMES = {torch.bfloat16: "bf16", torch.float32: "fp32"}

_library = torch.library.Library("surogate_fp8", "DEF")
_library.define("cast_transpose(Tensor x, Tensor scale, Tensor(a!) amax, bool e5m2, bool transpose) -> (Tensor, Tensor)")
_library.define("update_scales(Tensor(a!) history, Tensor(b!) scale, Tensor(c!) inverse, Tensor largest) -> ()")
_cast_kernels, _scale_kernels = Kernels(CAST_TRANSPOSE), Kernels(UPDATE_SCALES)


def cast_transpose_kernel(x: Tensor, scale: Tensor, amax: Tensor, e5m2: bool, transpose: bool) -> tuple[Tensor, Tensor]:
    """:func:`surogate_native_fp8.reference.cast_transpose` by the kernel: on a GPU, or its body on the host for tensors there."""
    q, turned = _outputs(x, e5m2, transpose)
    x = x.contiguous()
    if x.data_ptr() % 16:
        x = x.clone()  # the loads are of 16 bytes
    name = f"cast_transpose_{NAMES[x.dtype]}_{'e5m2' if e5m2 else 'e4m3'}"
    grid = (-(-q.shape[0] // TILE), -(-q.shape[1] // TILE))
    addresses = (x.data_ptr(), scale.data_ptr(), amax.data_ptr(), q.data_ptr(), turned.data_ptr() if transpose else 0)
    if q.numel():
        _cast_kernels.launch(name, x.device, grid, (THREADS,), *addresses, *x.shape)
    torch.autograd.graph.increment_version(amax)
    return q, turned


def _outputs(x: Tensor, e5m2: bool, transpose: bool) -> tuple[Tensor, Tensor]:
    """Empty results: also what the op gives for tensors without data."""
    rows, columns = map(padded, x.shape)
    dtype = E5M2 if e5m2 else E4M3
    return x.new_empty((rows, columns), dtype=dtype), x.new_empty((columns, rows) if transpose else (0,), dtype=dtype)


def update_scales_kernel(history: Tensor, scale: Tensor, inverse: Tensor, largest: Tensor) -> None:
    """:func:`surogate_native_fp8.reference.update_scales`, likewise."""
    tensors, length = history.shape
    grid = (-(-tensors // THREADS),)
    addresses = [tensor.data_ptr() for tensor in (history, scale, inverse, largest)]
    _scale_kernels.launch("update_scales", history.device, grid, (THREADS,), *addresses, tensors, length)
    for changed in (history, scale, inverse):
        torch.autograd.graph.increment_version(changed)


_library.impl("cast_transpose", reference.cast_transpose, "CPU")
_library.impl("cast_transpose", cast_transpose_kernel, "CUDA")
_library.impl("cast_transpose", lambda x, scale, amax, e5m2, transpose: _outputs(x, e5m2, transpose), "Meta")
_library.impl("update_scales", reference.update_scales, "CPU")
_library.impl("update_scales", update_scales_kernel, "CUDA")
_library.impl("update_scales", lambda history, scale, inverse, largest: None, "Meta")


def cast_transpose(
    x: Tensor, scale: Tensor, amax: Tensor, *, e5m2: bool = False, transpose: bool = False, kernels: str = "auto"
) -> tuple[Tensor, Tensor]:
    """:func:`surogate_native_fp8.reference.cast_transpose` by the kernel of the tensors' device, or by the definition where
    ``kernels = "reference"``."""
    run = reference.cast_transpose if kernels == "reference" else torch.ops.surogate_fp8.cast_transpose
    return run(x, scale, amax, e5m2, transpose)


def update_scales(history: Tensor, scale: Tensor, inverse: Tensor, largest: Tensor, *, kernels: str = "auto") -> None:
    """:func:`surogate_native_fp8.reference.update_scales`, chosen alike."""
    run = reference.update_scales if kernels == "reference" else torch.ops.surogate_fp8.update_scales
    run(history, scale, inverse, largest)


def scaled_mm(
    a: Tensor, b: Tensor, inverse_a: Tensor, inverse_b: Tensor, dtype: torch.dtype, *, fast: bool = False, native: bool = True
) -> Tensor:
    """a (M, K) · b (N, K)^T, divided by both scales. On a GPU with ``native`` by cuBLASLt, which takes both operands with K
    contiguous and all dimensions divisible by 16, and never two of E5M2; ``fast`` lets it sum in less than float32. Otherwise by
    :func:`surogate_native_fp8.reference.scaled_mm`."""
    if not native or a.device.type != "cuda":
        return reference.scaled_mm(a, b, inverse_a, inverse_b, dtype)
    return torch._scaled_mm(a, b.t(), inverse_a, inverse_b, out_dtype=dtype, use_fast_accum=fast)
