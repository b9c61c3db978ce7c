"""The core's one linear module: a weight that keeps its name, a compute slot and an adapter slot."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from surogate_core.errors import PlanError

Compute = Callable[[Tensor, Tensor, Tensor | None], Tensor]


class SlotLinear(nn.Linear):
    """A linear layer whose arithmetic and adapter can be chosen.

    ``weight`` (N, K) and ``bias`` (N,) or None have the names that they had in the layer it replaces, so a checkpoint's names
    are unchanged. ``compute(x, weight, bias)`` gives y (..., N) from x (..., K); ``adapter(x, y)``, if there is one, what the
    layer returns. Both become part of the model when they are modules.
    """

    compute: Compute
    adapter: nn.Module | None

    def __init__(self, linear: nn.Linear, compute: Compute = F.linear, adapter: nn.Module | None = None):
        super().__init__(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.compute, self.adapter = compute, adapter
        self.train(linear.training)

    def forward(self, input: Tensor) -> Tensor:
        y = self.compute(input, self.weight, self.bias)
        return y if self.adapter is None else self.adapter(input, y)


def fill_slots(model: nn.Module, computes: Mapping[str, Compute], adapters: Mapping[str, nn.Module]) -> list[str]:
    """Replace the named linear layers, on the meta device or not, by :class:`SlotLinear`; a slot that is not named keeps what it
    has. Returns one line ``name: old -> new`` for each. Raises PlanError for a name that is no linear layer of the model."""
    lines = []
    for name in dict.fromkeys([*computes, *adapters]):
        parent, _, role = name.rpartition(".")
        try:
            old = model.get_submodule(name)
        except AttributeError:
            raise PlanError(f"the model has no layer {name}", where="claims on linear layers") from None
        if not isinstance(old, nn.Linear):
            raise PlanError(f"{name} is a {type(old).__name__}, not a linear layer", where="claims on linear layers")
        new = old if isinstance(old, SlotLinear) else SlotLinear(old)
        new.compute, new.adapter = computes.get(name, new.compute), adapters.get(name, new.adapter)
        setattr(model.get_submodule(parent), role, new)
        lines.append(f"{name}: {_describe(old)} -> {_describe(new)}")
    return lines


def slot_layers(model: nn.Module) -> Iterator[tuple[str, SlotLinear]]:
    """All layers with slots, with their names."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, SlotLinear))


def slot_names(model: nn.Module) -> set[str]:
    """Names in ``model.state_dict()`` that belong to what fills the slots, not to the model itself."""
    names = set()
    for layer, module in slot_layers(model):
        for slot in ("compute", "adapter"):
            part = getattr(module, slot)
            names |= {f"{layer}.{slot}.{name}" for name in part.state_dict()} if isinstance(part, nn.Module) else set()
    return names


@contextlib.contextmanager
def plain(model: nn.Module) -> Iterator[None]:
    """Every layer computes as ``F.linear`` does: to look at how a model behaves without a recipe's rounding, in which all values of
    a tensor may depend on the largest, and without a change of the recipe's state."""
    filled = [(layer, layer.compute) for _, layer in slot_layers(model)]
    for layer, _ in filled:
        del layer.compute  # a module would not give its name to a function
        layer.compute = F.linear
    try:
        yield
    finally:
        for layer, compute in filled:
            del layer.compute
            layer.compute = compute


def _describe(module: nn.Module) -> str:
    if not isinstance(module, SlotLinear):
        return type(module).__name__
    compute = type(module.compute).__name__ if isinstance(module.compute, nn.Module) else module.compute.__name__
    return f"SlotLinear({', '.join([compute, *([type(module.adapter).__name__] if module.adapter is not None else [])])})"
