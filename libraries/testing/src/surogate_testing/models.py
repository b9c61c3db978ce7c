"""Where models come from, compared with the same model loaded by somebody else. Shapes: B rows, S positions, V tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from surogate_core.contracts import Batch, ModelSource, Outline, Rehearses, Site

CPU = torch.device("cpu")
DOCUMENTS = ((0, 0, 7), (0, 7, 13), (1, 0, 16))
"""Row, start and stop of each document of the batch; the rest of its 2 rows of 16 positions is padding."""


def check_model(make: Callable[[], ModelSource], reference: nn.Module, directory: Path, *, tolerance: float = 1e-4) -> None:
    """``make()`` gives the source of a small model in float32 on the CPU, without dropout; ``reference`` is the same model with the
    same weights, loaded by another library and called as ``reference(input_ids=(1, S)).logits``, (1, S, V). ``directory`` is empty.

    The sites of the outline are modules of it, on the meta device. The loss of two rows with three documents and padding is that of
    the reference on each document alone, and so are the gradients of parameters that have the same name there: a relative error
    of ``tolerance``. Every linear site calls its compute, its adapter and its storage, with shapes as told. Recomputation
    changes no number. What ``save`` wrote is read back bit for bit; ``blank``, if there is one, has the same shapes."""
    source = make()
    outline = source.outline()
    _check_outline(outline)
    assert len(getattr(source.tokenizer(), "tokenizer", source.tokenizer())) > 0, "the tokenizer has no tokens"
    batch, wanted = _compared(reference)
    computes = {part.name: _Counted() for site in _linear(outline) for part in site.parts}
    model = _loaded(source, outline, computes)
    found = _loss_and_gradients(source, model, batch)
    _agree(found, wanted, "the loss of packed documents is not that of each alone, by the reference", tolerance)
    shared = found.keys() & wanted.keys() - {"loss"}
    assert shared, "no parameter has a name of the reference's: a checkpoint's names are not kept"
    for site in _linear(outline):
        for part in site.parts:
            seen = computes[part.name].seen
            assert site.kind == "stacked_linear" or seen, f"{part.name}: the compute in its slot is never called"
            assert set(seen) <= {part.shape}, f"{part.name}: its compute got a weight of {seen[0]}, the site says {part.shape}"
    _check_blocks(source, model, outline)
    source.recompute(model)
    _agree(_loss_and_gradients(source, model, batch), found, "recomputation changes", 1e-6)
    source.save(model, source.tokenizer(), directory)
    again = _loaded(make(), outline, {}, weights=directory)
    for name, tensor in _state(model).items():
        assert torch.equal(tensor, _state(again)[name]), f"{name} is another one after save and load"
    _check_adapters(make(), outline, batch, found["loss"])
    _check_storages(make(), outline, batch, found["loss"])
    if isinstance(source, Rehearses):
        blank = source.blank({}, {}, {})
        assert all(tensor.is_meta for tensor in blank.state_dict().values()), "blank gives a model with values"
        shapes, real = ({name: tuple(tensor.shape) for name, tensor in one.state_dict().items()} for one in (blank, again))
        assert shapes == real, f"blank has other tensors than load: {sorted(shapes.items() ^ real.items())[:3]}"


def _linear(outline: Outline) -> list[Site]:
    return [site for site in outline.sites if site.kind in ("linear", "stacked_linear")]


def _state(model: nn.Module) -> Mapping[str, Tensor]:
    return dict(model.named_parameters())


def _check_outline(outline: Outline) -> None:
    assert all(parameter.is_meta for parameter in outline.skeleton.parameters()), "the outline holds weights: they are not read yet"
    names = [site.name for site in outline.sites]
    assert len(names) == len(set(names)), "two sites have one name"
    assert _linear(outline), "the outline lists no linear layer"
    modules = dict(outline.skeleton.named_modules())
    for site in outline.sites:
        if site.kind == "stacked_linear":
            assert site.name.rpartition(".")[0] in modules, f"site {site.name} belongs to no module of the outline"
            continue
        assert site.name in modules, f"site {site.name} is no module of the outline"
        weight = getattr(modules[site.name], "weight", None)
        told = () if weight is None else tuple(weight.shape)
        assert site.shape == told, f"site {site.name} says {site.shape}, its weight is {told}"


def _check_blocks(source: ModelSource, model: nn.Module, outline: Outline) -> None:
    blocks = list(source.blocks(model))
    layers = {site.layer for site in outline.sites if site.layer is not None}
    assert layers == set(range(len(blocks))), f"{len(blocks)} decoder layers, and the sites name {sorted(layers)}"
    for number, block in enumerate(blocks):
        inside = {id(module) for module in block.modules()}
        for site in outline.sites:
            if site.layer == number and site.kind != "stacked_linear":
                assert id(model.get_submodule(site.name)) in inside, f"{site.name} is not in decoder layer {number}"


def _compared(reference: nn.Module) -> tuple[Batch, dict[str, Tensor]]:
    """A batch, and what the reference gives for its documents one by one: the loss, and gradients by the name of the parameter."""
    reference = reference.float().train()
    reference.zero_grad(set_to_none=True)
    with torch.no_grad():
        size = reference(input_ids=torch.zeros(1, 1, dtype=torch.long)).logits.shape[-1]
    generator = torch.Generator().manual_seed(4)
    ids = torch.randint(0, size, (2, 16), generator=generator)
    labels, weights = torch.full_like(ids, -100), torch.zeros(2, 16)
    positions, documents = torch.arange(16).repeat(2, 1), torch.full((2, 16), 9, dtype=torch.int32)
    positions[0, 13:] = torch.arange(3)
    loss = torch.zeros(())
    for number, (row, start, stop) in enumerate(DOCUMENTS):
        here = slice(start, stop)
        positions[row, here], documents[row, here] = torch.arange(stop - start), number
        labels[row, start : stop - 1] = ids[row, start + 1 : stop]
        weights[row, start : stop - 1] = torch.rand(stop - start - 1, generator=generator) + 0.5
        logits = reference(input_ids=ids[row : row + 1, here]).logits[0]
        each = F.cross_entropy(logits, labels[row, here].clone(), reduction="none", ignore_index=-100)
        loss = loss + (each * weights[row, here].clone()).sum()
    loss.backward()
    batch = Batch(input_ids=ids, labels=labels, weights=weights, position_ids=positions, document_ids=documents)
    return batch, {"loss": loss.detach(), **_gradients(reference)}


def _gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def _loaded(
    source: ModelSource, outline: Outline, computes: Any, adapters: Any = None, storages: Any = None, **more: Any
) -> nn.Module:
    model = source.load(computes, adapters or {}, storages or {}, device=CPU, **more)
    assert model.training, "load gives a model that is not in training mode"
    wanting = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    assert not wanting, f"{wanting[:1]} has no value after load"
    source.ready(model)
    for site in outline.sites:
        if site.kind != "stacked_linear":
            assert site.name in dict(model.named_modules()), f"site {site.name} is no module of the loaded model"
    return model


def _loss_and_gradients(source: ModelSource, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    model.zero_grad(set_to_none=True)
    loss = source.loss(model, batch)
    assert loss.shape == (), f"loss gives {tuple(loss.shape)}, wanted a scalar"
    assert loss.dtype in (torch.float32, torch.float64), f"the loss is {loss.dtype}, wanted float32 or wider"
    if loss.requires_grad:
        loss.backward()
    return {"loss": loss.detach(), **_gradients(model)}


def _agree(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], what: str, tolerance: float) -> None:
    for name in sorted(found.keys() & wanted.keys(), key=lambda name: name != "loss"):
        error = float((found[name].double() - wanted[name].double()).norm() / wanted[name].double().norm().clamp_min(1e-12))
        whose = "the loss" if name == "loss" else f"the gradient of {name}"
        assert error <= tolerance, f"{what}: {whose} has a relative error of {error:.2e}, above {tolerance:.2e}"


class _Counted:
    """``F.linear`` that remembers the shapes of its weights."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, ...]] = []

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        self.seen.append(tuple(weight.shape))
        return F.linear(x, weight, bias)


