"""``train_modules``: parts of the model that are trained whole beside the adapter; PEFT's ``modules_to_save``.

A module that shares a weight with a chosen one (a tied head and embedding) is trained and saved with it: both names are in the
files, so that a reader which does not tie them has both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import surogate_model_transformers as models
import torch
from torch import Tensor, nn

from surogate_core.errors import ModelError, Problem

if TYPE_CHECKING:
    from surogate_core.contracts import Site


def matches(name: str, pattern: str) -> bool:
    """Whether ``pattern`` is this name, an end of it at a dot, or the same of a module around it; ``*`` stands for any text."""
    parts = name.split(".")
    around = (".".join(parts[:end]) for end in range(1, len(parts) + 1))
    return any(fnmatchcase(one, pattern) or fnmatchcase(one, f"*.{pattern}") for one in around)


def chosen(model: nn.Module, patterns: Sequence[str]) -> dict[str, nn.Module]:
    """The modules with weights of their own that the patterns name, with those that share a weight with them, in the model's order.
    What fills the slots of linear layers is no part of the model."""
    slots = models.slot_names(model) if patterns else set()
    holders = {
        name: module
        for name, module in model.named_modules()
        if any(f"{name}.{key}" not in slots for key, _ in module.named_parameters(recurse=False))
    }
    named = [module for name, module in holders.items() if any(matches(name, pattern) for pattern in patterns)]
    shared = {id(parameter) for module in named for parameter in module.parameters(recurse=False)}
    return {
        name: module
        for name, module in holders.items()
        if any(id(parameter) in shared for parameter in module.parameters(recurse=False))
    }


def once(modules: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Without those all of whose weights another one has already."""
    seen: set[int] = set()
    kept = {}
    for name, module in modules.items():
        own = {id(parameter) for parameter in module.parameters(recurse=False)}
        if own - seen:
            kept[name] = module
        seen |= own
    return kept


def check_parts(patterns: Sequence[str], model: nn.Module, adapted: Sequence[Site], stored: Sequence[Site]) -> list[Problem]:
    """Patterns that name nothing, and layers that would be trained whole and are adapted too, or have no weight that can be trained
    because a quantizer holds it."""
    where, problems = "train_modules", []
    for pattern in patterns:
        if not chosen(model, [pattern]):
            roles = sorted({name.rpartition(".")[2] for name in chosen(model, ["*"])})
            problems.append(
                Problem(
                    f"{pattern!r} matches no part of this model that has weights", where=where, how=f"there are {', '.join(roles)}"
                )
            )
    whole = set(chosen(model, patterns))
    for taken, what, how in (
        (adapted, "would be both trained whole and adapted", f"choose {where} or lora_target_modules for them, not both"),
        (stored, "held quantised, cannot be trained whole", "adapt them instead (lora_target_modules), or hold the base plain"),
    ):
        if names := sorted(whole & {_holder(site) for site in taken}):
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            problems.append(Problem(f"{', '.join(names[:3])}{more} {what}", where=where, how=how))
    return problems


def _holder(site: Site) -> str:
    """The module that has the weight: of stacked experts the one around it."""
    return site.name.rpartition(".")[0] if site.kind == "stacked_linear" else site.name


def check_router(model: nn.Module) -> list[Problem]:
    """``train_router`` for a model that has none."""
    if models.routers(model):
        return []
    what = "train_router = true, and this model has no routers: it is no mixture of experts"
    return [Problem(what, where="train_router", how="set train_router = false")]


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    """A module's own parameters by name."""
    return dict(module.named_parameters(recurse=False))


def put_in(model: nn.Module, parts: Mapping[str, Mapping[str, Tensor]], where: str) -> None:
    """Replace weights of the model by those that were trained whole. Raises ModelError where they do not fit."""
    for name, weights in parts.items():
        try:
            own: dict[str, Any] = weights_of(model.get_submodule(name))
        except AttributeError:
            own = {}
        found, wanted = ({key: tuple(tensor.shape) for key, tensor in some.items()} for some in (weights, own))
        if found != wanted:
            raise ModelError(
                f"{name} of the adapter has {found}, this model {wanted or 'no such part'}",
                where=where,
                how="use the base model that it was made with",
            )
        with torch.no_grad():
            for key, tensor in weights.items():
                own[key].copy_(tensor)
