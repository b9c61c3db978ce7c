"""Prompt tuning (Lester et al., arXiv 2104.08691) and prefix tuning (Li and Liang, arXiv 2101.00190, without its projection).

``prompt`` trains P input embeddings (P, H), ``prefix`` P keys and values of every layer, (P, 2·L·G·D) with L layers, G heads of
keys and head size D; both float32, drawn from a normal distribution with deviation 1 as PEFT draws them. Every document of a packed
row comes after them; how that works is in ``surogate_model_transformers.virtual``.

The files are PEFT's: ``prompt_embeddings`` in ``adapter_model.safetensors``, and ``adapter_config.json``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import surogate_model_transformers as models
import torch
from attrs import frozen
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from surogate_adapter_prompt.plugin import Options
from surogate_core.contracts import Context, Outline, Site
from surogate_core.errors import ModelError

CONFIG, WEIGHTS, KEY, NAME = "adapter_config.json", "adapter_model.safetensors", "prompt_embeddings", "virtual_tokens"
TYPES = {"prompt": "PROMPT_TUNING", "prefix": "PREFIX_TUNING"}
Kind = Literal["prompt", "prefix"]


@frozen(kw_only=True)
class Shape:
    """Of a model: hidden size, layers, heads of queries, heads of keys, size of a head of keys."""

    hidden: int
    layers: int
    heads: int
    groups: int
    head: int


class Tokens(nn.Module):
    """``weight`` (P, H) or (P, 2·L·G·D) is the only parameter. A ``surogate_model_transformers.virtual.VirtualTokens``."""

    def __init__(self, kind: Kind, count: int, shape: Shape):
        super().__init__()
        self.kind, self.count, self.shape = kind, count, shape
        width = shape.hidden if kind == "prompt" else shape.layers * 2 * shape.groups * shape.head
        self.weight = nn.Parameter(torch.empty(count, width, dtype=torch.float32))

    def embeddings(self) -> Tensor | None:
        return self.weight if self.kind == "prompt" else None

    def keys_values(self) -> tuple[tuple[Tensor, Tensor], ...] | None:
        if self.kind == "prompt":
            return None
        size = self.shape
        pairs = self.weight.view(self.count, size.layers, 2, size.groups, size.head).permute(1, 2, 3, 0, 4)
        return tuple((pair[0], pair[1]) for pair in pairs)


@frozen(kw_only=True)
class Virtual:
    """See :class:`surogate_core.contracts.Adapter` and :class:`surogate_core.contracts.Attaches`. It takes no slot."""

    kind: Kind
    options: Options

    def claim(self, site: Site) -> str | None:
        return f"{self.kind} tuning adapts no layer"

    def linear(self, site: Site) -> nn.Module:
        raise ModelError(f"{self.kind} tuning adapts no layer", where=site.name)

    def reset(self, module: nn.Module, generator: torch.Generator) -> None:
        with torch.no_grad():
            module.get_parameter("weight").normal_(generator=generator)

    def attached(self, outline: Outline) -> dict[str, nn.Module]:
        return {NAME: Tokens(self.kind, self.options.num_virtual_tokens, _shape(outline.skeleton))}

    def attach(self, model: nn.Module, modules: Mapping[str, nn.Module], generator: torch.Generator) -> dict[str, nn.Module]:
        tokens = Tokens(self.kind, self.options.num_virtual_tokens, _shape(model))
        self.reset(tokens, generator)
        models.set_tokens(model, tokens.to(next(model.parameters()).device))
        return {NAME: tokens}

    def save(self, modules: Mapping[str, nn.Module], directory: Path, base_model: str) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        tokens = modules[NAME]
        assert isinstance(tokens, Tokens)
        save_file({KEY: tokens.weight.detach().cpu().contiguous()}, directory / WEIGHTS, metadata={"format": "pt"})
        size, prefix = tokens.shape, self.kind == "prefix"
        config = {
            "peft_type": TYPES[self.kind],
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base_model,
            "inference_mode": True,
            "num_virtual_tokens": tokens.count,
            "num_transformer_submodules": 1,
            "num_layers": size.layers,
            "token_dim": size.groups * size.head if prefix else size.hidden,
            "num_attention_heads": size.groups if prefix else size.heads,
            **({"encoder_hidden_size": size.groups * size.head, "prefix_projection": False} if prefix else {}),
            **({} if prefix else {"prompt_tuning_init": "RANDOM"}),
        }
        (directory / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    def load(self, modules: Mapping[str, nn.Module], directory: Path) -> None:
        """Raises ModelError for another kind of adapter, another number of tokens or another model."""
        how = "give the checkpoint of a run with the same adapter, num_virtual_tokens and base model"
        try:
            config: dict[str, Any] = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
            stored = load_file(directory / WEIGHTS)
        except (OSError, ValueError, SafetensorError) as error:
            raise ModelError(f"no readable adapter: {error}", where=str(directory), how=how) from error
        if config.get("peft_type") != TYPES[self.kind]:
            what = f"peft_type is {config.get('peft_type')!r}, wanted {TYPES[self.kind]!r}"
            raise ModelError(what, where=str(directory), how=how)
        if config.get("prefix_projection"):
            raise ModelError("prefix_projection is not available in this version", where=str(directory), how="train without it")
        wanted = modules[NAME].get_parameter("weight")
        found = tuple(stored[KEY].shape) if KEY in stored else None
        if found != tuple(wanted.shape):
            raise ModelError(f"{KEY} has shape {found}, wanted {tuple(wanted.shape)}", where=str(directory), how=how)
        with torch.no_grad():
            wanted.copy_(stored[KEY])

    def delta(self, module: nn.Module) -> Tensor:
        raise ModelError(
            "virtual tokens cannot be merged: they change no weight",
            where=self.kind,
            how='keep them beside their base model, or train with adapter = "lora"',
        )


def _shape(model: nn.Module) -> Shape:
    config: Any = model.config
    config = config.get_text_config()
    heads = config.num_attention_heads
    return Shape(
        hidden=config.hidden_size,
        layers=config.num_hidden_layers,
        heads=heads,
        groups=getattr(config, "num_key_value_heads", None) or heads,
        head=getattr(config, "head_dim", None) or config.hidden_size // heads,
    )


def build_prompt(options: Options, context: Context) -> Virtual:
    return Virtual(kind="prompt", options=options)


def build_prefix(options: Options, context: Context) -> Virtual:
    return Virtual(kind="prefix", options=options)
