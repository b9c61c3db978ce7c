"""Last hidden states → weighted cross-entropy, without ever holding the logits of all tokens.

The head's output is the largest tensor of a step: T·V values. :class:`_HeadLoss` goes through the tokens in chunks of rows, and
for each chunk computes logits, loss and the gradient with respect to the logits at once, from which the gradients of the hidden
states and of the head follow; its backward only scales them. (Liger Kernel, arXiv 2410.10989, section 3.2, has the idea.)
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from surogate_native_loss import cross_entropy_
from surogate_native_loss.kernel import NAMES
from torch import Tensor, nn

from surogate_core.errors import ModelError
from surogate_model_transformers.attention import decode, documents_of, hidden_states
from surogate_model_transformers.slots import plain
from surogate_model_transformers.virtual import tokens_of
from surogate_model_transformers.vision import model_inputs

CHUNK_BYTES = 1 << 24
"""Bytes of the float32 logits of one chunk on the CPU; smaller ones cost a pass over the head's gradient each. A GPU takes
`CHUNK_BYTES_GPU`."""
CHUNK_BYTES_GPU = 1 << 30
KERNEL_ON = ("cuda", "meta")
"""Where the kernel is used: a GPU, and one that is planned where there is none."""


def run_hidden(model: Any, batch: Any, chunks: int = 1) -> Tensor:
    """(B, S, H) last hidden states of a :class:`~surogate_pipeline_packed.Batch`, documents isolated. ``chunks``: the parts of
    attention's backward pass."""
    given = model_inputs(model, batch)
    return hidden_states(model, input_ids=batch.input_ids, document_ids=batch.document_ids, chunks=chunks, **given)


def logits(model: Any, batch: Any) -> Tensor:
    """(B, S, V), through the model's own forward. For tests and evaluation by hand: it holds all of them."""
    if tokens_of(model) is not None:
        raise ModelError("virtual tokens need a model whose head is a plain linear layer", where=type(model).__name__)
    documents = documents_of(model, batch.document_ids)
    return model(input_ids=batch.input_ids, **model_inputs(model, batch), use_cache=False, documents=documents).logits


def batch_loss(model: Any, batch: Any, chunks: int = 1, attention_chunks: int = 1, kernels: str = "auto") -> Tensor:
    """Sum over the batch of weight × cross-entropy, nats: a differentiable scalar in float32, or float64 for float64 modules.
    ``chunks`` and ``kernels`` as in :func:`head_loss`, ``attention_chunks`` those of attention's backward pass."""
    if not getattr(model, "_surogate_head", True):
        everything = logits(model, batch)
        exact = _exact(everything)
        each = F.cross_entropy(everything.flatten(0, 1).to(exact), batch.labels.flatten(), reduction="none", ignore_index=-100)
        return (each * batch.weights.flatten()).sum()
    x = run_hidden(model, batch, attention_chunks).flatten(0, 1)
    labels, weights = batch.labels.flatten(), batch.weights.flatten()
    if x.device.type == "cpu":
        kept = torch.nonzero(weights).flatten()
        if len(kept) < len(weights):
            x, labels, weights = x.index_select(0, kept), labels[kept], weights[kept]
    head = model.get_output_embeddings()
    scale, softcap = head_scaling(model)
    given = head.weight, getattr(head, "bias", None), labels, weights
    return head_loss(x, *given, scale=scale, softcap=softcap, chunks=chunks, kernels=kernels)


def head_loss(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    weights: Tensor,
    *,
    scale: float = 1.0,
    softcap: float | None = None,
    chunks: int = 1,
    kernels: str = "auto",
) -> Tensor:
    """Sum of ``weights`` × cross-entropy of ``softcap·tanh((x·weightᵀ + bias)·scale / softcap)`` against ``labels``.

    x (T, H), weight (V, H), bias (V,) or None, labels (T,) int64 (ignored where the weight is 0), weights (T,). The result is
    float32, float64 for float64 x; so is the accumulator of the head's gradient. The logits of at most T / ``chunks`` tokens are
    there at once, fewer where the budget of bytes says so. On a GPU they stay as the head gives them, and one kernel writes their
    gradient over them, unless ``kernels`` is "reference", ``scale`` is not 1 or there is a ``softcap``.
    """
    native = _native(x, scale, softcap, kernels)
    return _HeadLoss.apply(x, weight, bias, labels, weights, scale, softcap, chunks, native)


def said(model: Any, kernels: str) -> str:
    """What computes the loss: ``loss by surogate_loss::cross_entropy_ in chunks``. After :func:`check_head`."""
    if not getattr(model, "_surogate_head", True):
        return "loss by torch of all logits at once"
    native = _native(model.get_output_embeddings().weight, *head_scaling(model), kernels)
    return f"loss by {'surogate_loss::cross_entropy_' if native else 'torch'} in chunks"


def _native(x: Tensor, scale: float, softcap: float | None, kernels: str) -> bool:
    """``x``: of the device and dtype of the hidden states."""
    return kernels != "reference" and x.device.type in KERNEL_ON and x.dtype in NAMES and scale == 1.0 and not softcap


