"""Attention over packed rows: a token sees itself and earlier tokens of its own document, in every family.

transformers builds its masks family by family, and with packed rows some of them leak. Here no mask of transformers is used:
:func:`attention` is registered as the attention implementation ``surogate`` and gets :class:`Documents` through the keyword
arguments that a model hands from its call down to its attention layers. Sliding windows, sinks and softcaps arrive as arguments
too. A family that drops the keyword is refused by :func:`attention` itself; one with another way of mixing tokens (a recurrence, a
convolution, its own attention) by :func:`inspect`, which changes one document and looks whether another one moves.

Three ways to compute, chosen by shape and device alone: torch's fused attention with one boolean mask a batch; for long rows on
the CPU ``surogate::packed_attention``, document by document; and plain softmax where there are sinks or softcaps.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from surogate_core.errors import ModelError
from surogate_model_transformers import virtual
from surogate_model_transformers.chunked import chunked
from surogate_model_transformers.packed import LONG_ROW, packed_attention
from surogate_model_transformers.slots import plain

IMPLEMENTATION = "surogate"
BY_DOCUMENT, FUSED, PLAIN = "document by document", "by torch with one mask a batch", "by plain softmax"
"""The three ways, in the banner's words."""
KNOWN_LAYERS = {"full_attention", "sliding_attention"}
HARMLESS = {"position_ids", "position_embeddings", "cache_position", "layer_idx"}


class Documents(NamedTuple):
    """What attention has to know about a batch.

    ids    (B, S) number of the document of each position
    masks  window → boolean (B, 1, S, S), true where a query (second to last) sees a key; window 0 is no window
    calls  a list to which each attention layer adds (window, whether it has sinks or a softcap), only under :func:`inspect`
    prefix key and value of virtual tokens, (G, P, D) each, for each layer: every query sees them, in front of its document
    shared  whether there are virtual tokens, of either kind: then the masks are what counts
    chunks  parts of the backward pass
    """

    ids: Tensor
    masks: dict[int, Tensor]
    calls: list[tuple[int, bool]] | None = None
    prefix: tuple[tuple[Tensor, Tensor], ...] = ()
    shared: bool = False
    chunks: int = 1


def hidden_states(
    model: Any, input_ids: Tensor, position_ids: Tensor, document_ids: Tensor, *, chunks: int = 1, **images: Tensor
) -> Tensor:
    """(B, S, H): the decoder's output after its last norm, for packed rows. Inputs are (B, S); ``position_ids`` are (3, B, S) where
    there are ``images``, the model's inputs of these names. With virtual tokens (``virtual.py``) each document comes after them.
    ``chunks``: the parts of attention's backward pass.

    Raises ModelError for images behind virtual tokens.
    """
    tokens = virtual.tokens_of(model)
    if tokens is not None:
        if images:
            raise ModelError("virtual tokens cannot be trained on images", where="model input", how='use adapter = "lora"')
        return virtual.hidden_states(model, tokens, input_ids, position_ids, document_ids, chunks)
    documents = documents_of(model, document_ids)._replace(chunks=chunks)
    return decode(model, input_ids, position_ids, documents, **images)


def documents_of(model: Any, document_ids: Tensor) -> Documents:
    """The documents of a batch, with the masks that the layers of this model will ask for."""
    calls = _calls(model)
    if _way(document_ids.device, document_ids.shape[1], any(plain for _, plain in calls), False) == BY_DOCUMENT:
        return Documents(document_ids, {})
    windows = sorted({_window(window, document_ids.shape[1]) for window, _ in calls})
    return Documents(document_ids, {window: mask(document_ids, window) for window in windows})


def said(model: Any, device: torch.device, length: int) -> str:
    """What computes attention in training, on rows of ``length`` positions: ``attention document by document``."""
    masked = virtual.tokens_of(model) is not None or bool(getattr(model.config.get_text_config(), "attention_dropout", 0.0))
    ways = dict.fromkeys(_way(device, length, plain, masked) for _, plain in _calls(model))
    return f"attention {' and '.join(ways)}"


def _calls(model: Any) -> tuple[tuple[int, bool], ...]:
    if getattr(model, "_surogate_calls", None) is None:
        model._surogate_calls = inspect(model)
    return model._surogate_calls