class _Shift(nn.Module):
    """An adapter: what it adds is the same for every input."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.empty(outputs))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return y + self.shift


class _Kept(nn.Module):
    """A storage that keeps the weight as it is."""

    values: Tensor

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("values", torch.empty(shape))
        self.packed = 0

    def pack(self, weight: Tensor) -> None:
        self.values, self.packed = weight.clone(), self.packed + 1

    def unpack(self, dtype: torch.dtype) -> Tensor:
        return self.values.to(dtype, copy=True)


def _check_adapters(source: ModelSource, outline: Outline, batch: Batch, plain: Tensor) -> None:
    sites = [site for site in outline.sites if site.kind == "linear"]
    with torch.device("meta"):
        adapters = {site.name: _Shift(site.shape[0]) for site in sites}
    model = _loaded(source, outline, {}, adapters)
    for name, adapter in adapters.items():
        assert not adapter.shift.is_meta, f"{name}: its adapter got no memory"
        adapter.shift.data.zero_()
    model.requires_grad_(False)
    for adapter in adapters.values():
        adapter.requires_grad_(True)
    with_zero = _loss_and_gradients(source, model, batch)["loss"]
    _agree({"loss": with_zero}, {"loss": plain}, "adapters that add nothing change", 1e-5)
    for name, adapter in adapters.items():
        assert adapter.shift.grad is not None, f"{name}: the adapter in its slot is not called, or gets no gradient"


def _check_storages(source: ModelSource, outline: Outline, batch: Batch, plain: Tensor) -> None:
    with torch.device("meta"):
        storages = {part.name: _Kept(part.shape) for site in _linear(outline) for part in site.parts}
    model = _loaded(source, outline, {}, {}, storages)
    for name, storage in storages.items():
        assert storage.packed == 1, f"{name}: its storage was given a weight {storage.packed} times, not once"
    model.requires_grad_(False)
    model.get_submodule(next(site.name for site in outline.sites if site.kind == "norm")).requires_grad_(True)
    _agree(_loss_and_gradients(source, model, batch), {"loss": plain}, "storages that change nothing change", 1e-5)
    kept = {name for name, _ in model.named_parameters()}
    for site in outline.sites:
        if site.kind == "linear":
            assert f"{site.name}.weight" not in kept, f"{site.name}: the weight is kept beside its storage"
