from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from surogate_model_transformers import SlotLinear, fill_slots, list_sites, logits, read_config, skeleton, slot_names
from surogate_model_transformers.loss import check_head
from surogate_model_transformers.slots import plain
from torch import Tensor, nn

from surogate_core.errors import PlanError


def halved(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(x, weight / 2, bias)


class Shift(nn.Module):
    def __init__(self, width: int, device: str | None = None):
        super().__init__()
        self.shift = nn.Parameter(torch.ones(width, device=device))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return y + self.shift


@pytest.mark.parametrize("early", [True, False])
def test_slots_do_what_they_are_filled_with(early: bool, tiny: Any, load: Any, packed: Any) -> None:
    theirs, directory = tiny("qwen2")
    name = "model.layers.1.mlp.up_proj"
    lines: list[str] = []

    def fill(model: Any) -> None:
        lines.extend(fill_slots(model, {name: halved}, {name: Shift(48)}))

    model = load(directory, prepare=fill if early else None)
    if not early:
        fill(model)
    assert lines == [f"{name}: Linear -> SlotLinear(halved, Shift)"]
    batch, (row, at) = packed([[24]]), (0, slice(0, 24))

    def hook(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        return out / 2 + 1

    handle = theirs.get_submodule(name).register_forward_hook(hook)
    with torch.no_grad():
        expected = theirs(input_ids=batch.input_ids, use_cache=False).logits
        handle.remove()
        torch.testing.assert_close(logits(model, batch)[row, at], expected[row, at], atol=1e-5, rtol=0)
    assert set(model.state_dict()) - set(theirs.state_dict()) == slot_names(model) == {f"{name}.adapter.shift"}


def test_adapters_from_the_meta_device_get_memory(tiny: Any, load: Any) -> None:
    name = "model.layers.0.self_attn.q_proj"
    model = load(tiny("llama")[1], prepare=lambda model: fill_slots(model, {}, {name: Shift(32, device="meta")}))
    assert model.get_submodule(name).adapter.shift.device.type == "cpu"


def test_slots_can_be_filled_one_after_the_other(tiny: Any, load: Any) -> None:
    model, name = load(tiny("llama")[1]), "model.layers.0.self_attn.q_proj"
    fill_slots(model, {name: halved}, {})
    adapter = Shift(32)
    fill_slots(model, {}, {name: adapter})
    layer = model.get_submodule(name)
    assert isinstance(layer, SlotLinear)
    assert (layer.compute, layer.adapter) == (halved, adapter)


@pytest.mark.parametrize(("name", "said"), [("model.layers.9.x", "no layer"), ("model.norm", "not a linear layer")])
def test_names_that_are_no_linear_layers_are_refused(name: str, said: str, tiny: Any, load: Any) -> None:
    with pytest.raises(PlanError, match=said):
        fill_slots(load(tiny("llama")[1]), {name: halved}, {})


@pytest.mark.parametrize(
    ("family", "linears", "stacked"),
    [
        ("llama", {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}, {}),
        ("phi3", {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}, {}),
        ("qwen3_moe", {"q_proj", "k_proj", "v_proj", "o_proj"}, {"gate_up_proj": (4, 48, 32), "down_proj": (4, 32, 24)}),
        ("gpt_oss", {"q_proj", "k_proj", "v_proj", "o_proj"}, {"gate_up_proj": (4, 96, 32), "down_proj": (4, 32, 48)}),
    ],
)
def test_sites(family: str, linears: set[str], stacked: dict[str, tuple[int, ...]], tiny: Any, core: Any) -> None:
    options = core(tiny(family)[1])
    model = skeleton(read_config(options), options)
    assert all(parameter.is_meta for parameter in model.parameters())
    sites = list_sites(model)
    by_kind = {kind: [site for site in sites if site.kind == kind] for kind in {site.kind for site in sites}}
    assert {site.role for site in by_kind["linear"]} == linears
    assert len(by_kind["linear"]) == 3 * len(linears)
    assert {site.layer for site in by_kind["linear"]} == {0, 1, 2}
    assert {site.role: site.shape for site in by_kind.get("stacked_linear", [])} == stacked
    assert [site.name for site in by_kind["embedding"]] == ["model.embed_tokens"]
    assert [(site.name, site.shape) for site in by_kind["head"]] == [("lm_head", (96, 32))]
    assert len(by_kind["attention"]) == 3
    assert len([site for site in by_kind["norm"] if site.role in ("input_layernorm", "post_attention_layernorm", "norm")]) == 7
    for site in by_kind["linear"]:
        module = model.get_submodule(site.name)
        assert (site.shape, site.bias) == (tuple(module.weight.shape), module.bias is not None)


def test_the_model_is_inspected_without_the_recipe(tiny: Any, load: Any, packed: Any) -> None:
    """A recipe with one scale for a whole tensor is no mixing of documents, and its state does not move before the first step."""

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

        def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            self.calls += 1
            return F.linear(x, weight, bias) + x.abs().amax()

    name, compute = "model.layers.1.mlp.up_proj", Whole()
    model = load(tiny("llama")[1], prepare=lambda model: fill_slots(model, {name: compute}, {}))
    assert check_head(model) is None
    assert int(compute.calls) == 0
    with plain(model):
        before = logits(model, packed([[24]]))
    assert model.get_submodule(name).compute is compute
    assert not torch.allclose(logits(model, packed([[24]])), before)
    assert int(compute.calls) == 1
    assert f"{name}.compute.calls" in model.state_dict()
