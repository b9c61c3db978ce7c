"""``surogate::packed_attention``: causal attention on the CPU, document by document.

A boolean mask makes the CPU flash kernel do all S² of a packed row, and the half above the diagonal too. Here each document is a
call of its own: of the kernel, causal in it, so that the work is the sum of the documents' squares, halved; or, for bfloat16
documents that are not long, of batched matrix products around a float32 softmax, whose weights are kept for the backward pass.
Results are written into full-size tensors, which autograd could not do without a full-size zero gradient for each document; hence
an operator with its own backward.
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
KEPT = 512
"""Positions of a bfloat16 document up to which its attention weights are kept for the backward pass. The kernel's backward does
bfloat16 matrix products at the speed of float32 or less; torch's batched ones use the processor's instructions for them."""

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default
_library = torch.library.Library("surogate", "FRAGMENT")
_library.define("packed_attention(Tensor q, Tensor k, Tensor v, Tensor ids, float scale, int window) -> (Tensor, Tensor, Tensor)")
_library.define(
    "packed_attention_backward(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor ids, Tensor out, Tensor lse, "
    "Tensor weights, float scale, int window) -> (Tensor, Tensor, Tensor)"
)


def packed_attention(q: Tensor, k: Tensor, v: Tensor, ids: Tensor, scale: float, window: int = 0) -> Tensor:
    """Causal attention within runs of equal ``ids`` (B, S): q (B, H, S, D), k and v (B, G, S, D) → (B, S, H, D).

    ``window`` limits a query to itself and the ``window - 1`` positions before it; 0 is no limit. CPU only, differentiable.
    """
    return torch.ops.surogate.packed_attention(q, k, v, ids, scale, window)[0].transpose(1, 2)


def documents(ids: Tensor) -> Iterator[tuple[int, slice]]:
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


def _forward(q: Tensor, k: Tensor, v: Tensor, ids: Tensor, scale: float, window: int) -> tuple[Tensor, Tensor, Tensor]:
    out, lse, weights = _like(q), _lse(q), _weights(q)
    kept: dict[int, Tensor] = {}
    unseen = _unseen(min(KEPT, q.shape[2]), window) if q.dtype == torch.bfloat16 else None
    for row, at in documents(ids):
        if unseen is not None and at.stop - at.start <= KEPT:
            out[row, :, at] = _short_forward(q[row, :, at], k[row, :, at], v[row, :, at], _own(weights, row, at), unseen, scale)
            continue
        bias = _bias(at.stop - at.start, window, q, kept)
        one = slice(row, row + 1)
        part = _flash(q[one, :, at], k[one, :, at], v[one, :, at], 0.0, bias is None, attn_mask=bias, scale=scale)
        out[one, :, at], lse[one, :, at] = part
    return out, lse, weights


def _short_forward(q: Tensor, k: Tensor, v: Tensor, weights: Tensor, unseen: Tensor, scale: float) -> Tensor:
    """One bfloat16 document: q (H, L, D), k and v (G, L, D) → (H, L, D). Scores and softmax are float32; what softmax gives is
    written to ``weights`` (H, L, L) and used as bfloat16."""
    length = q.shape[1]
    scores = torch.bmm(q.float(), _shared(k, q).float().transpose(1, 2)).mul_(scale).add_(unseen[:length, :length])
    return torch.bmm(weights.copy_(torch.softmax(scores, -1)), _shared(v, q))


def _short_backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, weights: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    slope = torch.bmm(grad, _shared(v, q).transpose(1, 2))
    slope = torch.ops.aten._softmax_backward_data(slope, weights, -1, torch.bfloat16)
    grad_k, grad_v = torch.bmm(slope.transpose(1, 2), q), torch.bmm(weights.transpose(1, 2), grad)
    groups = k.shape[0]
    if groups != q.shape[0]:
        grad_k, grad_v = (x.unflatten(0, (groups, -1)).sum(1) for x in (grad_k, grad_v))
    return torch.bmm(slope, _shared(k, q)).mul_(scale), grad_k.mul_(scale), grad_v


def _shared(x: Tensor, q: Tensor) -> Tensor:
    """(G, L, D) → (H, L, D): each key head for all query heads that share it."""
    return x if len(x) == len(q) else x.repeat_interleave(len(q) // len(x), 0)


def _unseen(length: int, window: int) -> Tensor:
    """(length, length) float32: 0 where the query sees the key, -inf elsewhere."""
    seen = torch.ones(length, length, dtype=torch.bool).tril_()
    if window:
        seen.triu_(1 - window)
    return torch.zeros(length, length).masked_fill_(~seen, float("-inf"))


def _backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    ids: Tensor,
    out: Tensor,
    lse: Tensor,
    weights: Tensor,
    scale: float,
    window: int,
) -> tuple[Tensor, Tensor, Tensor]:
    grads = _like(q), _like(k), _like(v)
    kept: dict[int, Tensor] = {}
    for row, at in documents(ids):
        if q.dtype == torch.bfloat16 and at.stop - at.start <= KEPT:
            parts = [tensor[row, :, at] for tensor in (grad, q, k, v)]
            short = _short_backward(parts[0], parts[1], parts[2], parts[3], _own(weights, row, at), scale)
            for whole, part in zip(grads, short, strict=True):
                whole[row, :, at] = part
            continue
        bias = _bias(at.stop - at.start, window, q, kept)
        here = (slice(row, row + 1), slice(None), at)
        inputs = tuple(tensor[here] for tensor in (grad, q, k, v, out, lse))
        for whole, part in zip(grads, _flash_backward(*inputs, 0.0, bias is None, attn_mask=bias, scale=scale), strict=True):
            whole[here] = part
    return grads


def _lse(q: Tensor) -> Tensor:
    """Empty (B, H, S), laid out as the kernel's."""
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    return q.new_empty(q.shape[0], q.shape[2], q.shape[1], dtype=dtype).transpose(1, 2)


