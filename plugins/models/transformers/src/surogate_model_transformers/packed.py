"""``surogate::packed_attention``: causal attention on the CPU, document by document.

A boolean mask makes the CPU flash kernel do all S² of a packed row, and the half above the diagonal too. Here each document is a
call of its own, causal in the kernel, so the work is the sum of the documents' squares, halved. Results are written into full-size
tensors, which autograd could not do without a full-size zero gradient for each document; hence an operator with its own backward.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

LONG_ROW = 256
"""Positions of a row from which this is faster than one boolean mask on ordinary mixtures of documents (at 512 the whole step of a
10M model gains 10 % in float32 and 7 % in bfloat16); below it the calls cost more than they save."""
EXACT_BELOW = 512
"""Positions of a document below which the kernel's backward takes less time in float32 than in bfloat16, conversion included."""

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default
_library = torch.library.Library("surogate", "FRAGMENT")
_library.define("packed_attention(Tensor q, Tensor k, Tensor v, Tensor ids, float scale, int window) -> (Tensor, Tensor)")
_library.define(
    "packed_attention_backward(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor ids, Tensor out, Tensor lse, float scale, "
    "int window) -> (Tensor, Tensor, Tensor)"
)


def packed_attention(q: Tensor, k: Tensor, v: Tensor, ids: Tensor, scale: float, window: int = 0) -> Tensor:
    """Causal attention within runs of equal ``ids`` (B, S): q (B, H, S, D), k and v (B, G, S, D) → (B, S, H, D).

    ``window`` limits a query to itself and the ``window - 1`` positions before it; 0 is no limit. CPU only, differentiable.
    """
    return torch.ops.surogate.packed_attention(q, k, v, ids, scale, window)[0].transpose(1, 2)


def _documents(ids: Tensor) -> Iterator[tuple[int, slice]]:
    """(row, positions) of each document."""
    length = ids.shape[1]
    for row in range(ids.shape[0]):
        cuts = [0, *(torch.nonzero(ids[row, 1:] != ids[row, :-1]).flatten() + 1).tolist(), length]
        yield from ((row, slice(start, stop)) for start, stop in pairwise(cuts))


def _bias(length: int, window: int, like: Tensor, kept: dict[int, Tensor]) -> Tensor | None:
    """The kernel knows no window: documents longer than it take an additive mask (S, S)."""
    if not window or length <= window:
        return None
    if length not in kept:
        place = torch.arange(length)
        distance = place[:, None] - place[None, :]
        seen = (distance >= 0) & (distance < window)
        kept[length] = torch.zeros(length, length, dtype=like.dtype).masked_fill_(~seen, float("-inf"))
    return kept[length]


def _like(x: Tensor) -> Tensor:
    """Empty (B, H, S, D) laid out as (B, S, H, D), as the kernel's own outputs are and the model's reshape wants them."""
    batch, heads, length, width = x.shape
    return torch.empty(batch, length, heads, width, dtype=x.dtype, device=x.device).transpose(1, 2)


def _forward(q: Tensor, k: Tensor, v: Tensor, ids: Tensor, scale: float, window: int) -> tuple[Tensor, Tensor]:
    out = _like(q)
    lse = torch.empty(q.shape[0], q.shape[2], q.shape[1], dtype=_lse_dtype(q)).transpose(1, 2)
    kept: dict[int, Tensor] = {}
    for row, at in _documents(ids):
        bias = _bias(at.stop - at.start, window, q, kept)
        one = slice(row, row + 1)
        part = _flash(q[one, :, at], k[one, :, at], v[one, :, at], 0.0, bias is None, attn_mask=bias, scale=scale)
        out[one, :, at], lse[one, :, at] = part
    return out, lse


def _backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, ids: Tensor, out: Tensor, lse: Tensor, scale: float, window: int
) -> tuple[Tensor, Tensor, Tensor]:
    grads = _like(q), _like(k), _like(v)
    kept: dict[int, Tensor] = {}
    for row, at in _documents(ids):
        bias = _bias(at.stop - at.start, window, q, kept)
        here = (slice(row, row + 1), slice(None), at)
        inputs = tuple(tensor[here] for tensor in (grad, q, k, v, out, lse))
        if q.dtype == torch.bfloat16 and at.stop - at.start < EXACT_BELOW:
            inputs = tuple(tensor.float() for tensor in inputs)
            bias = None if bias is None else bias.float()
        for whole, part in zip(grads, _flash_backward(*inputs, 0.0, bias is None, attn_mask=bias, scale=scale), strict=True):
            whole[here] = part
    return grads


def _lse_dtype(q: Tensor) -> torch.dtype:
    return torch.float64 if q.dtype == torch.float64 else torch.float32


def _forward_fake(q: Tensor, k: Tensor, v: Tensor, ids: Tensor, scale: float, window: int) -> tuple[Tensor, Tensor]:
    return _like(q), q.new_empty(q.shape[0], q.shape[2], q.shape[1], dtype=_lse_dtype(q)).transpose(1, 2)


def _backward_fake(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, ids: Tensor, out: Tensor, lse: Tensor, scale: float, window: int
) -> tuple[Tensor, Tensor, Tensor]:
    return _like(q), _like(k), _like(v)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:4], *output)
    ctx.scale, ctx.window = inputs[4:]
    ctx.mark_non_differentiable(output[1])


def _gradients(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    q, k, v, ids, out, lse = ctx.saved_tensors
    grads = torch.ops.surogate.packed_attention_backward(grad, q, k, v, ids, out, lse, ctx.scale, ctx.window)
    return (*grads, None, None, None)


_library.impl("packed_attention", _forward, "CPU")
_library.impl("packed_attention_backward", _backward, "CPU")
torch.library.register_fake("surogate::packed_attention", _forward_fake, lib=_library)
torch.library.register_fake("surogate::packed_attention_backward", _backward_fake, lib=_library)
torch.library.register_autograd("surogate::packed_attention", _gradients, setup_context=_keep, lib=_library)
