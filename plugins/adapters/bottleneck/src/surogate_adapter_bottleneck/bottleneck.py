"""Bottleneck adapters (Houlsby et al., arXiv 1902.00751, section 2.1): h' = h + U·relu(D·h + d) + u.

h (..., N) is the output of the last linear layer of attention or MLP, before it is added to the residual stream. D (r, N) starts as
``torch.nn.Linear`` draws it, U (N, r) and both biases at zero, so that the adapted model starts as the base model. The trained
weights are float32 and are converted to the dtype of the activations.

A function with a ReLU in it cannot be merged into a weight, and PEFT has no such adapter: the files have PEFT's names and a
``peft_type`` that it refuses.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from attrs import frozen
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from surogate_adapter_bottleneck.plugin import Options, named
from surogate_core.contracts import Context, Site
from surogate_core.errors import ModelError

CONFIG, WEIGHTS, KIND = "adapter_config.json", "adapter_model.safetensors", "SUROGATE_BOTTLENECK"


class BottleneckAdapter(nn.Module):
    """``down`` (r, N) and ``up`` (N, r) with their biases are its only parameters."""

    def __init__(self, width: int, size: int):
        super().__init__()
        self.down = nn.Linear(width, size, dtype=torch.float32)
        self.up = nn.Linear(size, width, dtype=torch.float32)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """x is not used; y (..., N) → (..., N)."""
        low = F.relu(F.linear(y, self.down.weight.to(y.dtype), self.down.bias.to(y.dtype)))
        return y + F.linear(low, self.up.weight.to(y.dtype), self.up.bias.to(y.dtype))


@frozen(kw_only=True)
class Bottleneck:
    """See :class:`surogate_core.contracts.Adapter`."""

    options: Options

    def claim(self, site: Site) -> str | None:
        if any(named(site, target) for target in self.options.bottleneck_target_modules):
            return None
        return "not among bottleneck_target_modules"

    def linear(self, site: Site) -> BottleneckAdapter:
        return BottleneckAdapter(site.shape[0], self.options.bottleneck_size)

    def reset(self, module: nn.Module, generator: torch.Generator) -> None:
        down = module.get_parameter("down.weight")
        bound = 1 / math.sqrt(down.shape[1])
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.zero_()
            down.uniform_(-bound, bound, generator=generator)

    def save(self, modules: Mapping[str, nn.Module], directory: Path, base_model: str) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in _flat(modules).items()}
        save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})
        config = {
            "peft_type": KIND,
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base_model,
            "bottleneck_size": self.options.bottleneck_size,
            "target_modules": sorted(modules),
        }
        (directory / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    def load(self, modules: Mapping[str, nn.Module], directory: Path) -> None:
        """Raises ModelError for another kind of adapter, and for tensors that are missing, left over or of another shape."""
        how = "give the checkpoint of a run with the same bottleneck options and base model"
        try:
            kind: Any = json.loads((directory / CONFIG).read_text(encoding="utf-8")).get("peft_type")
            stored = load_file(directory / WEIGHTS)
        except (OSError, ValueError, SafetensorError) as error:
            raise ModelError(f"no readable adapter: {error}", where=str(directory), how=how) from error
        if kind != KIND:
            raise ModelError(f"peft_type is {kind!r}, wanted {KIND!r}", where=str(directory), how=how)
        wanted = _flat(modules)
        wrong = [
            f"{key}: {_shape(wanted.get(key))} wanted, {_shape(stored.get(key))} found"
            for key in sorted(wanted.keys() | stored.keys())
            if _shape(wanted.get(key)) != _shape(stored.get(key))
        ]
        if wrong:
            more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
            raise ModelError(f"the adapter does not fit: {'; '.join(wrong[:3])}{more}", where=str(directory), how=how)
        with torch.no_grad():
            for key, tensor in wanted.items():
                tensor.copy_(stored[key])

    def delta(self, module: nn.Module) -> Tensor:
        raise ModelError(
            "a bottleneck adapter cannot be merged: it is no linear function",
            where="bottleneck",
            how='keep it beside its base model, or train with adapter = "lora"',
        )


def _flat(modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    return {f"{site}.{name}": tensor for site, module in modules.items() for name, tensor in module.named_parameters()}


def _shape(tensor: Tensor | None) -> str:
    return "none" if tensor is None else str(tuple(tensor.shape))


def build(options: Options, context: Context) -> Bottleneck:
    return Bottleneck(options=options)
