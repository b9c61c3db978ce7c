"""The core's one linear module: a weight that keeps its name, and three slots for storage, compute and adapter."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from surogate_core.contracts import Storage
from surogate_core.errors import PlanError
from surogate_model_transformers.experts import Stack, stack_at, stacks, weight_for

Compute = Callable[[Tensor, Tensor, Tensor | None], Tensor]
SLOTS = ("compute", "adapter", "storage")


class SlotLinear(nn.Linear):
    """A linear layer whose arithmetic, adapter and way to hold the weight can be chosen.

    ``weight`` (N, K) and ``bias`` (N,) or None have the names that they had in the layer it replaces, so a checkpoint's names
    are unchanged. ``compute(x, weight, bias)`` gives y (..., N) from x (..., K); ``adapter(x, y)``, if there is one, what the
    layer returns. Both become part of the model when they are modules. With a ``storage`` that has packed the weight, ``weight`` is
    None and each use unpacks it anew.
    """

    compute: Compute
    adapter: nn.Module | None
    storage: Storage | None

    def __init__(self, linear: nn.Linear, compute: Compute = F.linear, adapter: nn.Module | None = None):
        super().__init__(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.compute, self.adapter, self.storage = compute, adapter, None
        self.train(linear.training)

    def forward(self, input: Tensor) -> Tensor:
        y = self.base(input, self.bias)
        return y if self.adapter is None else self.adapter(input, y)

    def base(self, input: Tensor, bias: Tensor | None) -> Tensor:
        """What the layer computes without its adapter."""
        return self.compute(input, self.weight, bias) if self.storage is None else self._unpacked(input, bias)

    @torch.compiler.disable
    def _unpacked(self, input: Tensor, bias: Tensor | None) -> Tensor:
        shape = (self.out_features, self.in_features)
        return cast(Tensor, Unpacked.apply(input, bias, self.storage, self.compute, shape))

    def pack(self, storage: Storage, weight: Tensor) -> None:
        """Hand the weight (N, K) to the storage and let go of the parameter."""
        with torch.no_grad():
            storage.pack(weight.detach())
        self.register_parameter("weight", None)

    def adopt(self, storage: Storage, tensors: Mapping[str, Tensor]) -> bool:
        """Hand the tensors of a checkpoint that is quantised already to the storage; whether it has their format."""
        take = getattr(storage, "adopt", None)
        if take is None or not take(tensors):
            return False
        self.register_parameter("weight", None)
        return True


class Unpacked(torch.autograd.Function):
    """``compute(x, weight, bias)`` with a weight that exists only while it is used: what is kept for the backward pass is x, and
    the backward pass unpacks the weight again.

    The input gradient of ``F.linear`` needs no more than that. Another compute is run again under autograd, which costs one more
    GEMM and keeps nothing that it would have saved (an 8-bit copy of the weight, say) from the forward pass.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, storage: Storage, compute: Compute, shape: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(x, bias)
        ctx.storage, ctx.compute, ctx.weight_shape = storage, compute, shape
        return compute(x, weight_for(compute, storage, shape, x), bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = grads
        x, bias = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:2]
        weight = weight_for(ctx.compute, ctx.storage, ctx.weight_shape, x)
        if ctx.compute is F.linear:
            return dy @ weight if wanted[0] else None, dy.flatten(0, -2).sum(0) if wanted[1] else None, None, None, None
        with torch.enable_grad():
            inputs = [None if t is None else t.detach().requires_grad_(need) for t, need in zip((x, bias), wanted, strict=True)]
            y = ctx.compute(inputs[0], weight, inputs[1])
        found = iter(torch.autograd.grad(y, [t for t, need in zip(inputs, wanted, strict=True) if t is not None and need], dy))
        return *(next(found) if need else None for need in wanted), None, None, None


