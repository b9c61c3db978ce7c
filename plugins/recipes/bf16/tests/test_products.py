"""Each row of the dispatch table against float64 products of operands rounded by ml_dtypes; refusals; notices."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from surogate_recipe_bf16.linear import build
from surogate_recipe_bf16.plugin import Options, check_plan
from torch import Tensor

from surogate_core import testing
from surogate_core.config import load
from surogate_core.host import load_host

TYPES = {
    "fp32": np.float32,
    "bf16": ml_dtypes.bfloat16,
    "e4m3": ml_dtypes.float8_e4m3fn,
    "e5m2": ml_dtypes.float8_e5m2,
}
TORCH = {"fp32": torch.float32, "bf16": torch.bfloat16}
ROUNDED = {"fp32": 2e-6, "bf16": 2**-8}
"""What the result's own rounding, and summation in float32, may add."""


def seen(x: Tensor, dtype: str) -> np.ndarray[Any, Any]:
    """What a product sees of x, in float64: rounded, for FP8 after scaling the largest value to the format's largest."""
    values = x.float().numpy()
    if dtype in ("fp32", "bf16"):
        return values.astype(TYPES[dtype]).astype(np.float64)
    scale = np.float32(ml_dtypes.finfo(TYPES[dtype]).max) / np.float32(np.abs(values).max())
    return (values * scale).astype(TYPES[dtype]).astype(np.float64) / np.float64(scale)


@pytest.mark.parametrize("model", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("matmul", "gradient", "forward", "backward"),
    [
        ("fp32", None, "fp32", "fp32"),  # fp32 x fp32 -> fp32 or bf16
        ("bf16", None, "bf16", "bf16"),  # bf16 x bf16 -> fp32 or bf16
        ("e4m3", None, "e4m3", "e5m2"),  # e4m3 x e4m3 -> fp32 or bf16, e5m2 x e4m3 backward
        ("e4m3", "bf16", "e4m3", "bf16"),
        ("bf16", "e5m2", "bf16", "e5m2"),
        ("bf16", "fp32", "bf16", "fp32"),
        ("fp32", "e5m2", "fp32", "e5m2"),
        (None, "e5m2", None, "e5m2"),
    ],
)
def test_products_of_operands_in_their_dtypes(model: str, matmul: Any, gradient: Any, forward: str | None, backward: str) -> None:
    recipe = build(
        Options(matmul_dtype=matmul, gradient_dtype=gradient), testing.context(model_dtype=model, recipe_backend="emulated")
    )
    site = testing.site(40, 24)
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(2, 9, 24, generator=generator).to(TORCH[model]).requires_grad_()
    weight = torch.nn.Parameter(torch.randn(40, 24, generator=generator).to(TORCH[model]))
    bias = torch.nn.Parameter(torch.randn(40, generator=generator).to(TORCH[model]))
    dy = torch.randn(2, 9, 40, generator=generator).to(TORCH[model])
    y = recipe.linear(site)(x, weight, bias)
    assert y.dtype == TORCH[model]
    dx, dw, db = torch.autograd.grad(y, (x, weight, bias), dy)
    one, flat = forward or model, (x.detach().flatten(0, 1), weight.detach(), dy.flatten(0, 1))
    other = "e4m3" if backward == "e5m2" else backward
    back = [seen(values, dtype) for values, dtype in zip(flat, (other, other, backward), strict=True)]
    wanted = {
        "y": (y.flatten(0, 1), seen(flat[0], one) @ seen(flat[1], one).T + bias.detach().double().numpy()),
        "dx": (dx.flatten(0, 1), back[2] @ back[1]),
        "dW": (dw, back[2].T @ back[0]),
    }
    for name, (found, exact) in wanted.items():
        error = np.linalg.norm(found.detach().double().numpy() - exact) / np.linalg.norm(exact)
        assert error < ROUNDED[model], f"{name}: {error}"
    assert torch.equal(db, dy.sum((0, 1)))


