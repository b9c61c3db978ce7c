"""One FP8 linear: its arithmetic against float64 on values from ml_dtypes, its scales over many steps, what it keeps."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from surogate_native_fp8.reference import E5M2, LARGEST
from surogate_recipe_fp8_hybrid import linear
from surogate_recipe_fp8_hybrid.linear import DY, FORMATS, Fp8Linear, Hybrid, W, X, build
from surogate_recipe_fp8_hybrid.plugin import Options
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from surogate_core import testing

N, K = 48, 40


def recipe(backend: str = "emulated", kernels: str = "auto", **options: Any) -> Hybrid:
    return build(Options(**options), testing.context(recipe_backend=backend, kernels=kernels))


def layer(made: Hybrid | None = None) -> Fp8Linear:
    return (made or recipe()).linear(testing.site(N, K))


def step(made: Hybrid, module: Fp8Linear) -> None:
    made.stepped({"layer": module})


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def rounded(x: Tensor, e5m2: bool, amax: float | None = None) -> np.ndarray:
    """x through FP8 by a scale from ``amax`` (default its own), in float64, without anything of ours."""
    name, largest = (ml_dtypes.float8_e5m2, 57344.0) if e5m2 else (ml_dtypes.float8_e4m3fn, 448.0)
    scale = np.float32(largest) / np.float32(x.abs().max().item() if amax is None else amax)
    held = np.clip(x.float().numpy() * scale, -largest, largest).astype(name)
    return held.astype(np.float64) / float(scale)


def near(found: Tensor, wanted: np.ndarray, bound: float = 2e-6) -> bool:
    error = np.abs(found.detach().double().numpy() - wanted).max()
    return bool(error <= bound * np.abs(wanted).max())


def test_it_conforms() -> None:
    testing.check_recipe(recipe(), bound=0.08)
    testing.check_recipe(recipe(), bound=0.08, dtype=torch.bfloat16, where=testing.site(17, 33))


@pytest.mark.parametrize("rows", [1, 16, 23])
def test_value_and_gradients_are_those_of_the_rounded_operands(rows: int) -> None:
    """The straight-through definition: L = sum(dy8 · (x8 w8^T)) is linear in x8 and in w8, so central differences of it, taken in
    float64 for every element, are its gradients up to rounding."""
    x, w, dy = normal(rows, K, seed=1), normal(N, K, seed=2, scale=0.3), normal(rows, N, seed=3, scale=1e-3)
    xs, ws = x.clone().requires_grad_(), w.clone().requires_grad_()
    y = layer()(xs, ws, None)
    y.backward(dy)
    x8, w8, dy8 = rounded(x, False), rounded(w, False), rounded(dy, True)
    assert near(y, x8 @ w8.T)

    def differences(operand: np.ndarray) -> np.ndarray:
        found = np.zeros_like(operand)
        for place in np.ndindex(*operand.shape):
            sides = []
            for sign in (1, -1):
                operand[place] += sign
                sides.append((dy8 * (x8 @ w8.T)).sum())
                operand[place] -= sign
            found[place] = (sides[0] - sides[1]) / 2
        return found

    assert xs.grad is not None
    assert ws.grad is not None
    assert near(xs.grad, differences(x8), 1e-5)
    assert near(ws.grad, differences(w8), 1e-5)


@pytest.mark.parametrize(("row", "bound"), [(X, 0.0264), (W, 0.0264), (DY, 0.0527)])
def test_the_error_of_each_operand_is_that_of_its_format(row: int, bound: float) -> None:
    x = normal(1024, 1024, seed=row)
    held = layer().quantise(row, x, transpose=False)
    assert held.rows.dtype == FORMATS[row]
    error = (held.rows.float() * held.inverse - x).norm() / x.norm()
    assert error.item() == pytest.approx(bound, rel=0.03)


def test_bias_and_leading_dimensions() -> None:
    x, w, b = normal(2, 3, K).requires_grad_(), normal(N, K, seed=1).requires_grad_(), normal(N, seed=2).requires_grad_()
    module = layer()
    y = module(x, w, b)
    assert y.shape == (2, 3, N)
    assert torch.equal(y, module(x, w, None) + b)
    y.sum().backward()
    assert torch.equal(b.grad, torch.full((N,), 6.0))
    assert x.grad is not None
    assert x.grad.shape == x.shape


def test_the_first_step_takes_each_micro_batchs_own_scale_and_the_next_one_the_largest() -> None:
    made = recipe(fp8_amax_history=4)
    module, w = layer(made), normal(N, K, seed=9)
    small, large = normal(8, K, seed=4), normal(8, K, seed=5, scale=7)
    for x in (small, large, small):
        assert near(module(x, w, None), rounded(x, False) @ rounded(w, False).T)
    step(made, module)
    top = large.abs().max().item()
    assert module.scale.tolist() == pytest.approx([448 / top, 448 / w.abs().max().item(), 0])
    assert near(module(small, w, None), rounded(small, False, top) @ rounded(w, False).T)
    assert near(module(10 * large, w, None), rounded(10 * large, False, top) @ rounded(w, False).T), "larger values saturate"


def test_scales_are_fixed_within_a_step_and_follow_a_restatement_over_fifty() -> None:
    made = recipe(fp8_amax_history=5)
    module, w = layer(made), normal(N, K)
    generator = np.random.default_rng(0)
    seen: dict[int, list[float]] = {X: [], DY: []}
    for _ in range(50):
        before = module.scale.clone()
        tops = {X: 0.0, DY: 0.0}
        for _ in range(3):
            x = (normal(4, K, seed=int(generator.integers(1 << 30))) * math.exp(generator.normal())).requires_grad_()
            dy = normal(4, N, seed=int(generator.integers(1 << 30))) * math.exp(3 * generator.normal())
            module(x, w, None).backward(dy)
            tops = {X: max(tops[X], x.abs().max().item()), DY: max(tops[DY], dy.abs().max().item())}
            assert torch.equal(module.scale, before)
        step(made, module)
        for row, largest in ((X, 448.0), (DY, 57344.0)):
            seen[row] = [*seen[row], tops[row]][-5:]
            assert module.scale[row].item() == pytest.approx(largest / max(seen[row]), rel=1e-6)
            assert module.inverse[row, 0].item() == pytest.approx(max(seen[row]) / largest, rel=1e-6)


def test_the_first_scale_of_a_tensor_is_bit_for_bit_what_its_history_gives() -> None:
    """So that a frozen weight, quantised in the first step, is the one that a continued run quantises from its history."""
    for seed in range(40):
        made = recipe()
        module, w = layer(made), nn.Parameter(normal(N, K, seed=seed).bfloat16(), requires_grad=False)
        module(normal(4, K).bfloat16(), w, None)
        first = module.quantised_weight(w)
        step(made, module)
        assert module.inverse[W, 0] == first.inverse[0]


def test_the_device_is_not_read_once_there_is_a_history() -> None:
    """Not even where nothing comes back, as in the first layer below adapters."""
    made = recipe()
    module, w = layer(made), normal(N, K)
    for _ in range(2):
        module(normal(4, K), w, None)
        step(made, module)
    read = module._read
    module(normal(4, K), w, None)
    assert module._read == read


def test_evaluation_leaves_no_trace() -> None:
    made = recipe()
    module, w = layer(made), nn.Parameter(normal(N, K))
    module(normal(4, K), w, None)
    step(made, module)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    module.eval()
    with torch.no_grad():
        module(100 * normal(4, K), w, None)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    module.train()
    module(normal(4, K), w, None)
    assert module.history[W, 0] == w.abs().max(), "a weight kept from the evaluation is staged as well"


def count(monkeypatch: pytest.MonkeyPatch, weight: Tensor) -> list[dict[str, Any]]:
    calls: list[dict[str, Any]] = []
    original = linear.cast_transpose

    def spy(x: Tensor, *arguments: Any, **options: Any) -> Any:
        if x.data_ptr() == weight.data_ptr():
            calls.append(options)
        return original(x, *arguments, **options)

    monkeypatch.setattr(linear, "cast_transpose", spy)
    return calls


@pytest.mark.parametrize(("frozen", "wanted"), [(True, 1), (False, 3)])
def test_a_weight_is_quantised_once_a_step_and_a_frozen_one_once(
    monkeypatch: pytest.MonkeyPatch, frozen: bool, wanted: int
) -> None:
    made = recipe()
    module, w = layer(made), nn.Parameter(normal(N, K), requires_grad=not frozen)
    calls = count(monkeypatch, w)
    results = []
    for _ in range(3):
        for _ in range(4):
            results.append(module(normal(4, K, seed=1), w, None))
        step(made, module)
    assert len(calls) == wanted
    assert all(torch.equal(results[0], one) for one in results), "neither weight nor data change, so the delayed scales do not"
    with torch.no_grad():
        w.mul_(2)
    module(normal(4, K), w, None)
    assert len(calls) == wanted + 1


def test_a_loaded_scale_is_used_and_a_weight_kept_before_is_not() -> None:
    made = recipe()
    module, w, x = layer(made), nn.Parameter(normal(N, K)), normal(4, K)
    module(x, w, None)
    state = {name: value.clone() for name, value in module.state_dict().items()}
    state["scale"], state["inverse"] = torch.full((3,), 2.0), torch.full((3, 4), 0.5)
    for name, value in state.items():
        getattr(module, name).copy_(value)
    assert near(module(x, w, None), rounded(x, False, 224) @ rounded(w.detach(), False, 224).T)


@pytest.mark.parametrize("watched", [0, 1])
def test_a_step_that_a_dispatch_mode_watches_is_followed_by_the_same_one(watched: int) -> None:
    """Within the mode torch's fused AdamW and its foreach functions leave version counters as they are."""

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return func(*args, **(kwargs or {}))

    def outputs(watched: int | None) -> list[Tensor]:
        made = recipe()
        module, w = layer(made), nn.Parameter(normal(N, K))
        optimizer, found = torch.optim.AdamW([w], lr=0.1, fused=True), []
        for index in range(3):
            with Watch() if index == watched else contextlib.nullcontext():
                found.append(module(normal(4, K, seed=1, scale=1 / (1 + index)), w, None))  # its own scale is not the delayed one
                found[-1].square().sum().backward()
                optimizer.step()
                optimizer.zero_grad()
                step(made, module)
        return found

    for found, wanted in zip(outputs(watched), outputs(None), strict=True):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("kernels", ["auto", "reference"])