def fill_slots(
    model: nn.Module,
    computes: Mapping[str, Compute],
    adapters: Mapping[str, nn.Module],
    storages: Mapping[str, Storage] | None = None,
) -> list[str]:
    """Replace the named linear layers, on the meta device or not, by :class:`SlotLinear`, and fill the slots of stacked experts:
    computes and storages of ``experts.role.number``, adapters of ``experts.role``. A slot that is not named keeps what it has.
    Returns one line ``name: old -> new`` for each layer. Raises PlanError for a name that is no linear layer of the model."""
    lines = []
    banks: dict[str, Stack] = {}
    storages = storages or {}
    for name in dict.fromkeys([*computes, *adapters, *storages]):
        if found := stack_at(model, name):
            stack, number = found
            banks.setdefault(name if number is None else name.rpartition(".")[0], stack)
            if name in computes and number is not None:
                stack.set_compute(number, computes[name])
            stack.adapter = adapters.get(name, stack.adapter)
            continue
        parent, _, role = name.rpartition(".")
        try:
            old = model.get_submodule(name)
        except AttributeError:
            raise PlanError(f"the model has no layer {name}", where="claims on linear layers") from None
        if not isinstance(old, nn.Linear):
            raise PlanError(f"{name} is a {type(old).__name__}, not a linear layer", where="claims on linear layers")
        new = old if isinstance(old, SlotLinear) else SlotLinear(old)
        new.compute, new.adapter = computes.get(name, new.compute), adapters.get(name, new.adapter)
        new.storage = storages.get(name, new.storage)
        setattr(model.get_submodule(parent), role, new)
        lines.append(f"{name}: {_describe(old)} -> {_describe(new)}")
    for name, stack in banks.items():
        if own := [storages[f"{name}.{number}"] for number in range(stack.experts) if f"{name}.{number}" in storages]:
            stack.set_storages(own)
        lines.append(f"{name}: {stack.experts} experts -> {_describe(stack)}")
    return lines


def adapter_at(model: nn.Module, name: str) -> nn.Module | None:
    """What is in the adapter slot of a linear layer or of stacked experts."""
    found = stack_at(model, name)
    return getattr(model.get_submodule(name) if found is None else found[0], "adapter", None)


def weight_of(layer: Any) -> Tensor:
    """The weight (N, K) of a linear layer: itself, or what its storage unpacks, in float32."""
    return cast(Tensor, layer.storage.unpack(torch.float32) if layer.weight is None else layer.weight)


def slot_layers(model: nn.Module) -> Iterator[tuple[str, SlotLinear]]:
    """All layers with slots, with their names; those of stacked experts are :func:`~surogate_model_transformers.experts.stacks`."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, SlotLinear))


def slot_names(model: nn.Module) -> set[str]:
    """Names in ``model.state_dict()`` that belong to what fills the slots, not to the model itself."""
    names = set()
    for layer, module in slot_layers(model):
        for slot in SLOTS:
            part = getattr(module, slot)
            names |= {f"{layer}.{slot}.{name}" for name in part.state_dict()} if isinstance(part, nn.Module) else set()
    for site, _, role, stack in stacks(model):
        names |= {f"{site.removesuffix(role)}slots.{role}.{name}" for name in stack.state_dict()}
    return names


@contextlib.contextmanager
def plain(model: nn.Module) -> Iterator[None]:
    """Every layer computes as ``F.linear`` does: to look at how a model behaves without a recipe's rounding, in which all values of
    a tensor may depend on the largest, and without a change of the recipe's state."""
    filled = [(layer, layer.compute) for _, layer in slot_layers(model)]
    banks = [(stack, stack.computes) for *_, stack in stacks(model)]
    for layer, _ in filled:
        del layer.compute  # a module would not give its name to a function
        layer.compute = F.linear
    for stack, _ in banks:
        stack.computes = (F.linear,) * stack.experts
    try:
        yield
    finally:
        for layer, compute in filled:
            del layer.compute
            layer.compute = compute
        for stack, computes in banks:
            stack.computes = computes


def _describe(module: nn.Module) -> str:
    if isinstance(module, Stack):
        filled = (module.computes[0], module.adapter, *module.storages[:1])
    elif isinstance(module, SlotLinear):
        filled = (module.compute, module.adapter, module.storage)
    else:
        return type(module).__name__
    parts = [getattr(part, "__name__", type(part).__name__) for part in filled if part is not None]
    return f"{type(module).__name__}({', '.join(parts)})"