@pytest.mark.parametrize(("matmul", "backward"), [("bf16", "bf16"), ("e4m3", "e5m2")])
def test_gradients_are_finite_differences_of_the_rounded_operands(matmul: str, backward: str) -> None:
    """The straight-through definition: L = sum(dy' · (x' w'^T)) of rounded operands is linear in each, so that central differences
    of it in float64, for every element, are its gradients up to rounding."""
    recipe = build(Options(matmul_dtype=matmul), testing.context(model_dtype="fp32", recipe_backend="emulated"))
    generator = torch.Generator().manual_seed(5)
    x, w, dy = (torch.randn(shape, generator=generator) for shape in ((7, 24), (40, 24), (7, 40)))
    xs, ws = x.clone().requires_grad_(), w.clone().requires_grad_()
    y = recipe.linear(testing.site(40, 24))(xs, ws, None)
    found = torch.autograd.grad(y, (xs, ws), dy)
    seen_x, seen_w, seen_dy = seen(x, matmul), seen(w, matmul), seen(dy, backward)
    np.testing.assert_allclose(y.detach().numpy(), seen_x @ seen_w.T, rtol=0, atol=1e-5 * float(y.detach().abs().max()))
    for operand, gradient in zip((seen_x, seen_w), found, strict=True):
        differences = np.zeros_like(operand)
        for place in np.ndindex(*operand.shape):
            sides = []
            for sign in (1, -1):
                operand[place] += sign
                sides.append((seen_dy * (seen_x @ seen_w.T)).sum())
                operand[place] -= sign
            differences[place] = (sides[0] - sides[1]) / 2
        np.testing.assert_allclose(gradient.numpy(), differences, rtol=0, atol=1e-5 * np.abs(differences).max())


def test_what_is_not_set_is_torchs_linear() -> None:
    for options, model in (({}, "fp32"), ({"matmul_dtype": "bf16"}, "bf16"), ({"gradient_dtype": "fp32"}, "fp32")):
        recipe = build(Options(**options), testing.context(model_dtype=model))
        assert recipe.linear(testing.site()) is torch.nn.functional.linear


def plan(recipe_backend: str = "auto", **own: Any) -> Any:
    core = SimpleNamespace(recipe="bf16", model_dtype="bf16", recipe_backend=recipe_backend)
    return SimpleNamespace(config=SimpleNamespace(core=core, of=lambda options: options(**own)))


@pytest.mark.parametrize("own", [{"matmul_dtype": "e4m3"}, {"gradient_dtype": "e5m2"}])
def test_fp8_products_are_refused_where_there_are_none(monkeypatch: pytest.MonkeyPatch, own: dict[str, Any]) -> None:
    ((key, value),) = own.items()
    (problem,) = check_plan(plan(**own), "cpu")
    assert problem.what == f'{key} = "{value}" needs sm_89+, this machine has no GPU'
    assert 'recipe_backend = "emulated"' in problem.how
    assert check_plan(plan("emulated", **own), "cpu") == []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 6))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA A10")
    (problem,) = check_plan(plan(**own), "cuda")
    assert problem.what.startswith(f'{key} = "{value}" needs a GPU of compute capability 8.9 or above, NVIDIA A10 has 8.6')
    assert check_plan(plan("emulated", **own), "cuda") == []
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    assert check_plan(plan(**own), "cuda") == []


@pytest.mark.parametrize("recipe", ["fp8_hybrid", "nvfp4"])
def test_other_recipes_override_them_with_a_notice(tiny: Path, tmp_path: Path, recipe: str) -> None:
    rows = testing.write_rows(tmp_path / "text.jsonl", [{"text": "one and two"}])
    config = {"model": str(tiny), "recipe": recipe, "matmul_dtype": "fp32", "gradient_dtype": "bf16"}
    notices = load({**config, "datasets": [{"path": str(rows), "type": "text"}]}, load_host()).notices
    for key in ("matmul_dtype", "gradient_dtype"):
        assert any(text.startswith(f'{key} has no effect: it belongs to recipe = "bf16"') for text in notices)
