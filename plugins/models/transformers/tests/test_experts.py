"""Stacked experts: products, slots and storages against transformers' own experts, one expert after the other."""

from __future__ import annotations

import contextlib
import copy
import weakref
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from surogate_model_transformers import batch_loss, experts, fill_slots, list_sites, quants, recompute_layers, slot_names
from surogate_model_transformers.experts import Groups, experts_forward, grouped, stacks
from surogate_model_transformers.plugin import Options
from surogate_model_transformers.sites import blocks
from surogate_offload import StandIn, opening
from torch import Tensor, nn

from surogate_core.errors import PlanError

MANY = {"num_experts": 16, "num_local_experts": 16}


def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A compute that is not ``F.linear``, with its values."""
    return x @ weight.t() if bias is None else x @ weight.t() + bias


class Rounded(nn.Module):
    """Bytes with one scale a matrix; counts, and remembers by weak reference what it has given."""

    def __init__(self, shape: tuple[int, ...]):
        super().__init__()
        self.register_buffer("codes", torch.empty(shape, dtype=torch.int8))
        self.register_buffer("scale", torch.empty(()))
        self.seen: list[Any] = []

    def pack(self, weight: Tensor) -> None:
        self.scale = weight.float().abs().amax() / 127
        self.codes = (weight.float() / self.scale).round().to(torch.int8)

    def unpack(self, dtype: torch.dtype) -> Tensor:
        weight = (self.codes.float() * self.scale).to(dtype)
        self.seen.append(weakref.ref(weight.untyped_storage()))
        return weight


def parts(model: Any) -> list[Any]:
    return [part for site in list_sites(model) if site.kind == "stacked_linear" for part in site.parts]


def gradients(model: Any, batch: Any) -> dict[str, Tensor]:
    model.zero_grad()
    loss = batch_loss(model, batch)
    loss.backward()
    return {"loss": loss.detach()} | {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def own_gradients(theirs: Any, batch: Any) -> dict[str, Tensor]:
    """Of transformers' model with its eager experts, document by document."""
    theirs.set_experts_implementation("eager")
    theirs.zero_grad()
    total = torch.zeros((), dtype=next(theirs.parameters()).dtype)
    for row, at in batch.pieces:
        found = theirs(input_ids=batch.input_ids[row : row + 1, at], use_cache=False).logits[0]
        each = F.cross_entropy(found, batch.labels[row, at], reduction="none", ignore_index=-100)
        total = total + (each * batch.weights[row, at]).sum()
    total.backward()
    return {"loss": total.detach()} | {name: p.grad.clone() for name, p in theirs.named_parameters() if p.grad is not None}


def close(found: dict[str, Tensor], wanted: dict[str, Tensor], within: float = 1e-5) -> None:
    assert found.keys() == wanted.keys()
    for name, one in found.items():
        scale = max(1.0, float(wanted[name].abs().max()))
        assert float((one - wanted[name]).abs().max()) <= within * scale, name


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss", "mixtral"])
@pytest.mark.parametrize("way", ["grouped", "unaligned", "looped", "recomputed"])
def test_loss_and_gradients_are_those_of_transformers_eager_experts(
    family: str, way: str, tiny: Any, load: Any, packed: Any
) -> None:
    odd = {"moe_intermediate_size": 22, "intermediate_size": 22} if way == "unaligned" else {}
    theirs, directory = tiny(family, **odd)
    model = load(directory).train()
    if way == "looped":
        fill_slots(model, {part.name: product for part in parts(model)}, {})
    if way == "recomputed":
        recompute_layers(model)
    batch = packed([[9, 11], [3, 2, 14]])
    close(gradients(model, batch), own_gradients(theirs, batch))


def test_in_double_precision(tiny: Any, load: Any) -> None:
    """And where a token has an expert twice, which no router does."""
    for family in ("qwen3_moe", "gpt_oss"):
        theirs, directory = tiny(family)
        layer = 1
        ours, own = (copy.deepcopy(each.model.layers[layer].mlp.experts).double() for each in (load(directory), theirs))
        own.config._experts_implementation_internal = "eager"
        random = torch.Generator().manual_seed(0)
        x = torch.randn(9, 32, generator=random, dtype=torch.float64).requires_grad_()
        index = torch.randint(0, 4, (9, 3), generator=random)
        weights = torch.rand(9, 3, generator=random, dtype=torch.float64).requires_grad_()
        y, wanted = ours(x, index, weights), own(x, index, weights)
        torch.testing.assert_close(y, wanted, rtol=0, atol=1e-13)
        dy = torch.randn(y.shape, generator=random, dtype=torch.float64)
        found = torch.autograd.grad(y, (x, weights, *ours.parameters()), dy)
        torch.testing.assert_close(found, torch.autograd.grad(wanted, (x, weights, *own.parameters()), dy), rtol=1e-12, atol=1e-12)


def test_grouped_products_with_empty_groups() -> None:
    random = torch.Generator().manual_seed(0)
    for width in (8, 5):
        x = torch.randn(7, width, generator=random).requires_grad_()
        weights = torch.randn(4, width, 12, generator=random).requires_grad_()
        groups = Groups.of(torch.tensor([0, 0, 0, 2, 2, 3, 3]), 4)
        assert groups.runs() == [(0, slice(0, 3)), (2, slice(3, 5)), (3, slice(5, 7))]
        y = grouped(x, weights, groups.ends)
        wanted = torch.einsum("sk,skn->sn", x, weights[groups.expert])
        torch.testing.assert_close(y, wanted)
        dy = torch.randn(y.shape, generator=random)
        found, known = (torch.autograd.grad(one, (x, weights), dy) for one in (y, wanted))
        torch.testing.assert_close(found, known)
        assert not found[1][1].any()


