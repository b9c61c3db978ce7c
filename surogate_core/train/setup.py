"""From a plan to tensors: the model with its slots filled, the parameters that are trained, the optimizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from attrs import frozen
from torch import Tensor, nn

from surogate_core.contracts import Attaches, ChangesWeights, OptimizerState, ParamGroup
from surogate_core.errors import PlanError
from surogate_core.host import attributed
from surogate_core.plan import Plan

ADAPTER_SEED = 0x5EED
"""Added to ``train_seed``, so that adapters and a model from scratch do not draw the same numbers."""


@frozen(kw_only=True)
class Trainee:
    """The model of a run. ``adapters`` maps site names to adapter modules, empty when all weights are trained; ``computes`` holds
    the recipe's modules, whose buffers are part of the state."""

    model: nn.Module
    adapters: Mapping[str, nn.Module]
    computes: Mapping[str, nn.Module]
    names: tuple[str, ...]
    parameters: tuple[Tensor, ...]


def build(plan: Plan, *, weights: Path | None = None, notice: Callable[[str], None] = lambda text: None) -> Trainee:
    """Load the model into its slots. ``weights``: a checkpoint directory to read instead of ``core.model``."""
    core = plan.config.core
    device = plan.parallelism.device()
    source = plan.model_source
    computes: dict[str, Callable[..., Tensor]] = {}
    for site in plan.sites:
        if site.name in plan.slots and (owner := plan.slots[site.name].compute):
            with attributed(owner, "Recipe.linear"):
                computes |= {part.name: plan.recipe.linear(part) for part in site.parts}
    stored = [part for site in plan.stored() for part in site.parts]
    with torch.device("meta"):
        adapters = {site.name: plan.adapter.linear(site) for site in plan.adapted()} if plan.adapter else {}
        storages = {part.name: plan.quantizer.storage(part) for part in stored} if plan.quantizer else {}
        if isinstance(plan.adapter, ChangesWeights):
            storages = {part.name: plan.adapter.over(part, storages[part.name]) for part in stored}
    model = source.load(computes, adapters, storages, device=device, weights=weights, notice=notice)
    if plan.adapter is not None:
        model.requires_grad_(False)
        generator = torch.Generator().manual_seed(core.train_seed + ADAPTER_SEED)
        for module in adapters.values():
            module.to_empty(device="cpu")
            plan.adapter.reset(module, generator)
            module.to(device).requires_grad_(True)
        if isinstance(plan.adapter, Attaches):
            adapters |= plan.adapter.attach(model, adapters, generator)
    for name, fused in plan.fused.items():
        module = model.get_submodule(name)
        with attributed(fused.owner, "Fusion.forward"):
            module.forward = fused.fusion.forward(module)
    if remark := source.ready(model):
        notice(remark)
    if core.recompute:
        source.recompute(model)
    if core.compile:
        for layer in source.blocks(model):
            layer.compile()
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not trained:
        raise PlanError("no parameter is trained", where=f"model {core.model}", how="set lora = false to train all weights")
    return Trainee(
        model=model,
        adapters=adapters,
        computes={name: module for name, module in computes.items() if isinstance(module, nn.Module)},
        names=tuple(trained),
        parameters=tuple(trained.values()),
    )


def groups(trainee: Trainee, weight_decay: float) -> list[ParamGroup]:
    """Two groups: matrices with decay; norms, biases and other vectors without."""
    named = list(zip(trainee.names, trainee.parameters, strict=True))
    parts = [
        ([(name, p) for name, p in named if p.dim() >= 2], weight_decay),
        ([(name, p) for name, p in named if p.dim() < 2], 0.0),
    ]
    return [
        ParamGroup(names=tuple(name for name, _ in part), params=tuple(p for _, p in part), weight_decay=decay)
        for part, decay in parts
        if part
    ]


def bind_optimizer(plan: Plan, trainee: Trainee) -> OptimizerState:
    core = plan.config.core
    return plan.optimizer.bind(groups(trainee, core.weight_decay), core.train_seed)