def test_kernels_are_chosen_by_the_option(monkeypatch: pytest.MonkeyPatch, kernels: str) -> None:
    made = recipe(kernels=kernels)
    module, w = layer(made), normal(N, K)
    calls = count(monkeypatch, w)
    seen = []
    monkeypatch.setattr(linear, "update_scales", lambda *state, kernels: seen.append(kernels))
    module(normal(4, K), w, None)
    step(made, module)
    assert [call["kernels"] for call in calls] == seen == [kernels]


@pytest.mark.parametrize("shape", [(N, K), (33, 17), (5, 64)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_native_path_asks_what_the_gpu_can_and_is_the_emulation_bit_for_bit(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int], dtype: torch.dtype
) -> None:
    """Without a GPU its GEMMs are the emulated ones, on the operands that cuBLASLt would get: both with K contiguous, all sizes
    divisible by 16, scales on multiples of 16 bytes, not both E5M2."""
    asked = []
    original = linear.scaled_mm

    def spy(a: Tensor, b: Tensor, inverse_a: Tensor, inverse_b: Tensor, out: torch.dtype, **options: Any) -> Tensor:
        if options["native"]:
            assert a.is_contiguous()
            assert b.is_contiguous()
            assert not [size for size in (*a.shape, *b.shape) if size % 16]
            assert not any(inverse.data_ptr() % 16 for inverse in (inverse_a, inverse_b))
            assert {a.dtype, b.dtype} != {E5M2}
            asked.append(options.get("fast", False))
        return original(a, b, inverse_a, inverse_b, out, **options)

    monkeypatch.setattr(linear, "scaled_mm", spy)
    results = []
    for backend in ("native", "emulated"):
        made = recipe(backend)
        module = made.linear(testing.site(*shape))
        for seed in range(2):
            x = normal(7, shape[1], seed=seed).to(dtype).requires_grad_()
            w = normal(*shape, seed=8).to(dtype).requires_grad_()
            y = module(x, w, None)
            y.backward(normal(7, shape[0], seed=3).to(dtype))
            results.append([y, x.grad, w.grad, module.history.clone()])
            step(made, module)
    for one, two in zip(results[:2], results[2:], strict=True):
        assert all(torch.equal(first, second) for first, second in zip(one, two, strict=True))
    assert asked == [True, False, False] * 2


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_values_that_are_not_finite_keep_the_scale(bad: float) -> None:
    made = recipe(fp8_amax_history=2)
    module, w, x = layer(made), normal(N, K), normal(4, K)
    module(x, w, None)
    step(made, module)
    before = module.scale.clone()
    spoilt = x.clone()
    spoilt[0, 0] = bad
    y = module(spoilt, w, None)
    assert y[0].isnan().all() == math.isnan(bad), "infinity saturates, what is not a number stays so"
    assert y[1:].isfinite().all()
    step(made, module)
    assert torch.equal(module.scale, before)
    for _ in range(2):
        module(2 * x, w, None)
        step(made, module)
    assert module.scale[X].item() == pytest.approx(448 / (2 * x.abs().max().item())), (
        "once it has left the window, scales move again"
    )


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_values_that_are_not_finite_in_the_first_step_have_the_scale_one(bad: float) -> None:
    """And leave no scale behind: the next step takes its own again."""
    made = recipe(fp8_amax_history=1)
    module, w, x = layer(made), normal(N, K), normal(4, K)
    spoilt = x.clone()
    spoilt[0, 0] = bad
    y = module(spoilt, w, None)
    assert y[0].isnan().all() == math.isnan(bad), "infinity saturates, what is not a number stays so"
    assert near(y[1:], rounded(x[1:], False, 448) @ rounded(w, False).T)
    step(made, module)
    assert module.scale.tolist() == pytest.approx([0, 448 / w.abs().max().item(), 0])
    assert near(module(x, w, None), rounded(x, False) @ rounded(w, False).T)
    step(made, module)
    assert module.scale[X].item() == pytest.approx(448 / x.abs().max().item())


def test_zeros_and_no_rows() -> None:
    made = recipe()
    module, w = layer(made), normal(N, K)
    assert torch.equal(module(torch.zeros(3, K), w, None), torch.zeros(3, N))
    step(made, module)
    assert module.scale.tolist()[X] == 0, "without a value there is no scale"
    assert module(torch.zeros(0, K), w, None).shape == (0, N)
    made.stepped({})
    assert set(LARGEST) == set(FORMATS)
