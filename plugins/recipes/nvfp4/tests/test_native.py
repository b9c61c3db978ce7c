"""The native path by its definitions, on a CPU: operands are the bytes that Blackwell's matrix units would read. Everything is
compared with emulation, which never makes these bytes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from surogate_native_nvfp4 import kernel, ops, packed
from surogate_recipe_nvfp4 import linear, quartet
from surogate_recipe_nvfp4.plugin import Options
from surogate_recipe_nvfp4.slot import Slot
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from surogate_core import testing

OPTIONS = ["none", "fp4_four_over_six", "no_fp4_hadamard", "no_fp4_stochastic_rounding"]
SIZES = [(32, 48, 64), (5, 33, 45), (17, 1, 3), (130, 272, 200), (0, 16, 16)]
both = pytest.mark.parametrize("module", [linear, quartet], ids=["nvfp4", "nvfp4_quartet"])


def make(module: Any, backend: str, rows: int, columns: int, option: str = "none", kernels: str = "auto") -> Slot:
    options = {} if option == "none" else {option: not getattr(Options(), option)}
    context = testing.context(recipe_backend=backend, kernels=kernels)
    return module.build(Options(**options), context).linear(testing.site(rows, columns))


def operands(m: int, k: int, n: int, dtype: torch.dtype = torch.float32, bias: bool = True) -> list[Tensor]:
    """x, weight (a parameter, as in a model), dy and the bias if wanted; rows of x and dy of very different size."""
    generator = torch.Generator().manual_seed(m)
    shapes = [(m, k), (n, k), (m, n), (n,)][: 3 + bias]
    x, w, dy, *rest = (torch.randn(shape, generator=generator) for shape in shapes)
    size = torch.exp2(torch.randn(m, 1, generator=generator))
    values = [x * size, 0.1 * w, 0.01 * dy * size, *rest]
    return [nn.Parameter(value.to(dtype)) if at != 2 else value.to(dtype) for at, value in enumerate(values)]


def results(slot: Slot, x: Tensor, w: Tensor, dy: Tensor, bias: Tensor | None = None) -> list[Tensor]:
    """y, dx, dW and the gradient of the bias of the second pass, whose draws start from a counter that is not 0."""
    wanted = [tensor for tensor in (x, w, bias) if tensor is not None]
    for _ in range(2):
        y = slot(x, w, bias)
        found = [y.detach(), *torch.autograd.grad(y, wanted, dy)]
    return found


def compare(found: list[Tensor], wanted: list[Tensor]) -> None:
    """To the rounding of float32 sums, and of the result's dtype."""
    for one, two in zip(found, wanted, strict=True):
        assert one.dtype == two.dtype
        close = 1e-5 if one.dtype == torch.float32 else 8e-3
        torch.testing.assert_close(one, two, rtol=close, atol=1e-6 * float(two.abs().max()) if two.numel() else 0)


@both
@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize(("m", "k", "n"), SIZES)
def test_results_are_those_of_emulation(module: Any, m: int, k: int, n: int, option: str) -> None:
    native, emulated = (make(module, backend, n, k, option) for backend in ("native", "emulated"))
    compare(results(native, *operands(m, k, n)), results(emulated, *operands(m, k, n)))
    assert {tensor.dtype for tensor in native.weight(operands(m, k, n)[1])} == {torch.uint8, torch.float32}


@both
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kernels", ["auto", "reference"])
def test_results_in_bfloat16(module: Any, kernels: str, bias: bool) -> None:
    given = operands(40, 96, 80, torch.bfloat16, bias)
    native, emulated = (make(module, backend, 80, 96, kernels=kernels) for backend in ("native", "emulated"))
    compare(results(native, *given), results(emulated, *given))


@both
@pytest.mark.parametrize("option", OPTIONS)
def test_the_kernels_bodies_give_the_same_results(module: Any, option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The operands that a GPU would be asked for, made on the host by the kernels' code."""
    given = operands(33, 50, 45, torch.bfloat16)
    wanted = results(make(module, "emulated", 45, 50, option), *given)
    asked = []
    monkeypatch.setattr(ops, "_chosen", lambda name, kernels: asked.append(name) or getattr(kernel, name))
    compare(results(make(module, "native", 45, 50, option), *given), wanted)
    assert {"quantise", "quantise_eden"} & set(asked)


@both
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("m", "k", "n"), SIZES)
def test_torch_accepts_each_product_for_a_gpu(
    module: Any, m: int, k: int, n: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own check of the call, on tensors without values that are said to be on a GPU."""
    called = []

    def checked(*given: Any) -> Tensor:
        with FakeTensorMode(allow_non_fake_inputs=True):
            fake = [torch.empty(part.shape, dtype=part.dtype, device="cuda") for part in given[:-1]]
            found = packed.scaled_mm_kernel(*fake, given[-1])
        called.append(found.shape)
        assert found.dtype == given[-1]
        return packed.scaled_mm(*given)

    monkeypatch.setattr(torch.ops.surogate_nvfp4, "scaled_mm", checked)
    results(make(module, "native", n, k), *operands(m, k, n, dtype, bias=False))
    assert len(called) == 6


@both
def test_a_frozen_weight_is_kept_in_bytes(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """0.5625 bytes a value, once for the forward pass and, where it is not rounded again, once for the input gradient."""
    slot = make(module, "native", 256, 512)
    x, w, dy, _ = operands(16, 512, 256)
    w.requires_grad_(False)
    made = []
    inner = slot.weights
    monkeypatch.setattr(slot, "weights", lambda weight: made.append(inner(weight)) or made[-1])
    for _ in range(3):
        torch.autograd.grad(slot(x, w, None), x, dy)
    (kept,) = made
    size = sum(tensor.numel() * tensor.element_size() for tensor in kept)
    assert size == (2 if module is linear else 1) * 9 * w.numel() // 16 + 4


def test_quartet_keeps_what_it_rounded_in_bytes() -> None:
    slot = make(quartet, "native", 64, 512)
    x, w, _, _ = operands(256, 512, 64)
    sizes: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: sizes.append(tensor.numel() * tensor.element_size()) or tensor, lambda tensor: tensor
    ):
        slot(x, w, None)
    assert sum(sizes) == 9 * x.numel() // 16 + 4


@both
def test_a_weight_made_for_one_use_gives_the_same(module: Any) -> None:
    """One that was unpacked from a storage: its bytes go with the graph."""
    x, w, dy, _ = operands(32, 48, 64)
    found, wanted = (
        torch.autograd.grad(make(module, backend, 64, 48)(x, w.detach().clone(), None), x, dy) for backend in ("native", "emulated")
    )
    compare(list(found), list(wanted))


@both
def test_conforms(module: Any) -> None:
    recipe = module.build(Options(), testing.context(recipe_backend="native"))
    testing.check_recipe(recipe, bound=0.22)
    testing.check_recipe(recipe, bound=0.22, where=testing.site(45, 33))
