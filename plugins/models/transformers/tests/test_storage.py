"""The storage slot: weights are packed one by one as they are read, unpacked for each use, and never kept."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from surogate_model_transformers import (
    SlotLinear,
    batch_loss,
    fill_slots,
    load_model,
    read_config,
    recompute_layers,
    slot_layers,
    slot_names,
)
from torch import Tensor, nn

from surogate_core.errors import ModelError


class Bytes(nn.Module):
    """Eight bits with one scale. Remembers what it was given and what it gave, by weak reference."""

    def __init__(self, shape: tuple[int, ...]):
        super().__init__()
        self.register_buffer("codes", torch.empty(shape, dtype=torch.int8))
        self.register_buffer("scale", torch.empty(()))
        self.seen: list[Any] = []

    def pack(self, weight: Tensor) -> None:
        self.seen.append(weakref.ref(weight.untyped_storage()))
        self.scale = weight.float().abs().amax() / 127
        self.codes = (weight.float() / self.scale).round().to(torch.int8)

    def unpack(self, dtype: torch.dtype) -> Tensor:
        weight = (self.codes.float() * self.scale).to(dtype)
        self.seen.append(weakref.ref(weight.untyped_storage()))
        return weight

    @property
    def alive(self) -> int:
        return sum(one() is not None for one in self.seen)


class Halved(torch.autograd.Function):
    """Twice the usual product: a compute with a backward of its own, that keeps its weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.biased = bias is not None
        return F.linear(x, weight * 2, bias)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        _x, weight = ctx.saved_tensors
        return dy @ weight * 2, None, dy.flatten(0, -2).sum(0) if ctx.biased else None


