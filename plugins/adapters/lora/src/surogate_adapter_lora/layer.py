"""One adapted layer: LoRA, rsLoRA and DoRA (see ``lora.py`` for the formulas), and several adapters on one layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import surogate_model_transformers as models
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from surogate_adapter_lora.experts import LoraExperts
from surogate_adapter_lora.lowrank import add_low_rank, drop
from surogate_adapter_lora.peft_format import Stored
from surogate_core.contracts import Storage
from surogate_core.errors import ModelError


class LoraLinear(nn.Module):
    """The adapter of one linear layer. ``lora_A`` (r, K), ``lora_B`` (N, r) and with DoRA ``lora_magnitude`` (N,) are its only
    parameters. DoRA needs to know its layer: :meth:`bind`."""

    lora_magnitude: nn.Parameter | None
    _squares: Tensor

    def __init__(self, inputs: int, outputs: int, rank: int, scale: float, dropout: float, dtype: torch.dtype, dora: bool = False):
        super().__init__()
        self.scale, self.dropout = scale, dropout
        self.lora_A = nn.Parameter(torch.empty(rank, inputs, dtype=dtype))
        self.lora_B = nn.Parameter(torch.empty(outputs, rank, dtype=dtype))
        self.lora_magnitude = nn.Parameter(torch.empty(outputs, dtype=dtype)) if dora else None
        self._layer: tuple[Any, ...] = ()  # in a tuple: the layer is no part of its adapter
        self.register_buffer("_squares", None, persistent=False)  # by bind

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """x (..., K), y (..., N), the layer's own output → (..., N)."""
        a, b = self.lora_A.to(x.dtype), self.lora_B.to(x.dtype)
        rate = self.dropout if self.training else 0.0
        if self.lora_magnitude is None:
            return add_low_rank(x, y, a, b, self.scale, rate)
        (layer,) = self._layer
        if rate:  # PEFT drops the input of the base product too
            x, _ = drop(x, rate)
            plain = layer.base(x, None)
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
            self._squares = _exact(models.weight_of(layer).detach()).square().sum(1)

    @torch.no_grad()
    def norm(self) -> Tensor:
        """(N,) ‖W + s·BA‖ of each row, float32 or wider, as ‖W‖² + 2s·(W·Aᵀ)∘B + s²·(B·A·Aᵀ)∘B: BA is not formed."""
        (layer,) = self._layer
        a, b = _exact(self.lora_A), _exact(self.lora_B)
        weight = models.weight_of(layer)
        across = F.linear(weight, self.lora_A.to(weight.dtype)).to(b.dtype)
        both = 2 * self.scale * across + self.scale**2 * (b @ (a @ a.t()))
        return (self._squares + (both * b).sum(1)).clamp_min(torch.finfo(b.dtype).tiny).sqrt()


KINDS = (LoraLinear, LoraExperts)


