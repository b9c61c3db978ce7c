"""LoRA (Hu et al., arXiv 2106.09685): y' = y + s·B(A(dropout(x))), with the layer's own weight W frozen.

s is alpha / rank, or alpha / sqrt(rank) with ``lora_use_rslora`` (Kalajdzievski, arXiv 2312.03732). A (r, K) starts Kaiming-uniform
with a = sqrt(5), B (N, r) at zero, so that the adapted model starts as the base model. The trained weights are kept in
``lora_dtype`` and converted to the dtype of the activations for the two small GEMMs.

DoRA (Liu et al., arXiv 2402.09353, section 4) trains a magnitude m (N,) besides: the weight is m·(W + s·BA) / ‖W + s·BA‖, norms of
rows, which are constants for the gradient (section 4.3). m starts as ‖W‖. Bias is left alone. As in PEFT.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from pathlib import Path

import surogate_model_transformers as models
import torch
from attrs import evolve, frozen
from torch import Tensor, nn

from surogate_adapter_lora import peft_format
from surogate_adapter_lora.combine import concatenate
from surogate_adapter_lora.experts import LoraExperts
from surogate_adapter_lora.layer import (
    KINDS,
    LoraLinear,
    add_before,
    bind,
    from_stored,
    merge_into,
    put_beside,
    update_of,
    weight_at,
)
from surogate_adapter_lora.parts import chosen, once, weights_of
from surogate_adapter_lora.plugin import Options
from surogate_adapter_lora.targets import refusal
from surogate_core.contracts import Context, Outline, Site, Storage
from surogate_core.errors import ModelError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@frozen(kw_only=True)
class Lora:
    """See :class:`surogate_core.contracts.Adapter`."""

    options: Options

    @property
    def scale(self) -> float:
        rank = self.options.lora_rank
        return self.options.lora_alpha / (math.sqrt(rank) if self.options.lora_use_rslora else rank)

    def claim(self, site: Site) -> str | None:
        return refusal(site, self.options.lora_target_modules, dora=self.options.lora_use_dora)

    def linear(self, site: Site) -> nn.Module:
        options = self.options
        if site.kind == "stacked_linear":
            return LoraExperts(site.shape, options.lora_rank, self.scale, options.lora_dropout, DTYPES[options.lora_dtype])
        outputs, inputs = site.shape
        return LoraLinear(
            inputs,
            outputs,
            options.lora_rank,
            self.scale,
            options.lora_dropout,
            DTYPES[options.lora_dtype],
            options.lora_use_dora,
        )

    def reset(self, module: nn.Module, generator: torch.Generator) -> None:
        """A as ``torch.nn.Linear`` and PEFT draw it: uniform in ± 1/sqrt(K). Drawn in float32 whatever ``lora_dtype`` is."""
        a, b = module.get_parameter("lora_A"), module.get_parameter("lora_B")
        bound = 1 / math.sqrt(a.shape[-1])
        with torch.no_grad():
            a.copy_(torch.empty(a.shape, device=generator.device).uniform_(-bound, bound, generator=generator))
            b.zero_()

    def attached(self, outline: Outline) -> dict[str, nn.Module]:
        """The modules that are trained whole, each weight once."""
        return once(chosen(outline.skeleton, self.whole(outline.skeleton)))

    def whole(self, model: nn.Module) -> list[str]:
        """What is trained whole: ``train_modules``, and with ``train_router`` the routers."""
        return [*self.options.train_modules, *(models.routers(model) if self.options.train_router else ())]

    def attach(self, model: nn.Module, modules: Mapping[str, nn.Module], generator: torch.Generator) -> dict[str, nn.Module]:
        """``adapter_path`` is merged into the weights or put beside them; with DoRA the adapters learn their layers, and magnitudes
        start as the norms of their rows. What is trained whole is trained from here on."""
        if self.first is not None and self.options.adapter_mode == "stack":
            put_beside(model, from_stored(self.first))
        elif self.first is not None:  # what is held quantised has it already
            parts = from_stored(self.first)
            merge_into(model, {name: part for name, part in parts.items() if weight_at(model, name, part) is not None})
        bind(model, modules)
        with torch.no_grad():
            for module in modules.values():
                if isinstance(module, LoraLinear) and module.lora_magnitude is not None:
                    module.lora_magnitude.copy_(module.norm())
        whole = chosen(model, self.whole(model))
        for module in whole.values():
            for parameter in weights_of(module).values():
                parameter.requires_grad_(True)
        return whole

    def over(self, site: Site, storage: Storage) -> Storage:
        """``adapter_path`` is merged into weights that are to be held quantised while they are read, before they are packed."""
        if self.first is None or self.options.adapter_mode == "stack":
            return storage
        stack, _, number = site.name.rpartition(".")
        if site.name in self.first.layers:
            factors = self.first.layers[site.name]
        elif number.isdigit() and stack in self.first.layers:  # one expert of a stack
            factors = {key: tensor[int(number)] for key, tensor in self.first.layers[stack].items()}
        else:
            return storage
        return add_before(storage, from_stored(evolve(self.first, layers={site.name: factors}))[site.name])

    @functools.cached_property
    def first(self) -> peft_format.Stored | None:
        """The adapter of ``adapter_path``. Raises ModelError."""
        path = self.options.adapter_path
        return None if path is None else peft_format.read(Path(path).expanduser())

    def _stored(self, modules: Mapping[str, nn.Module]) -> peft_format.Stored:
        options = self.options
        own = peft_format.Stored(
            rank=options.lora_rank,
            alpha=options.lora_alpha,
            rslora=options.lora_use_rslora,
            dora=options.lora_use_dora,
            dropout=options.lora_dropout,
            layers={name: dict(module.named_parameters()) for name, module in modules.items() if isinstance(module, KINDS)},
            parts={name: weights_of(module) for name, module in modules.items() if not isinstance(module, KINDS)},
        )
        if self.first is None:
            return own
        both, dtype = concatenate([(own, 1.0), (self.first, 1.0)]), DTYPES[options.lora_dtype]
        return evolve(both, layers={name: {key: one.to(dtype) for key, one in some.items()} for name, some in both.layers.items()})

    def save(self, modules: Mapping[str, nn.Module], directory: Path, base_model: str) -> None:
        """With ``adapter_path`` the files hold both adapters as one, the whole difference to the base model that they name; the
        trained one is in the first ``lora_rank`` rows of A and columns of B."""
        peft_format.write(directory, self._stored(modules), base_model)

    def load(self, modules: Mapping[str, nn.Module], directory: Path) -> None:
        found, rank = peft_format.read(directory), self.options.lora_rank
        wanted = self._stored(modules)
        peft_format.same_form(found, wanted, directory)
        for name, parts in found.layers.items() if self.first is not None else ():
            same = torch.equal(parts["lora_A"][..., rank:, :], wanted.layers[name]["lora_A"][..., rank:, :])
            if not (same and torch.equal(parts["lora_B"][..., rank:], wanted.layers[name]["lora_B"][..., rank:])):
                raise ModelError(
                    f"the adapter of adapter_path is not the one that was under this one: {name} differs",
                    where=str(directory),
                    how=f"put that adapter back to {self.options.adapter_path}",
                )
        with torch.no_grad():
            for name, module in modules.items():
                if not isinstance(module, KINDS):
                    for key, parameter in weights_of(module).items():
                        parameter.copy_(found.parts[name][key])
                    continue
                for key, parameter in module.named_parameters():
                    tensor = found.layers[name][key]
                    own = {"lora_A": (..., slice(rank), slice(None)), "lora_B": (..., slice(rank))}.get(key, ...)
                    parameter.copy_(tensor[own])

    def delta(self, module: nn.Module) -> Tensor:
        """For DoRA the module has to be bound: the change depends on the weight."""
        return update_of(module)


def build(options: Options, context: Context) -> Lora:
    return Lora(options=options)