def halved(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return Halved.apply(x, weight, bias)  # type: ignore[no-any-return]


def stored(model: Any, storages: dict[str, Bytes], computes: Any = None) -> None:
    """Fill the storage slot of every linear layer of the blocks."""
    shapes = {
        name: tuple(module.weight.shape)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and ".layers." in name
    }
    with torch.device("meta"):
        storages.update({name: Bytes(shape) for name, shape in shapes.items()})
    fill_slots(model, dict.fromkeys(shapes, computes) if computes else {}, {}, storages)


@pytest.mark.parametrize("family", ["qwen2", "phi3", "gemma3", "qwen3_moe"])
def test_each_weight_is_packed_as_it_is_in_the_file(family: str, tiny: Any, load: Any) -> None:
    theirs, directory = tiny(family)
    storages: dict[str, Bytes] = {}
    model = load(directory, prepare=lambda model: stored(model, storages))
    assert len(storages) >= 12
    for name, storage in storages.items():
        layer = model.get_submodule(name)
        assert isinstance(layer, SlotLinear)
        assert layer.storage is storage
        assert layer.weight is None
        wanted = Bytes(())
        wanted.pack(theirs.get_submodule(name).weight.detach())
        assert torch.equal(storage.codes, wanted.codes)
        assert storage.alive == 0, "the unpacked weight is still there"
    left_out = {f"{name}.weight" for name in storages}
    assert set(model.state_dict()) - slot_names(model) == set(theirs.state_dict()) - left_out
    assert not left_out & {name for name, _ in model.named_parameters()}


def test_one_weight_at_a_time(tiny: Any, load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read in another dtype than it is stored in, a weight is a tensor of its own: gone before the next is packed."""
    most, before, storages = [0], Bytes.pack, {}  # type: ignore[var-annotated]

    def pack(self: Bytes, weight: Tensor) -> None:
        most[0] = max(most[0], sum(storage.alive for storage in storages.values()))
        before(self, weight)

    monkeypatch.setattr(Bytes, "pack", pack)
    load(tiny("llama")[1], prepare=lambda model: stored(model, storages), model_dtype="bf16")
    assert sum(len(storage.seen) for storage in storages.values()) == 21
    assert most[0] <= 1


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("compute", [None, halved])
def test_loss_and_gradients_are_those_of_the_unpacked_weights(
    compute: Callable[..., Tensor] | None, recompute: bool, tiny: Any, load: Any, packed: Any
) -> None:
    """qwen2 has biases, which may be trained beside frozen weights, as the norms and the embedding."""
    storages: dict[str, Bytes] = {}
    ours = load(tiny("qwen2")[1], prepare=lambda model: stored(model, storages, compute)).train()
    plain = load(tiny("qwen2")[1]).train()
    with torch.no_grad():
        for name, storage in storages.items():
            plain.get_submodule(name).weight.copy_(storage.unpack(torch.float32))
    if compute:
        fill_slots(plain, dict.fromkeys(storages, compute), {})
    for name in storages:
        plain.get_submodule(name).weight.requires_grad_(False)
    if recompute:
        recompute_layers(ours)
    batch = packed([[10, 9], [24]])
    one, other = batch_loss(ours, batch), batch_loss(plain, batch)
    assert sum(storage.alive for storage in storages.values()) == 0, "an unpacked weight outlives the forward pass"
    torch.testing.assert_close(one, other)
    one.backward()
    other.backward()
    assert sum(storage.alive for storage in storages.values()) == 0
    wanted = {name: parameter.grad for name, parameter in plain.named_parameters() if parameter.requires_grad}
    found = {name: parameter.grad for name, parameter in ours.named_parameters()}
    assert found.keys() == wanted.keys()
    assert any(name.endswith("q_proj.bias") for name in found)
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, msg=name)


def test_nothing_of_a_weights_size_is_saved_for_the_backward_pass() -> None:
    """Neither by a plain product nor by a compute that would keep its weight."""
    for compute in (F.linear, halved):
        with torch.device("meta"):
            storage = Bytes((40, 24))
        layer = SlotLinear(nn.Linear(24, 40), compute)
        layer.storage = storage
        layer.pack(storage, layer.weight)
        shapes: list[torch.Size] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, shapes=shapes: shapes.append(t.shape) or t, lambda t: t):
            y = layer(torch.randn(3, 24, requires_grad=True))
        y.sum().backward()
        assert torch.Size([3, 24]) in shapes
        assert not {(40, 24), (24, 40)} & {tuple(shape) for shape in shapes}


def test_a_layer_without_gradients_below_and_one_that_only_evaluates() -> None:
    with torch.device("meta"):
        storage = Bytes((40, 24))
    layer = SlotLinear(nn.Linear(24, 40), halved)
    layer.storage = storage
    layer.pack(storage, layer.weight)
    y = layer(torch.randn(3, 24))
    y.sum().backward()
    assert layer.bias.grad is not None
    layer.bias.requires_grad_(False)
    assert not layer(torch.randn(3, 24)).requires_grad


def test_random_weights_are_packed_too(tiny: Any, core: Any) -> None:
    storages: dict[str, Bytes] = {}
    settings = core(tiny("llama")[1], from_scratch=True, lora=False)
    model = load_model(read_config(settings), settings, device="cpu", prepare=lambda model: stored(model, storages))
    plain = load_model(read_config(settings), settings, device="cpu")
    for name, layer in slot_layers(model):
        assert layer.weight is None
        weight = plain.get_submodule(name).weight.detach()
        torch.testing.assert_close(layer.storage.unpack(torch.float32), weight, rtol=0, atol=float(weight.abs().amax()) / 250)


@pytest.mark.parametrize("damage", ["missing", "shape"])
def test_weights_that_do_not_fit_are_named(damage: str, tiny: Any, load: Any, tmp_path: Path) -> None:
    for path in tiny("llama")[1].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    tensors, name = load_file(tmp_path / "model.safetensors"), "model.layers.1.mlp.up_proj.weight"
    tensors[name] = tensors[name][:5].clone()
    if damage == "missing":
        del tensors[name]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=rf"{'missing' if damage == 'missing' else 'of another shape'}: {name}"):
        load(tmp_path, prepare=lambda model: stored(model, {}))


def test_what_fills_the_slots_keeps_its_precision(tiny: Any, load: Any) -> None:
    """``torch_dtype`` and ``model_dtype`` are about the model's own weights."""

    class Shift(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shift = nn.Parameter(torch.ones(32, device="meta"))

    name, storages = "model.layers.0.self_attn.q_proj", {}  # type: ignore[var-annotated]

    def fill(model: Any) -> None:
        stored(model, storages)
        fill_slots(model, {}, {name: Shift()})

    model = load(tiny("llama")[1], prepare=fill, model_dtype="bf16", torch_dtype="float32")
    assert model.get_submodule(name).adapter.shift.dtype == torch.float32
    assert storages[name].scale.dtype == torch.float32
    assert model.model.norm.weight.dtype == torch.bfloat16