def head_scaling(model: Any) -> tuple[float, float | None]:
    """Factor and softcap that the model's config puts on its logits."""
    config = model.config.get_text_config()
    scale = getattr(config, "logit_scale", None) or 1.0
    return scale / (getattr(config, "logits_scaling", None) or 1.0), getattr(config, "final_logit_softcapping", None)


@torch.no_grad()
def check_head(model: Any) -> str | None:
    """Compare hidden states × head with the model's own logits on a few tokens. Where they differ :func:`batch_loss` uses the
    model's own logits from then on, and a notice is returned. To be called once, after loading."""
    config = model.config.get_text_config()
    head = model.get_output_embeddings()
    agree = isinstance(head, nn.Linear)
    if agree:
        training = model.training
        model.eval()
        device = head.weight.device
        ids = torch.arange(8, device=device)[None] % config.vocab_size
        places, documents = torch.arange(8, device=device)[None], documents_of(model, torch.zeros_like(ids))
        scale, softcap = head_scaling(model)
        with plain(model):
            own = model(input_ids=ids, position_ids=places, use_cache=False, documents=documents).logits
            ours = _logits(decode(model, ids, places, documents)[0], head.weight, head.bias, scale, softcap)
        model.train(training)
        agree = own.shape[1:] == ours.shape and bool((own[0] - ours).abs().max() <= 0.02 * own.abs().max())
    model._surogate_head = agree
    if agree:
        return None
    return f"the head of {config.model_type!r} is not a plain linear layer: the logits of a micro-batch are held at once"


def _exact(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _logits(x: Tensor, weight: Tensor, bias: Tensor | None, scale: float, softcap: float | None) -> Tensor:
    """(c, V) in float32 or wider."""
    z = F.linear(x, weight, bias).to(_exact(x))
    if scale != 1.0:
        z = z * scale
    return z.div_(softcap).tanh_().mul_(softcap) if softcap else z


def _by_torch(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    weights: Tensor,
    scale: float,
    softcap: float | None,
    backward: bool,
) -> tuple[Tensor, Tensor | None]:
    """Loss of a chunk of tokens and, if ``backward``, its gradient with respect to the head's output (c, V), in x's dtype."""
    z = _logits(x, weight, bias, scale, softcap)
    label, part = labels.clamp_min(0)[:, None], weights.to(z.dtype)[:, None]
    own, largest = z.gather(1, label), z.amax(dim=1, keepdim=True)
    slope = (1 - (z / softcap).square_()) if softcap and backward else None
    sums = z.sub_(largest).exp_().sum(dim=1, keepdim=True)
    loss = ((sums.log() + largest - own) * part).sum()
    if not backward:
        return loss, None
    d = z.mul_(part * scale / sums).scatter_add_(1, label, part * -scale)
    return loss, (d if slope is None else d.mul_(slope)).to(x.dtype)


def _by_kernel(
    x: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, weights: Tensor, backward: bool
) -> tuple[Tensor, Tensor | None]:
    """The same without scale and softcap, through the logits that the head gives alone."""
    z = F.linear(x, weight, bias)
    losses, _ = cross_entropy_(z, labels, weights, gradient=backward)
    return losses.sum(), z if backward else None


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        weights: Tensor,
        scale: float,
        softcap: float | None,
        chunks: int,
        native: bool,
    ) -> Tensor:
        need_x, need_weight, need_bias = ctx.needs_input_grad[:3]
        backward, exact = need_x or need_weight or need_bias, _exact(x)
        budget = CHUNK_BYTES if x.device.type == "cpu" else CHUNK_BYTES_GPU
        rows = min(max(128, budget // (4 * weight.shape[0]) // 128 * 128), max(1, -(-len(x) // chunks)))
        total = torch.zeros((), dtype=exact, device=x.device)
        grad_x = torch.empty_like(x) if need_x else None
        grad_weight = torch.zeros_like(weight, dtype=exact) if need_weight else None
        grad_bias = torch.zeros_like(bias, dtype=exact) if need_bias and bias is not None else None
        for start in range(0, len(x), rows):
            at = slice(start, start + rows)
            chunk = x[at], weight, bias, labels[at], weights[at]
            loss, d = _by_kernel(*chunk, backward) if native else _by_torch(*chunk, scale, softcap, backward)
            total += loss
            if d is None:
                continue
            if grad_x is not None:
                torch.mm(d, weight, out=grad_x[at])
            if grad_weight is not None and grad_weight.dtype == d.dtype:
                grad_weight.addmm_(d.t(), x[at])
            elif grad_weight is not None:
                grad_weight += d.t() @ x[at]
            if grad_bias is not None:
                grad_bias += d.sum(0, dtype=exact)
            del d  # before the logits of the next chunk are there
        ctx.save_for_backward(grad_x, grad_weight, grad_bias)
        ctx.dtypes = weight.dtype, None if bias is None else bias.dtype
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_x, grad_weight, grad_bias = ctx.saved_tensors
        return (
            None if grad_x is None else grad_x * grad.to(grad_x.dtype),
            None if grad_weight is None else (grad_weight * grad).to(ctx.dtypes[0]),
            None if grad_bias is None else (grad_bias * grad).to(ctx.dtypes[1]),
            *[None] * 6,
        )
