"""The model source `transformers`: what the core asks of this plugin, in the order in which it asks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, cast

import torch
from surogate_distributed_single.plugin import Sharding
from torch import Tensor, nn

from surogate_core.contracts import Batch, Context, Outline, Storage
from surogate_model_transformers import (
    attention,
    config,
    experts,
    export,
    held,
    load,
    loss,
    quants,
    residual,
    routing,
    sites,
    slots,
    vision,
)
from surogate_model_transformers.plugin import Options, Settings


class Transformers:
    """A :class:`~surogate_core.contracts.ModelSource`."""

    def __init__(self, settings: Settings):
        self.settings = settings
        self.routing: routing.Routing | None = None

    @cached_property
    def hf_config(self) -> Any:
        """The transformers config of ``model``, with what the options change in it."""
        return config.read_config(self.settings)

    def outline(self) -> Outline:
        skeleton = load.skeleton(self.hf_config, self.settings)
        found, form = sites.list_sites(skeleton), held.form_of(self.hf_config)
        own = held.held_sites(form, found) if form else None
        return Outline(model_type=self.hf_config.model_type, sites=found, skeleton=skeleton, held=own)

    def blank(
        self, computes: Mapping[str, Callable[..., Tensor]], adapters: Mapping[str, nn.Module], storages: Mapping[str, Storage]
    ) -> nn.Module:
        model = load.skeleton(self.hf_config, self.settings)
        self._fill(model, computes, adapters, storages)
        experts.take_over(model)
        for _, layer in slots.slot_layers(model):
            if layer.storage is not None:
                layer.register_parameter("weight", None)
        for _, module, role, stack in experts.stacks(model):
            if stack.storages:
                module.register_parameter(role, None)
        meta = torch.device("meta")
        model = model.to(meta)
        self._keep_quants(model, meta)
        return self._offloaded(cast(nn.Module, model.train()), meta)

    def _keep_quants(self, model: nn.Module, device: torch.device) -> None:
        quants.keep(self.blocks(model), self.settings.own, self.settings.shards_weights, device)

    def _offloaded(self, model: nn.Module, device: torch.device) -> nn.Module:
        if self.settings.own.offload_residual:
            residual.offload_residuals(self.blocks(model), device)
        return model

    def _fill(self, model: Any, computes: Any, adapters: Any, storages: Any) -> None:
        slots.fill_slots(model, computes, adapters, storages)
        for *_, stack in experts.stacks(model):
            stack.selective = self.settings.own.qlora_selective_expert_dequant

    def tokenizer(self) -> Any:
        return vision.load_processor(self.settings) or config.load_tokenizer(self.settings)

    def load(
        self,
        computes: Mapping[str, Callable[..., Tensor]],
        adapters: Mapping[str, nn.Module],
        storages: Mapping[str, Storage],
        *,
        device: torch.device,
        weights: Path | None = None,
        notice: Callable[[str], None] = lambda text: None,
    ) -> nn.Module:
        fill = partial(self._fill, computes=computes, adapters=adapters, storages=storages)
        stay = partial(self._keep_quants, device=device)
        model = load.load_model(
            self.hf_config, self.settings, device=device, source=weights, prepare=fill, stay=stay, notice=notice
        )
        return self._offloaded(model, device)

    def ready(self, model: nn.Module) -> str | None:
        self.routing = routing.routing_of(model, self.settings.own)
        return loss.check_head(model)

    def kernels(self, model: nn.Module) -> Sequence[str]:
        device = next(model.parameters()).device
        return attention.said(model, device, self.settings.core.sequence_len), loss.said(model, self.settings.core.kernels)

    def blocks(self, model: nn.Module) -> Sequence[nn.Module]:
        return list(sites.blocks(model)[1])

    def recompute(self, model: nn.Module) -> None:
        load.recompute_layers(model)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Of a mixture of experts in training the gradient is also that of the routers' losses (``routing.py``)."""
        given = self.settings.own.lmhead_chunks, self.settings.own.attn_bwd_chunks, self.settings.core.kernels
        if self.routing is None or not model.training:
            return loss.batch_loss(model, batch, *given)
        self.routing.listen()
        return loss.batch_loss(model, batch, *given) + self.routing.added(batch)

    def save(self, model: nn.Module, tokenizer: Any, directory: Path) -> None:
        export.save_model(model, tokenizer, directory)


def build(options: Options, context: Context) -> Transformers:
    return Transformers(Settings(context.config, options, context.of(Sharding).weights))
