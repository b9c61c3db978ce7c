"""Virtual tokens: trained vectors in front of every document, as prompt tuning and prefix tuning have them.

Virtual tokens see only each other, so what the layers make of them does not depend on the documents behind them. Therefore one
set of them serves all documents that share a packed row: every token sees them, and positions in each document start behind them.
That equals putting them in front of each document on its own row.

Prompt tuning (Lester et al., arXiv 2104.08691) puts P input embeddings at the start of the row. Prefix tuning (Li and Liang,
arXiv 2101.00190) puts P keys and values, unrotated, before those of each attention layer.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from surogate_core.errors import ModelError

SHARED = -1
"""Number of the document that every other one sees."""
_NAME = "virtual_tokens"


class VirtualTokens(Protocol):
    """A module that is one of the two kinds; the other method gives None."""

    count: int

    def embeddings(self) -> Tensor | None:
        """(P, H)."""

    def keys_values(self) -> tuple[tuple[Tensor, Tensor], ...] | None:
        """Key and value of each layer, (G, P, D) each, G heads of keys."""


def set_tokens(model: Any, tokens: nn.Module) -> None:
    """Give the model these virtual tokens: a :class:`VirtualTokens`, which becomes a part of it. Raises ModelError for families
    with sliding windows: there what is in sight would depend on the position."""
    from surogate_model_transformers.attention import inspect

    calls = getattr(model, "_surogate_calls", None) or inspect(model)
    if any(window for window, _ in calls):
        raise ModelError(
            "virtual tokens cannot be trained in a model with sliding windows",
            where=f"model_type {model.config.model_type!r}",
            how='use adapter = "lora" or "bottleneck"',
        )
    model._surogate_calls = calls
    model.add_module(_NAME, tokens)


def tokens_of(model: Any) -> Any:
    """The model's virtual tokens, or None."""
    return getattr(model, _NAME, None)


def hidden_states(model: Any, tokens: Any, input_ids: Tensor, position_ids: Tensor, document_ids: Tensor, chunks: int) -> Tensor:
    """(B, S, H) of the documents' own tokens. Inputs are (B, S). ``chunks`` as in ``attention.hidden_states``."""
    from surogate_model_transformers.attention import Documents, mask

    places = position_ids + tokens.count
    decoder = getattr(model, model.base_model_prefix)
    prompt = tokens.embeddings()
    if prompt is None:
        dtype = model.get_input_embeddings().weight.dtype
        prefix = tuple((key.to(dtype), value.to(dtype)) for key, value in tokens.keys_values())
        documents = Documents(document_ids, {0: mask(document_ids, 0)}, None, prefix, True, chunks)
        return decoder(input_ids=input_ids, position_ids=places, use_cache=False, documents=documents).last_hidden_state
    embedded = model.get_input_embeddings()(input_ids)
    rows, count = input_ids.shape[0], tokens.count
    embedded = torch.cat([prompt.to(embedded.dtype).expand(rows, -1, -1), embedded], dim=1)
    first = torch.arange(count, device=places.device, dtype=places.dtype).expand(rows, -1)
    ids = torch.cat([torch.full((rows, count), SHARED, device=document_ids.device, dtype=document_ids.dtype), document_ids], dim=1)
    documents = Documents(ids, {0: mask(ids, 0)}, shared=True, chunks=chunks)
    places = torch.cat([first, places], dim=1)
    out = decoder(inputs_embeds=embedded, position_ids=places, use_cache=False, documents=documents).last_hidden_state
    return out[:, count:]


def prepend(pair: tuple[Tensor, Tensor], key: Tensor, value: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Key and value (B, G, S, D) and the mask (B, 1, S, S) of a layer, with those of its prefix in front."""
    first_key, first_value = (part.expand(key.shape[0], -1, -1, -1) for part in pair)
    if first_key.shape[1] != key.shape[1] or first_key.shape[3] != key.shape[3] or first_value.shape[3] != value.shape[3]:
        ours, theirs = (f"{part.shape[1]} heads of {part.shape[3]}" for part in (first_key, key))
        how = 'use adapter = "prompt", "lora" or "bottleneck"'
        raise ModelError(f"the keys of the prefix are {ours}, those of this family {theirs}", where="prefix tuning", how=how)
    seen = allowed.new_ones((*allowed.shape[:3], first_key.shape[2]))
    return torch.cat([first_key, key], 2), torch.cat([first_value, value], 2), torch.cat([seen, allowed], 3)