def mask(document_ids: Tensor, window: int) -> Tensor:
    """(B, 1, S, S), true where the query's document is the key's and the key is 0 to ``window - 1`` positions before it. Keys of
    the document ``SHARED`` belong to every one."""
    place = torch.arange(document_ids.shape[1], device=document_ids.device)
    distance = place[:, None] - place[None, :]
    near = (distance >= 0) & (distance < window) if window else distance >= 0
    same = (document_ids[:, :, None] == document_ids[:, None, :]) | (document_ids[:, None, :] == virtual.SHARED)
    return (same & near)[:, None]


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    s_aux: Tensor | None = None,
    softcap: float | None = None,
    documents: Documents | None = None,
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface. query (B, H, S, D), key and value (B, G, S, D), G dividing H; returns (B, S, H, D).

    ``attention_mask`` is not used (see the module). ``s_aux`` (H,) are sinks: a logit a head that takes part in the softmax and
    has no value. ``softcap`` c turns scores z into c·tanh(z/c). Raises ModelError when the documents did not arrive, or when a
    family asks for something that is not known here.
    """
    if documents is None:
        raise ModelError(
            "the attention layers are not told which document a token belongs to",
            where=type(module).__name__,
            how='train another family; outside of training use model.set_attn_implementation("sdpa")',
        )
    unknown = [name for name, given in others.items() if given is not None and name not in HARMLESS and not isinstance(given, bool)]
    if unknown or is_causal is False:
        raise ModelError(f"unsupported kind of attention: {', '.join(unknown) or 'not causal'}", where=type(module).__name__)
    plain = s_aux is not None or bool(softcap)
    if documents.calls is not None:
        documents.calls.append((sliding_window or 0, plain))
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    window = _window(sliding_window, query.shape[2])
    packed = _way(documents.ids.device, documents.ids.shape[1], plain, bool(dropout) or documents.shared) == BY_DOCUMENT
    if packed:
        allowed = documents.ids
    else:
        allowed = documents.masks[window] if window in documents.masks else mask(documents.ids, window)
        if documents.prefix:
            key, value, allowed = virtual.prepend(documents.prefix[getattr(module, "layer_idx", 0)], key, value, allowed)

    def compute(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, rows: slice) -> Tensor:
        if packed:
            return packed_attention(q, k, v, allowed[rows], scale, window)
        if plain:
            return _plain(q, k, v, allowed[rows], scale, dropout, sinks, softcap)
        grouped = q.shape[1] != k.shape[1]
        out = F.scaled_dot_product_attention(q, k, v, allowed[rows], dropout_p=dropout, scale=scale, enable_gqa=grouped)
        return out.transpose(1, 2)

    if documents.chunks > 1 and not dropout and torch.is_grad_enabled():
        return chunked(compute, query, key, value, s_aux, documents.chunks), None
    return compute(query, key, value, s_aux, slice(None)), None


def _plain(
    q: Tensor, k: Tensor, v: Tensor, allowed: Tensor, scale: float, dropout: float, sinks: Tensor | None, softcap: float | None
) -> Tensor:
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scores = (q @ k.transpose(2, 3)) * scale
    if softcap:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores.masked_fill(~allowed, -math.inf)
    if sinks is not None:
        column = sinks.to(scores.dtype).reshape(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, column], dim=-1)
    exact = torch.float64 if scores.dtype == torch.float64 else torch.float32
    weights = torch.softmax(scores, dim=-1, dtype=exact)[..., : k.shape[2]].to(v.dtype)
    return (F.dropout(weights, dropout) @ v).transpose(1, 2)


def _window(window: int | None, length: int) -> int:
    return window if window and window < length else 0


def _way(device: torch.device, length: int, plain: bool, masked: bool) -> str:
    """``plain``: there are sinks or a softcap; ``masked``: there is dropout, or virtual tokens."""
    if plain:
        return PLAIN
    return BY_DOCUMENT if device.type == "cpu" and length >= LONG_ROW and not masked else FUSED


def decode(model: Any, input_ids: Tensor, position_ids: Tensor, documents: Documents, **images: Tensor) -> Tensor:
    """(B, S, H) of the decoder alone."""
    decoder = getattr(model, model.base_model_prefix)
    given = {"input_ids": input_ids, "position_ids": position_ids, **images}
    return decoder(**given, use_cache=False, documents=documents).last_hidden_state


@torch.no_grad()
def inspect(model: Any) -> tuple[tuple[int, bool], ...]:
    """Windows of the attention layers, and whether each needs the plain softmax; found by running eight tokens, twice.

    Two documents share a row; when the first is changed the second must not move. Raises ModelError when it does, when no layer
    calls :func:`attention`, or when the model has kinds of layer that are not known here.
    """
    config = model.config.get_text_config()
    odd = set(getattr(config, "layer_types", None) or ()) - KNOWN_LAYERS
    where = f"model_type {config.model_type!r}"
    how = "train another family: packed documents would not be kept apart in this one"
    if odd:
        raise ModelError(f"unsupported kinds of layer: {', '.join(sorted(odd))}", where, how)
    device = next(model.parameters()).device
    ids = torch.arange(8, device=device)[None] % config.vocab_size
    places, numbers = torch.arange(8, device=device)[None] % 4, torch.arange(8, device=device)[None] // 4
    calls: list[tuple[int, bool]] = []
    training = model.training
    model.eval()
    try:
        with torch.compiler.set_stance("force_eager"), plain(model):
            first = decode(model, ids, places, Documents(numbers, {}, calls))
            other = decode(model, torch.where(numbers == 0, (ids + 3) % config.vocab_size, ids), places, Documents(numbers, {}))
    except TypeError as error:
        raise ModelError(f"this family cannot be told where documents end: {error}", where, how) from error
    finally:
        model.train(training)
    if not calls:
        raise ModelError("no layer of this family calls transformers' attention interface", where, how)
    if first.is_meta:  # a rehearsal for the memory plan: there are no values that could move
        return tuple(calls)
    moved = (first[:, 4:] - other[:, 4:]).abs().max()
    if moved > 0.01 * first[:, 4:].abs().max():  # not a number where the weights are not: the loop reports that
        raise ModelError("the layers of this family mix documents that share a row", where, how)
    return tuple(calls)


ALL_ATTENTION_FUNCTIONS.register(IMPLEMENTATION, attention)
