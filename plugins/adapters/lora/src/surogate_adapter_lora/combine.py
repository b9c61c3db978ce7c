"""Several adapters as one: sums of their updates, Σ wᵢ·sᵢ·Bᵢ·Aᵢ."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from surogate_adapter_lora.peft_format import Stored
from surogate_core.errors import ModelError

Part = tuple[Stored, float]
"""An adapter and its weight."""


def concatenate(parts: Sequence[Part]) -> Stored:
    """The exact sum, as one adapter whose rank is the sum of the ranks: A = [A₁; A₂; …], B = [B₁, f₂·B₂, …]. PEFT's "cat".

    The first part keeps its bits when its weight is 1: the result has its scale, and the others carry the ratio. Layers that a part
    does not adapt have zeros in its place. The first part may be DoRA, whose norm then is that of the base with the other updates,
    and keeps what it trained whole. Sums are float32.
    """
    first, own = parts[0]
    rank = sum(part.rank for part, _ in parts)
    layers: dict[str, dict[str, Tensor]] = {}
    for name in _names(parts):
        some = next(part.layers[name] for part, _ in parts if name in part.layers)
        a = torch.zeros(*some["lora_A"].shape[:-2], rank, some["lora_A"].shape[-1])
        b = torch.zeros(*some["lora_B"].shape[:-1], rank)
        start = 0
        for index, (part, weight) in enumerate(parts):
            rows = slice(start, start + part.rank)
            start += part.rank
            if name in part.layers:
                factor = own if index == 0 else weight * part.scale / first.scale
                a[..., rows, :] = part.layers[name]["lora_A"].detach().float()
                b[..., rows] = part.layers[name]["lora_B"].detach().float() * factor
        layers[name] = {"lora_A": a, "lora_B": b}
        if first.dora:
            layers[name]["lora_magnitude"] = first.layers[name]["lora_magnitude"].detach().float()
    return Stored(rank=rank, alpha=first.scale * rank, dora=first.dora, dropout=first.dropout, layers=layers, parts=first.parts)


def linear(parts: Sequence[Part]) -> Stored:
    """PEFT's "linear": A = Σ ± √(|wᵢ|·sᵢ)·Aᵢ and B = Σ √(|wᵢ|·sᵢ)·Bᵢ. The rank stays; products of one adapter's B with another's
    A come in, so that it is no exact sum. Raises ModelError when ranks differ."""
    ranks = {part.rank for part, _ in parts}
    if len(ranks) > 1:
        raise ModelError(
            f"linear combination needs adapters of one rank, given {', '.join(map(str, sorted(ranks)))}",
            where="--combine linear",
            how="use --combine cat, which takes any ranks and is exact",
        )
    layers = {}
    for name in _names(parts):
        sums: dict[str, Tensor] = {}
        for part, weight in parts:
            if name in part.layers:
                root = math.sqrt(abs(weight) * part.scale)
                for letter, factor in (("lora_A", math.copysign(root, weight)), ("lora_B", root)):
                    term = part.layers[name][letter].detach().float() * factor
                    sums[letter] = sums[letter] + term if letter in sums else term
        layers[name] = sums
    rank = ranks.pop()
    return Stored(rank=rank, alpha=rank, layers=layers)


def plain_only(parts: Sequence[Stored], where: str) -> None:
    """Raises ModelError when one is DoRA, whose update depends on the weight that it is added to, or has modules trained whole."""
    if len(parts) > 1 and any(part.parts for part in parts):
        raise ModelError(
            "an adapter with modules that were trained whole (modules_to_save) cannot be added to others",
            where=where,
            how="merge it first, and use the result as the base model of the others",
        )
    if len(parts) > 1 and any(part.dora for part in parts):
        raise ModelError(
            "a DoRA adapter cannot be added to others: its update depends on the weight under it",
            where=where,
            how="merge the DoRA adapter first, and use the result as the base model of the others",
        )


def _names(parts: Sequence[Part]) -> list[str]:
    return sorted({name for part, _ in parts for name in part.layers})
