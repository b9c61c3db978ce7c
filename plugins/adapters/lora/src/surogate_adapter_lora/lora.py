"""LoRA (Hu et al., arXiv 2106.09685): y' = y + s·B(A(dropout(x))), with the layer's own weight W frozen.

s is alpha / rank, or alpha / sqrt(rank) with ``lora_use_rslora`` (Kalajdzievski, arXiv 2312.03732). A (r, K) starts Kaiming-uniform
with a = sqrt(5), B (N, r) at zero, so that the adapted model starts as the base model. The trained weights are kept in
``lora_dtype`` and converted to the dtype of the activations for the two small GEMMs.

DoRA (Liu et al., arXiv 2402.09353, section 4) trains a magnitude m (N,) besides: the weight is m·(W + s·BA) / ‖W + s·BA‖, norms of
rows, which are constants for the gradient (section 4.3). m starts as ‖W‖. Bias is left alone. As in PEFT.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from attrs import frozen
from torch import Tensor, nn

from surogate_adapter_lora import peft_format
from surogate_adapter_lora.lowrank import add_low_rank, drop
from surogate_adapter_lora.plugin import Options
from surogate_adapter_lora.targets import refusal
from surogate_core.contracts import Context, Site

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class LoraLinear(nn.Module):
    """The adapter of one linear layer. ``lora_A`` (r, K), ``lora_B`` (N, r) and with DoRA ``lora_magnitude`` (N,) are its only
    parameters. DoRA needs to know its layer: :meth:`bind`."""

    lora_magnitude: nn.Parameter | None

    def __init__(self, inputs: int, outputs: int, rank: int, scale: float, dropout: float, dtype: torch.dtype, dora: bool = False):
        super().__init__()
        self.scale, self.dropout = scale, dropout
        self.lora_A = nn.Parameter(torch.empty(rank, inputs, dtype=dtype))
        self.lora_B = nn.Parameter(torch.empty(outputs, rank, dtype=dtype))
        self.lora_magnitude = nn.Parameter(torch.empty(outputs, dtype=dtype)) if dora else None
        self._layer: tuple[Any, ...] = ()  # in a tuple: the layer is no part of its adapter
        self._squares = torch.empty(0)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """x (..., K), y (..., N), the layer's own output → (..., N)."""
        a, b = self.lora_A.to(x.dtype), self.lora_B.to(x.dtype)
        rate = self.dropout if self.training else 0.0
        if self.lora_magnitude is None:
            return add_low_rank(x, y, a, b, self.scale, rate)
        (layer,) = self._layer
        if rate:  # PEFT drops the input of the base product too
            x, _ = drop(x, rate)
            plain = layer.compute(x, layer.weight, None)
        else:
            plain = y if layer.bias is None else y - layer.bias
        rows = (self.lora_magnitude / self.norm()).to(x.dtype)
        low = F.linear(F.linear(x, a) * self.scale, b)
        return y + (rows - 1) * plain + rows * low

    def bind(self, layer: Any) -> None:
        """Make the layer known whose ``weight`` (N, K), ``bias`` and ``compute`` DoRA needs. Its weight must not change
        afterwards."""
        self._layer = (layer,)
        if self.lora_magnitude is not None:
            self._squares = _exact(layer.weight.detach()).square().sum(1)

    @torch.no_grad()
    def norm(self) -> Tensor:
        """(N,) ‖W + s·BA‖ of each row, float32 or wider, as ‖W‖² + 2s·(W·Aᵀ)∘B + s²·(B·A·Aᵀ)∘B: BA is not formed."""
        (layer,) = self._layer
        a, b = _exact(self.lora_A), _exact(self.lora_B)
        across = F.linear(layer.weight, self.lora_A.to(layer.weight.dtype)).to(b.dtype)
        both = 2 * self.scale * across + self.scale**2 * (b @ (a @ a.t()))
        return (self._squares + (both * b).sum(1)).clamp_min(torch.finfo(b.dtype).tiny).sqrt()


def _exact(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


@frozen(kw_only=True)
class Lora:
    """See :class:`surogate_core.contracts.Adapter`."""

    options: Options

    @property
    def scale(self) -> float:
        rank = self.options.lora_rank
        return self.options.lora_alpha / (math.sqrt(rank) if self.options.lora_use_rslora else rank)

    def claim(self, site: Site) -> str | None:
        return refusal(site, self.options.lora_target_modules)

    def linear(self, site: Site) -> LoraLinear:
        outputs, inputs = site.shape
        options = self.options
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
        bound = 1 / math.sqrt(a.shape[1])
        with torch.no_grad():
            a.copy_(torch.empty(a.shape, device=generator.device).uniform_(-bound, bound, generator=generator))
            b.zero_()

    def attach(self, model: nn.Module, modules: Mapping[str, nn.Module], generator: torch.Generator) -> dict[str, nn.Module]:
        """DoRA: the adapters learn their layers, magnitudes start as the norms of their rows."""
        bind(model, modules)
        with torch.no_grad():
            for module in modules.values():
                if isinstance(module, LoraLinear) and module.lora_magnitude is not None:
                    module.lora_magnitude.copy_(module.norm())
        return {}

    def save(self, modules: Mapping[str, nn.Module], directory: Path, base_model: str) -> None:
        peft_format.write(
            directory, self.options, {name: dict(module.named_parameters()) for name, module in modules.items()}, base_model
        )

    def load(self, modules: Mapping[str, nn.Module], directory: Path) -> None:
        peft_format.read_into(directory, self.options, {name: dict(module.named_parameters()) for name, module in modules.items()})

    def delta(self, module: nn.Module) -> Tensor:
        """For DoRA the module has to be bound: the change depends on the weight."""
        a, b = module.get_parameter("lora_A"), module.get_parameter("lora_B")
        with torch.no_grad():
            update = (b.float() @ a.float()).mul_(self.scale)
            if not isinstance(module, LoraLinear) or module.lora_magnitude is None:
                return update
            weight = module._layer[0].weight.float()
            update += weight
            rows = module.lora_magnitude.float() / torch.linalg.vector_norm(update, dim=1)
            return update.mul_(rows[:, None]).sub_(weight)


def bind(model: nn.Module, modules: Mapping[str, nn.Module]) -> None:
    """Tell each adapter its layer in ``model``."""
    for name, module in modules.items():
        if isinstance(module, LoraLinear):
            module.bind(model.get_submodule(name))


def build(options: Options, context: Context) -> Lora:
    return Lora(options=options)
