"""LoRA (Hu et al., arXiv 2106.09685): y' = y + s·B(A(dropout(x))), s = alpha / rank, with the layer's own weight frozen.

A (r, K) starts Kaiming-uniform with a = sqrt(5), B (N, r) at zero, so that the adapted model starts as the base model. The trained
weights are kept in ``lora_dtype`` and converted to the dtype of the activations for the two small GEMMs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from attrs import frozen
from torch import Tensor, nn

from surogate_adapter_lora import peft_format
from surogate_adapter_lora.plugin import Options
from surogate_adapter_lora.targets import refusal
from surogate_core.contracts import Context, Site

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class LoraLinear(nn.Module):
    """The adapter of one linear layer. ``lora_A`` (r, K) and ``lora_B`` (N, r) are its only parameters."""

    def __init__(self, inputs: int, outputs: int, rank: int, scale: float, dropout: float, dtype: torch.dtype):
        super().__init__()
        self.scale, self.dropout = scale, dropout
        self.lora_A = nn.Parameter(torch.empty(rank, inputs, dtype=dtype))
        self.lora_B = nn.Parameter(torch.empty(outputs, rank, dtype=dtype))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """x (..., K), y (..., N) → (..., N). The rank-sized product comes first in both directions, and ``addmm`` adds into y:
        no (N, K) matrix and no second (..., N) one is formed."""
        a, b = self.lora_A.to(x.dtype), self.lora_B.to(x.dtype)
        x = F.dropout(x, self.dropout, self.training)
        low = F.linear(x.flatten(0, -2), a) * self.scale
        return torch.addmm(y.flatten(0, -2), low, b.t()).view(y.shape)


@frozen(kw_only=True)
class Lora:
    """See :class:`surogate_core.contracts.Adapter`."""

    options: Options

    @property
    def scale(self) -> float:
        return self.options.lora_alpha / self.options.lora_rank

    def claim(self, site: Site) -> str | None:
        return refusal(site, self.options.lora_target_modules)

    def linear(self, site: Site) -> LoraLinear:
        outputs, inputs = site.shape
        options = self.options
        return LoraLinear(inputs, outputs, options.lora_rank, self.scale, options.lora_dropout, DTYPES[options.lora_dtype])

    def reset(self, module: nn.Module, generator: torch.Generator) -> None:
        """A as ``torch.nn.Linear`` and PEFT draw it: uniform in ± 1/sqrt(K). Drawn in float32 whatever ``lora_dtype`` is."""
        a, b = _weights(module)
        bound = 1 / math.sqrt(a.shape[1])
        with torch.no_grad():
            a.copy_(torch.empty(a.shape, device=generator.device).uniform_(-bound, bound, generator=generator))
            b.zero_()

    def save(self, modules: Mapping[str, nn.Module], directory: Path, base_model: str) -> None:
        peft_format.write(directory, self.options, {name: _weights(module) for name, module in modules.items()}, base_model)

    def load(self, modules: Mapping[str, nn.Module], directory: Path) -> None:
        peft_format.read_into(directory, self.options, {name: _weights(module) for name, module in modules.items()})

    def delta(self, module: nn.Module) -> Tensor:
        a, b = _weights(module)
        with torch.no_grad():
            return (b.float() @ a.float()).mul_(self.scale)


def _weights(module: nn.Module) -> tuple[Tensor, Tensor]:
    return module.get_parameter("lora_A"), module.get_parameter("lora_B")


def build(options: Options, context: Context) -> Lora:
    return Lora(options=options)