@pytest.mark.parametrize("compute", [None, product])
@pytest.mark.parametrize("where", ["meta", "fake"])
def test_a_rehearsal_on_tensors_without_values(where: str, compute: Any, tiny: Any, load: Any) -> None:
    """Forward and backward, of stored and of trained experts, with the shapes of the real thing."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    storages: dict[str, Rounded] = {}
    for model in (load(tiny("gpt_oss")[1], prepare=lambda model: stored(model, storages, compute)), load(tiny("gpt_oss")[1])):
        module, mode = model.model.layers[0].mlp.experts, FakeTensorMode(allow_non_fake_inputs=True)
        device = "meta" if where == "meta" else "cpu"
        with contextlib.nullcontext() if where == "meta" else mode:
            module.to(device)
            x, index = torch.empty(10, 32, device=device, requires_grad=True), torch.empty(10, 2, device=device, dtype=torch.int64)
            y = module(x, index, torch.empty(10, 2, device=device))
            y.sum().backward()
        assert x.grad is not None
        assert y.shape == x.grad.shape == (10, 32)


def test_nothing_is_read_back_from_the_device(tiny: Any, load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tensor on the meta device has no value that could be read; this way of the product does not ask for it."""
    monkeypatch.setattr(experts, "_numbers", None)
    module = load(tiny("gpt_oss")[1]).model.layers[0].mlp.experts.to("meta", torch.bfloat16)
    x = torch.empty(10, 32, device="meta", dtype=torch.bfloat16)
    y = experts_forward(module, x, torch.empty(10, 2, dtype=torch.int64, device="meta"), torch.empty(10, 2, device="meta"))
    assert y.shape == (10, 32)


def stored(model: Any, storages: dict[str, Rounded], compute: Any = None) -> None:
    with torch.device("meta"):
        storages.update({part.name: Rounded(part.shape) for part in parts(model)})
    fill_slots(model, dict.fromkeys(storages, compute) if compute else {}, {}, storages)


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss"])
@pytest.mark.parametrize("compute", [None, product])
@pytest.mark.parametrize("how", ["all", "selective", "offloaded", "both"])
def test_stored_experts(family: str, compute: Any, how: str, tiny: Any, load: Any, packed: Any) -> None:
    """Each expert is packed as the file has it; loss and gradients are those of the unpacked weights; with ``selective`` exactly
    the experts that tokens are routed to are unpacked, and nothing unpacked stays. Offloaded, the experts of a layer come in one
    copy for each stack."""
    directory = tiny(family, **MANY)[1]
    storages: dict[str, Rounded] = {}
    offloads, device = how in ("offloaded", "both"), StandIn("late")

    def fill(model: Any) -> None:
        stored(model, storages, compute)
        for _, _, _, stack in stacks(model):
            stack.selective = how in ("selective", "both")

    model, plain = load(directory, prepare=fill), load(directory)
    if offloads:
        with opening(lambda *_: device):
            quants.keep(blocks(model)[1], Options(qlora_offload_experts=True), False, torch.device("cpu"))
    layers = len(blocks(model)[1])
    left_out = {name for name, *_ in stacks(model)}
    assert set(model.state_dict()) - slot_names(model) == set(plain.state_dict()) - left_out
    with torch.no_grad():
        for name, module, role, stack in stacks(plain):
            for number, own in enumerate(stack.upright(getattr(module, role))):
                again = Rounded(())
                again.pack(own)
                assert torch.equal(storages[f"{name}.{number}"].codes, again.codes)
                own.copy_(again.unpack(torch.float32))
            getattr(module, role).requires_grad_(False)
    batch = packed([[3], [2]], length=3)
    gradients(model, batch)  # the first one looks how the model behaves
    for storage in storages.values():
        storage.seen.clear()
    before = device.copies["in"]
    routed: dict[str, set[int]] = {}
    handles = [
        module.register_forward_pre_hook(
            lambda _, given, name=name: routed.setdefault(name, set()).update(given[1].flatten().tolist())
        )
        for name, module in model.named_modules()
        if name.endswith(".experts")
    ]
    found = gradients(model, batch)
    close(found, gradients(plain, batch))
    for handle in handles:
        handle.remove()
    assert all(0 < len(each) < 16 for each in routed.values())
    looped = compute is not None
    for name, storage in storages.items():
        bank, _, number = name.rpartition(".")
        used = not (looped or how in ("selective", "both")) or int(number) in routed[bank.rpartition(".")[0]]
        assert len(storage.seen) == 2 * used, f"{name}: forward and backward unpack what is used, once each"
        assert not any(one() is not None for one in storage.seen), "an unpacked weight is still there"
    held = sum(tensor.nbytes for storage in storages.values() for tensor in storage.state_dict().values())
    assert device.held >= held if offloads else not device.held
    assert device.peak == device.held * min(2, layers) // layers
    assert device.copies["in"] - before == (2 * max(0, layers - 2) * (len(storages) // 16 // layers) if offloads else 0)


@pytest.mark.parametrize("name", ["model.layers.0.mlp.experts.gate_up_proj.4", "model.layers.0.mlp.experts.norm"])
def test_names_that_are_no_experts_are_refused(name: str, tiny: Any, load: Any) -> None:
    with pytest.raises(PlanError, match="no layer"):
        fill_slots(load(tiny("qwen3_moe")[1]), {name: product}, {})
