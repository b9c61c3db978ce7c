"""``attn_bwd_chunks``: the backward pass of attention in parts.

Heads that share a key head, and rows of a batch, do not depend on each other. So nothing but query, key and value is kept, and the
backward pass goes through parts of heads (of rows too, when there are more parts than key heads): it computes a part's attention
again, and its gradients, before it turns to the next. Scores, attention weights and the kernels' own scratch exist for one part at
a time; what that costs is one more forward pass of attention.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

Compute = Callable[[Tensor, Tensor, Tensor, Tensor | None, slice], Tensor]
"""``f(q, k, v, sinks, rows) -> out``: q (b, h, S, D), k and v (b, g, P + S, D), sinks (h,) or None, out (b, S, h, D), of
``rows``."""


def chunked(compute: Compute, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, chunks: int) -> Tensor:
    """What ``compute`` gives for all rows, with a backward pass in at most ``chunks`` parts (at most one a key head and row)."""
    return _Chunked.apply(compute, chunks, q, k, v, sinks)


def _parts(rows: int, groups: int, chunks: int) -> Iterator[tuple[slice, slice]]:
    """(rows, key heads) of each part."""
    heads = -(-groups // min(chunks, groups))
    length = -(-rows // max(1, chunks // -(-groups // heads)))
    for row in range(0, rows, length):
        for head in range(0, groups, heads):
            yield slice(row, row + length), slice(head, head + heads)


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, compute: Compute, chunks: int, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None) -> Tensor:
        ctx.save_for_backward(q, k, v, sinks)
        ctx.compute, ctx.chunks = compute, chunks
        return compute(q, k, v, sinks, slice(None))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        q, k, v, sinks = ctx.saved_tensors
        needed = ctx.needs_input_grad[2:]
        wholes = [torch.empty_like(x) if need else None for x, need in zip((q, k, v), needed[:3], strict=True)]
        grad_sinks = torch.zeros_like(sinks) if needed[3] else None
        shared = q.shape[1] // k.shape[1]
        for rows, groups in _parts(q.shape[0], k.shape[1], ctx.chunks):
            heads = slice(groups.start * shared, groups.stop * shared)
            cuts = (q[rows, heads], k[rows, groups], v[rows, groups], None if sinks is None else sinks[heads])
            inputs = [None if x is None else x.detach().requires_grad_(need) for x, need in zip(cuts, needed, strict=True)]
            with torch.enable_grad():
                out = ctx.compute(*inputs, rows)
            wanted = [x for x in inputs if x is not None and x.requires_grad]
            found = iter(torch.autograd.grad(out, wanted, grad[rows, :, heads]))
            for whole, places in zip(wholes, (heads, groups, groups), strict=True):
                if whole is not None:
                    whole[rows, places] = next(found)
            if grad_sinks is not None:
                grad_sinks[heads] += next(found)
            del out, found
        return None, None, *wholes, grad_sinks
