"""The source of transformers' models with one promise broken, and what the check says of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from surogate_model_transformers.plugin import Options
from surogate_model_transformers.source import Transformers
from surogate_model_transformers.source import build as source
from surogate_testing import check_model
from torch import nn
from transformers import AutoModelForCausalLM

from surogate_core import testing
from surogate_core.contracts import Batch, Outline


class Faulty:
    """Passes on what it is asked; ``outline``, ``load``, ``loss`` and the rest may be replaced by a function (own, ...)."""

    def __init__(self, own: Transformers, **changes: Callable[..., Any]):
        self._own, self._changes = own, changes

    def __getattr__(self, name: str) -> Any:
        if name in self._changes:
            return lambda *given, **named: self._changes[name](self._own, *given, **named)
        return getattr(self._own, name)


def alone(batch: Batch) -> Batch:
    """All of a row one document."""
    positions = torch.arange(batch.input_ids.shape[1]).expand_as(batch.input_ids)
    return attrs.evolve(batch, position_ids=positions, document_ids=torch.zeros_like(batch.document_ids))


def outline_with(change: Callable[[Outline], Outline]) -> dict[str, Any]:
    return {"outline": lambda own: change(own.outline())}


def renamed(found: Outline) -> Outline:
    return attrs.evolve(found, sites=tuple(attrs.evolve(site, name=site.name.upper()) for site in found.sites))


def turned(found: Outline) -> Outline:
    return attrs.evolve(found, sites=tuple(attrs.evolve(site, shape=site.shape[::-1]) for site in found.sites))


def in_memory(found: Outline) -> Outline:
    return attrs.evolve(found, skeleton=found.skeleton.to_empty(device="cpu"))


def loaded(change: Callable[[nn.Module], object]) -> dict[str, Any]:
    def load(own: Transformers, *given: Any, **named: Any) -> nn.Module:
        model = own.load(*given, **named)
        change(model)
        return model

    return {"load": load}


def without(slot: int) -> dict[str, Any]:
    """One slot is not filled."""

    def load(own: Transformers, *slots: Any, **named: Any) -> nn.Module:
        return own.load(*[{} if number == slot else given for number, given in enumerate(slots)], **named)

    return {"load": load}


@torch.no_grad()
def nudge(model: nn.Module) -> None:
    next(model.parameters()).mul_(1.01)


def forgetful(own: Transformers, model: Any, tokenizer: Any, directory: Path) -> None:
    nudge(model)
    own.save(model, tokenizer, directory)
    with torch.no_grad():
        next(model.parameters()).div_(2)


def rough(own: Transformers, model: Any) -> None:
    for block in own.blocks(model):
        block.register_forward_hook(lambda module, given, found: found.bfloat16().float())


def noisy_gradient(own: Transformers, model: nn.Module, batch: Batch) -> Any:
    found = own.loss(model, batch)
    return found + (found.detach() - found) * 0.1


def two_more(own: Transformers, *slots: Any) -> nn.Module:
    blank = own.blank(*slots)
    blank.more = nn.Parameter(torch.empty(2, device="meta"))
    return blank


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "real weights": (outline_with(in_memory), "the outline holds weights"),
    "names": (outline_with(renamed), "site .* is no module of the outline"),
    "shapes": (outline_with(turned), "site .* says .*, its weight is"),
    "no linear layer": (outline_with(lambda found: attrs.evolve(found, sites=())), "the outline lists no linear layer"),
    "twice": (outline_with(lambda found: attrs.evolve(found, sites=found.sites * 2)), "two sites have one name"),
    "no tokens": ({"tokenizer": lambda own: []}, "the tokenizer has no tokens"),
    "evaluating": (loaded(lambda model: model.eval()), "a model that is not in training mode"),
    "no values": (loaded(lambda model: model.to("meta")), "has no value after load"),
    "other weights": (loaded(nudge), "not that of each alone, by the reference"),
    "mixes documents": ({"loss": lambda own, model, batch: own.loss(model, alone(batch))}, "by the reference: the loss"),
    "gradient": ({"loss": noisy_gradient}, "by the reference: the gradient of"),
    "mean": ({"loss": lambda own, model, batch: own.loss(model, batch) / 9}, "by the reference: the loss"),
    "vector": ({"loss": lambda own, model, batch: own.loss(model, batch)[None]}, "wanted a scalar"),
    "half": ({"loss": lambda own, model, batch: own.loss(model, batch).half()}, "the loss is torch.float16"),
    "no compute": (without(0), "the compute in its slot is never called"),
    "no adapter": (without(1), "its adapter got no memory"),
    "no storage": (without(2), "its storage was given a weight 0 times, not once"),
    "blocks": ({"blocks": lambda own, model: own.blocks(model)[:1]}, "1 decoder layers, and the sites name .0, 1."),
    "order": ({"blocks": lambda own, model: own.blocks(model)[::-1]}, "is not in decoder layer 0"),
    "recomputes roughly": ({"recompute": rough}, "recomputation changes: the loss"),
    "saves something else": ({"save": forgetful}, "is another one after save and load"),
    "blank": ({"blank": two_more}, "blank has other tensors than load: .*more"),
    "blank with values": ({"blank": lambda own, *slots: own.blank(*slots).to_empty(device="cpu")}, "a model with values"),
}


@pytest.fixture
def check(tiny: Path, tmp_path: Path) -> Callable[..., None]:
    context = testing.context(model=str(tiny), model_dtype="fp32", sequence_len=64)
    reference = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    return lambda **changes: check_model(
        lambda: Faulty(source(Options(), context), **changes),  # type: ignore[arg-type,return-value]
        reference,
        tmp_path / "saved",
    )


def test_a_good_one(check: Callable[..., None]) -> None:
    check()


@pytest.mark.parametrize("fault", FAULTS)
def test_model(fault: str, check: Callable[..., None]) -> None:
    changes, said = FAULTS[fault]
    with pytest.raises(AssertionError, match=said):
        check(**changes)