def _weights(q: Tensor) -> Tensor:
    """Empty (B, S, H · (KEPT or S)): room for the attention weights of bfloat16 documents, found by :func:`_own`. What no document
    needs is never touched."""
    batch, heads, length, _ = q.shape
    return q.new_empty(batch, length, heads * min(KEPT, length) if q.dtype == torch.bfloat16 else 0)


def _own(weights: Tensor, row: int, at: slice) -> Tensor:
    """(H, L, L), contiguous, within the room of the document's own positions: strided, the products with its transpose would take
    three times as long."""
    length, room = at.stop - at.start, weights.shape[2]
    heads = room // min(KEPT, weights.shape[1])
    return weights[row, at].view(-1)[: heads * length * length].view(heads, length, length)


def _forward_fake(q: Tensor, k: Tensor, v: Tensor, ids: Tensor, scale: float, window: int) -> tuple[Tensor, Tensor, Tensor]:
    return _like(q), _lse(q), _weights(q)


def _backward_fake(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    ids: Tensor,
    out: Tensor,
    lse: Tensor,
    weights: Tensor,
    scale: float,
    window: int,
) -> tuple[Tensor, Tensor, Tensor]:
    return _like(q), _like(k), _like(v)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:4], *output)
    ctx.scale, ctx.window = inputs[4:]
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)  # else zeros in the shape of all attention weights are made for nothing


def _gradients(ctx: Any, grad: Tensor, *_: None) -> tuple[Tensor | None, ...]:
    q, k, v, ids, out, lse, weights = ctx.saved_tensors
    backward = torch.ops.surogate.packed_attention_backward
    return (*backward(grad, q, k, v, ids, out, lse, weights, ctx.scale, ctx.window), None, None, None)


_library.impl("packed_attention", _forward, "CPU")
_library.impl("packed_attention_backward", _backward, "CPU")
_library.impl("packed_attention", _forward_fake, "Meta")  # register_fake looks for its caller in every loaded module: 0.1 s
_library.impl("packed_attention_backward", _backward_fake, "Meta")
torch.library.register_autograd("surogate::packed_attention", _gradients, setup_context=_keep, lib=_library)
