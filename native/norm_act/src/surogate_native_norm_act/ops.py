"""The ops: ``torch.ops.surogate_norm_act``, by the kernel on a GPU and by the definition elsewhere; meta tensors get shapes."""

from __future__ import annotations

import torch
from torch import Tensor

from surogate_native_norm_act import kernel, reference

_library = torch.library.Library("surogate_norm_act", "DEF")
_EMIT = "Tensor? scale, Tensor(a!)? amax"
_library.define(f"rms_norm(Tensor x, Tensor? residual, Tensor weight, float epsilon, {_EMIT}) -> (Tensor, Tensor, Tensor, Tensor)")
_library.define("rms_norm_backward(Tensor r, Tensor weight, Tensor rstd, Tensor dy, Tensor? dr) -> (Tensor, Tensor)")
_library.define(f"swiglu(Tensor both, {_EMIT}) -> (Tensor, Tensor)")
_library.define(f"swiglu_backward(Tensor both, Tensor dh, {_EMIT}) -> (Tensor, Tensor)")
_library.define(
    f"head_rotary(Tensor x, Tensor weight, Tensor cosine, Tensor sine, float epsilon, {_EMIT}) -> (Tensor, Tensor, Tensor)"
)
_library.define(
    "head_rotary_backward(Tensor x, Tensor weight, Tensor cosine, Tensor sine, Tensor rstd, Tensor dy) -> (Tensor, Tensor)"
)


def _own(run):  # type: ignore[no-untyped-def]
    """An op may not return what it was given, or two views of one tensor."""

    def op(*given):  # type: ignore[no-untyped-def]
        return tuple(tensor.contiguous() for tensor in run(*given))

    return op


_META = {
    "rms_norm": lambda x, residual, weight, epsilon, scale, amax: kernel.norm_outputs(x, residual, scale),
    "rms_norm_backward": lambda r, weight, rstd, dy, dr: (r.new_empty(r.shape), r.new_empty(r.shape[1], dtype=torch.float32)),
    "swiglu": lambda both, scale, amax: (
        both.new_empty(both.shape[0], both.shape[1] // 2),
        kernel.copy_of(both[:, both.shape[1] // 2 :], scale),
    ),
    "swiglu_backward": lambda both, dh, scale, amax: (
        both.new_empty(both.shape),
        kernel.copy_of(both, scale, torch.float8_e5m2),
    ),
    "head_rotary": lambda x, weight, cosine, sine, epsilon, scale, amax: (
        x.new_empty(x.shape),
        x.new_empty(x.shape[:2], dtype=torch.float32),
        kernel.copy_of(x, scale),
    ),
    "head_rotary_backward": lambda x, weight, cosine, sine, rstd, dy: (
        x.new_empty(x.shape),
        x.new_empty(x.shape[2], dtype=torch.float32),
    ),
}
for _name, _meta in _META.items():
    _library.impl(_name, _own(getattr(reference, _name)), "CPU")
    _library.impl(_name, getattr(kernel, _name), "CUDA")
    _library.impl(_name, _meta, "Meta")


def rms_norm(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    epsilon: float,
    *,
    scale: Tensor | None = None,
    amax: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """:func:`surogate_native_norm_act.reference.rms_norm` by the kernel of the tensors' device."""
    return torch.ops.surogate_norm_act.rms_norm(x, residual, weight, epsilon, scale, amax)


def rms_norm_backward(r: Tensor, weight: Tensor, rstd: Tensor, dy: Tensor, dr: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """:func:`surogate_native_norm_act.reference.rms_norm_backward`, likewise."""
    return torch.ops.surogate_norm_act.rms_norm_backward(r, weight, rstd, dy, dr)


def swiglu(both: Tensor, *, scale: Tensor | None = None, amax: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """:func:`surogate_native_norm_act.reference.swiglu`, likewise."""
    return torch.ops.surogate_norm_act.swiglu(both, scale, amax)


def swiglu_backward(both: Tensor, dh: Tensor, *, scale: Tensor | None = None, amax: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """:func:`surogate_native_norm_act.reference.swiglu_backward`, likewise."""
    return torch.ops.surogate_norm_act.swiglu_backward(both, dh, scale, amax)


def head_rotary(
    x: Tensor,
    weight: Tensor,
    cosine: Tensor,
    sine: Tensor,
    epsilon: float,
    *,
    scale: Tensor | None = None,
    amax: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`surogate_native_norm_act.reference.head_rotary`, likewise; on a GPU heads of 64, 128 or 256 values."""
    return torch.ops.surogate_norm_act.head_rotary(x, weight, cosine, sine, epsilon, scale, amax)


def head_rotary_backward(
    x: Tensor, weight: Tensor, cosine: Tensor, sine: Tensor, rstd: Tensor, dy: Tensor
) -> tuple[Tensor, Tensor]:
    """:func:`surogate_native_norm_act.reference.head_rotary_backward`, likewise."""
    return torch.ops.surogate_norm_act.head_rotary_backward(x, weight, cosine, sine, rstd, dy)
