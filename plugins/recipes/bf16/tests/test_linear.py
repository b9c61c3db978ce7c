from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from surogate_recipe_bf16.linear import build
from surogate_recipe_bf16.plugin import Options, check_plan, register_recipes
from torch import nn

from surogate_core.contracts import Site
from surogate_core.testing import context


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_is_torchs_in_value_and_gradient(dtype: torch.dtype, bias: bool) -> None:
    recipe = build(Options(), context(model_dtype="fp32"))
    site = Site(name="model.layers.0.mlp.up_proj", kind="linear", shape=(6, 4), bias=bias, layer=0)
    assert recipe.claim(site) is None
    layer = nn.Linear(4, 6, bias=bias, dtype=dtype)
    x = torch.randn(2, 3, 4, dtype=dtype, requires_grad=True)
    ours = recipe.linear(site)(x, layer.weight, layer.bias)
    assert ours.dtype == dtype
    wanted = layer(x)
    assert torch.equal(ours, wanted)
    mine = torch.autograd.grad(ours.sum(), [x, layer.weight])
    theirs = torch.autograd.grad(wanted.sum(), [x, layer.weight])
    assert all(torch.equal(one, other) for one, other in zip(mine, theirs, strict=True))


def plan(recipe: str = "bf16", model_dtype: str = "bf16", recipe_backend: str = "auto", **own: Any) -> Any:
    core = SimpleNamespace(recipe=recipe, model_dtype=model_dtype, recipe_backend=recipe_backend)
    return SimpleNamespace(config=SimpleNamespace(core=core, of=lambda options: options(**own)))


def test_bf16_is_refused_on_a_gpu_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    (problem,) = check_plan(plan(), "cuda")
    assert "8.0" in problem.what
    assert "Tesla T4 has 7.5" in problem.what
    assert problem.where == 'model_dtype and recipe = "bf16"'
    assert 'model_dtype = "fp32"' in problem.how
    assert check_plan(plan(model_dtype="fp32"), "cuda") == []
    assert check_plan(plan(recipe="theirs"), "cuda") == []
    assert check_plan(plan(), "cpu") == []
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    assert check_plan(plan(), "cuda") == []


def test_the_offer_loads() -> None:
    (offer,) = register_recipes()
    assert (offer.name, offer.options, offer.load()) == ("bf16", Options, build)
