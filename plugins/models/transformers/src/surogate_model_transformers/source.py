"""The model source `transformers`: what the core asks of this plugin, in the order in which it asks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from surogate_core.contracts import Batch, Context, Outline, Storage
from surogate_model_transformers import config, export, load, loss, sites, slots, vision
from surogate_model_transformers.plugin import Options, Settings


class Transformers:
    """A :class:`~surogate_core.contracts.ModelSource`."""

    def __init__(self, settings: Settings):
        self.settings = settings

    @cached_property
    def hf_config(self) -> Any:
        """The transformers config of ``model``, with what the options change in it."""
        return config.read_config(self.settings)

    def outline(self) -> Outline:
        skeleton = load.skeleton(self.hf_config, self.settings)
        return Outline(model_type=self.hf_config.model_type, sites=sites.list_sites(skeleton), skeleton=skeleton)

    def blank(
        self, computes: Mapping[str, Callable[..., Tensor]], adapters: Mapping[str, nn.Module], storages: Mapping[str, Storage]
    ) -> nn.Module:
        model = load.skeleton(self.hf_config, self.settings)
        slots.fill_slots(model, computes, adapters, storages)
        for _, layer in slots.slot_layers(model):
            if layer.storage is not None:
                layer.register_parameter("weight", None)
        return cast(nn.Module, model.to("meta").train())

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
        def fill(model: Any) -> object:
            return slots.fill_slots(model, computes, adapters, storages)

        return load.load_model(self.hf_config, self.settings, device=device, source=weights, prepare=fill, notice=notice)

    def ready(self, model: nn.Module) -> str | None:
        return loss.check_head(model)

    def blocks(self, model: nn.Module) -> Sequence[nn.Module]:
        return list(sites.blocks(model)[1])

    def recompute(self, model: nn.Module) -> None:
        load.recompute_layers(model)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return loss.batch_loss(model, batch, self.settings.own.lmhead_chunks, self.settings.own.attn_bwd_chunks)

    def save(self, model: nn.Module, tokenizer: Any, directory: Path) -> None:
        export.save_model(model, tokenizer, directory)


def build(options: Options, context: Context) -> Transformers:
    return Transformers(Settings(context.config, options))
