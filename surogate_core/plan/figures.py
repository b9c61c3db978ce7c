"""Counts and bytes of a run, from shapes alone."""

from __future__ import annotations

import math
from collections.abc import Mapping

from surogate_core.config.options import CoreOptions
from surogate_core.contracts import Adapter, Attaches, Optimizer, Outline, Quantizer, Site
from surogate_core.plan.record import Figures, Slots


def count(
    core: CoreOptions,
    outline: Outline,
    slots: Mapping[str, Slots],
    adapter: Adapter | None,
    optimizer: Optimizer,
    quantizer: Quantizer | None = None,
) -> Figures:
    """Parameters, tokens, steps, and the bytes of what does not depend on the batch."""
    size = 2 if core.model_dtype == "bf16" else 4
    sites = outline.sites
    parameters = {name: tuple(parameter.shape) for name, parameter in outline.skeleton.named_parameters()}
    total = sum(map(math.prod, parameters.values()))
    trained, trained_size = parameters, float(size)
    if adapter is not None:
        trained, bytes_trained = _adapter_shapes(
            adapter, [site for site in sites if site.name in slots and slots[site.name].adapter], outline
        )
        trained_size = bytes_trained / max(1, sum(map(math.prod, trained.values())))
    trainable = sum(map(math.prod, trained.values()))
    own = sum(math.prod(shape) for name, shape in trained.items() if name in parameters)
    rows = core.per_device_train_batch_size * core.gradient_accumulation_steps
    stored = [site for site in sites if site.name in slots and slots[site.name].storage]
    held = [math.prod(site.shape) for site in stored]
    memory = {
        "weights": (total - sum(held)) * size,
        **({"quantised weights": _storage_bytes(quantizer, stored)} if quantizer and held else {}),
        **({"adapter": int(trained_size * (trainable - own))} if adapter is not None else {}),
        "gradients": 0 if getattr(optimizer, "holds_gradients", False) else int(trainable * trained_size),
        "optimizer": sum(optimizer.state_bytes(shape, name) for name, shape in trained.items()),
    }
    return Figures(
        parameters=total,
        trainable=trainable,
        rows_per_step=rows,
        tokens_per_step=rows * core.sequence_len,
        steps=core.max_steps if core.max_steps >= 0 else None,
        memory=memory,
    )


def _storage_bytes(quantizer: Quantizer, sites: list[Site]) -> int:
    import torch

    with torch.device("meta"):
        return sum(
            tensor.nbytes for site in sites for part in site.parts for tensor in quantizer.storage(part).state_dict().values()
        )


def _adapter_shapes(adapter: Adapter, sites: list[Site], outline: Outline) -> tuple[dict[str, tuple[int, ...]], int]:
    import torch

    with torch.device("meta"):
        modules = {f"{site.name}.adapter": adapter.linear(site) for site in sites}
        modules |= adapter.attached(outline) if isinstance(adapter, Attaches) else {}
    parameters = {f"{site}.{name}": parameter for site, module in modules.items() for name, parameter in module.named_parameters()}
    shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    return shapes, sum(parameter.numel() * parameter.element_size() for parameter in parameters.values())
