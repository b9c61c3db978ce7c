"""The places of a model that offers may claim, read off its modules. No model is known by name here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from surogate_core.contracts import Site, SiteKind
from surogate_model_transformers.experts import is_experts, stacked
from surogate_model_transformers.vision import decoder_name

ACTIVATION_MODULES = ("transformers.activations", "torch.nn.modules.activation")


def blocks(model: Any) -> tuple[str, nn.ModuleList]:
    """Name and list of the decoder blocks: the module list that holds one entry a layer. Those of a vision tower are none."""
    count = model.config.get_text_config().num_hidden_layers
    decoder = decoder_name(model)
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count and name.startswith(decoder):
            return name, module
    return "", nn.ModuleList()


def list_sites(model: Any) -> tuple[Site, ...]:
    """All sites in the model's order; see :class:`~surogate_core.contracts.Site`.

    ``model`` is a transformers causal language model, usually on the meta device. Linear layers count only inside of decoder
    blocks. Expert weights that one module stacks are ``stacked_linear``, (E, N, K) whichever way the family holds them.
    """
    return tuple(_sites(model))


def _sites(model: Any) -> Iterator[Site]:
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    prefix, layers = blocks(model)
    for name, module in model.named_modules():
        layer = None
        if len(layers) and name.startswith(prefix + "."):
            layer = int(name[len(prefix) + 1 :].partition(".")[0])
        kind = _kind(module, embedding, head, inside=layer is not None)
        if kind is not None:
            weight = getattr(module, "weight", None)
            bias = getattr(module, "bias", None) is not None
            yield Site(name=name, kind=kind, shape=() if weight is None else tuple(weight.shape), bias=bias, layer=layer)
        if layer is not None and is_experts(module):
            for role, shape in stacked(module).items():
                bias = hasattr(module, f"{role}_bias")
                yield Site(name=f"{name}.{role}", kind="stacked_linear", shape=shape, bias=bias, layer=layer)


def _kind(module: nn.Module, embedding: nn.Module, head: nn.Module | None, *, inside: bool) -> SiteKind | None:
    if module is head:
        return "head"
    if module is embedding:
        return "embedding"
    title = type(module).__name__
    if isinstance(module, nn.Linear):  # Phi-MoE's and Llama 4's routers inherit its weight, and compute something else with it
        return "linear" if inside and "Router" not in title else None
    if "Norm" in title:
        return "norm"
    if inside and title.endswith("Attention"):
        return "attention"
    if inside and title.endswith("MLP"):
        return "mlp"
    if inside and type(module).__module__ in ACTIVATION_MODULES:
        return "activation"
    return None