def _exact(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


class Several(nn.Module):
    """Adapters of one layer by number, one after the other. ``active`` are the numbers of those in use; one that this layer does
    not have is passed over, and without any the layer is its base."""

    def __init__(self, parts: Mapping[int, nn.Module], active: Sequence[int]):
        super().__init__()
        self.parts = nn.ModuleDict({str(number): part for number, part in parts.items()})
        self.active = tuple(active)

    def forward(self, x: Tensor, y: Tensor, *ends: Tensor) -> Tensor:
        for number in map(str, self.active):
            if number in self.parts:
                y = self.parts[number](x, y, *ends)
        return y


def from_stored(stored: Stored) -> dict[str, nn.Module]:
    """Frozen modules with the tensors of an adapter, without dropout, on the CPU."""
    modules: dict[str, nn.Module] = {}
    for name, parts in stored.layers.items():
        a, b = parts["lora_A"], parts["lora_B"]
        module: nn.Module
        with torch.device("meta"):
            if a.dim() == 3:
                module = LoraExperts((a.shape[0], b.shape[1], a.shape[2]), stored.rank, stored.scale, 0.0, a.dtype)
            else:
                module = LoraLinear(a.shape[1], b.shape[0], stored.rank, stored.scale, 0.0, a.dtype, stored.dora)
        module.load_state_dict(dict(parts), assign=True)
        modules[name] = module.requires_grad_(False)
    return modules


def bind(model: nn.Module, modules: Mapping[str, nn.Module]) -> None:
    """Tell each adapter its layer in ``model``."""
    for name, module in modules.items():
        if isinstance(module, LoraLinear):
            module.bind(model.get_submodule(name))


def update_of(module: nn.Module) -> Tensor:
    """What merging adds to the layer's weight: (N, K), of stacked experts (E, N, K), float32. A DoRA module has to be bound."""
    if not isinstance(module, KINDS):
        raise TypeError(f"{type(module).__name__} is no LoRA")
    with torch.no_grad():
        update = (module.lora_B.float() @ module.lora_A.float()).mul_(module.scale)
        if not isinstance(module, LoraLinear) or module.lora_magnitude is None:
            return update
        weight = models.weight_of(module._layer[0]).float()
        update += weight
        rows = module.lora_magnitude.float() / torch.linalg.vector_norm(update, dim=1)
        return update.mul_(rows[:, None]).sub_(weight)


def merge_into(model: nn.Module, modules: Mapping[str, nn.Module]) -> None:
    """Add the update of each module to its layer's weight: sums in float32, rounded once to the dtype of the weight. Raises
    ModelError for weights that are not held as numbers of their shape."""
    for name, module in modules.items():
        weight = weight_at(model, name, module)
        if isinstance(module, LoraLinear) and weight is not None:
            module.to(weight.device).bind(model.get_submodule(name))
        a, b = module.get_parameter("lora_A"), module.get_parameter("lora_B")
        if weight is None or not weight.is_floating_point() or weight.shape != (*b.shape[:-1], a.shape[-1]):
            raise ModelError(
                "an adapter cannot be merged into weights that are held quantised", where=name, how='set adapter_mode = "stack"'
            )
        with torch.no_grad():
            weight.copy_(weight.float() + update_of(module.to(weight.device)))


def weight_at(model: nn.Module, name: str, module: nn.Module) -> Tensor | None:
    """The weight under an adapter's module: a layer's, or that of stacked experts; None where a storage holds it."""
    if not isinstance(module, LoraLinear):
        return models.stacked_weight(model, name)
    layer: Any = model.get_submodule(name)
    return layer.weight


def add_before(storage: Storage, module: nn.Module) -> Storage:
    """The storage, which adds the update of the module to the weight that it is given to pack: a sum in float32, rounded once to
    the dtype of the weight."""
    pack = storage.pack

    def add_and_pack(weight: Tensor) -> None:
        del vars(storage)["pack"]
        pack((weight.float() + update_of(module.to(weight.device))).to(weight.dtype))

    vars(storage)["pack"] = add_and_pack
    return storage


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def put_beside(model: nn.Module, modules: Mapping[str, nn.Module]) -> None:
    """Put each module into the adapter slot of its layer, in front of what is there."""
    filled = {}
    for name, module in modules.items():
        module.to(_device(model))
        there = models.adapter_at(model, name)
        filled[name] = module if there is None else Several({0: module, 1: there}, (0, 1))
    models.fill_slots(model, {}, filled)


def put_together(model: nn.Module, adapters: Sequence[Stored]) -> None:
    """Put adapters on a model, beside each other, numbered in this order; the first is in use."""
    parts: dict[str, dict[int, nn.Module]] = {}
    for number, stored in enumerate(adapters):
        for name, module in from_stored(stored).items():
            module.to(_device(model))
            parts.setdefault(name, {})[number] = module
    filled = {name: Several(own, (0,)) for name, own in parts.items()}
    models.fill_slots(model, {}, filled)
    for name, own in parts.items():  # fill_slots has made new layers
        for part in own.values():
            bind(model, {name: part})
