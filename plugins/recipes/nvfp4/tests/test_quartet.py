from __future__ import annotations

from typing import Any

import pytest
import torch
from surogate_native_nvfp4 import quantise, quantise_eden, rotate
from surogate_recipe_nvfp4 import quartet
from surogate_recipe_nvfp4.plugin import Options
from surogate_recipe_nvfp4.quartet import Drawn, drawn
from surogate_recipe_nvfp4.slot import Slot
from torch import Tensor

from surogate_core import testing

M, K, N = 128, 160, 256


def make(rows: int = N, columns: int = K, **options: Any) -> Slot:
    return quartet.build(Options(**options), testing.context(recipe_backend="emulated")).linear(testing.site(rows, columns))


def operands(m: int = M, k: int = K, n: int = N, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(8)
    x, w, dy = (torch.randn(shape, generator=generator) for shape in ((m, k), (n, k), (m, n)))
    return x.to(dtype).requires_grad_(), (0.1 * w).to(dtype).requires_grad_(), (0.01 * dy).to(dtype)


def gradients(slot: Slot, x: Tensor, w: Tensor, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    y = slot(x, w, None)
    return y.detach(), *torch.autograd.grad(y, [x, w], dy)


@pytest.mark.parametrize("metric", ["mse", None])
def test_the_three_products_are_those_of_the_dequantised_operands(metric: Any) -> None:
    """In float64, with the signs and bits of the first backward pass; gradients start from what the forward pass kept."""
    x, w, dy = operands()
    slot = make(fp4_four_over_six=metric is not None)
    y, dx, dw = gradients(slot, x, w, dy)
    xq, wq = (quantise(operand, four_over_six=metric).dequantised() for operand in (x, w))
    torch.testing.assert_close(y.double(), xq.double() @ wq.double().t(), rtol=1e-5, atol=1e-5)

    def product(left: Tensor, right: Tensor, given: Drawn) -> Tensor:
        one, two = (
            quantise_eden(rotate(operand, given.signs), draw.bits(len(operand), -(-operand.shape[1] // 128) * 8))
            .dequantised()
            .double()
            for operand, draw in ((left, given.left), (right, given.right))
        )
        return one @ two.t()

    dgrad, wgrad = drawn(make(), (M, K, N), (N, K, M))
    torch.testing.assert_close(dx.double(), product(dy, wq.t(), dgrad), rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(dw.double(), product(dy.t(), xq.t(), wgrad), rtol=1e-4, atol=1e-6)


def test_gradients_are_unbiased_and_straight_through() -> None:
    """Their mean over draws nears finite differences of the forward pass, in which the rounding of x and W is passed over: those of
    y = x' · W'^T at the rounded x' and W', where y is linear in each."""
    x, w, dy = operands(64, 32, 128)
    slot = make(128, 32)
    xq, wq = (quantise(operand.detach(), four_over_six="mse").dequantised().double() for operand in (x, w))
    generator = torch.Generator().manual_seed(4)
    along = [torch.randn(operand.shape, generator=generator).double() for operand in (xq, wq)]

    def loss(a: Tensor, b: Tensor) -> float:
        return float(((a @ b.t()) * dy.double()).sum())

    step = 1e-3
    wanted = (
        (loss(xq + step * along[0], wq) - loss(xq - step * along[0], wq)) / (2 * step),
        (loss(xq, wq + step * along[1]) - loss(xq, wq - step * along[1])) / (2 * step),
    )
    passes = [gradients(slot, x, w, dy)[1:] for _ in range(200)]
    for number, exact in enumerate(wanted):
        values = torch.stack([(parts[number].double() * along[number]).sum() for parts in passes])
        error = float(values.std()) / len(values) ** 0.5
        assert abs(float(values.mean()) - exact) < 4 * error
        assert error < 0.05 * float(dy.norm() * (wq.norm(), xq.norm())[number])


@pytest.mark.parametrize(("m", "k", "n"), [(5, 33, 45), (1, 16, 16), (129, 1, 3)])
def test_other_sizes_are_padded_with_zeros(m: int, k: int, n: int) -> None:
    def padded(values: Tensor) -> Tensor:
        wide = torch.zeros(*(-(-size // 128) * 128 for size in values.shape))
        wide[: values.shape[0], : values.shape[1]] = values.detach()
        return wide

    x, w, dy = operands(m, k, n)
    found = gradients(make(n, k, no_fp4_stochastic_rounding=True), x, w, dy)
    wide = make(n, k, no_fp4_stochastic_rounding=True)
    wanted = gradients(wide, padded(x).requires_grad_(), padded(w).requires_grad_(), padded(dy))
    for one, two, shape in zip(found, wanted, ((m, n), (m, k), (n, k)), strict=True):
        assert one.shape == shape
        torch.testing.assert_close(one, two[: shape[0], : shape[1]], rtol=1e-4, atol=1e-7)


def test_dtypes_and_bias() -> None:
    x, w, dy = operands(dtype=torch.bfloat16)
    bias = torch.ones(N, dtype=torch.bfloat16, requires_grad=True)
    y = make()(x, w, bias)
    found = torch.autograd.grad(y, [x, w, bias], dy)
    assert {tensor.dtype for tensor in (y, *found)} == {torch.bfloat16}
    torch.testing.assert_close(y.float() - 1, make()(x, w, None).float(), rtol=0.01, atol=0.02)
    torch.testing.assert_close(found[2].float(), dy.float().sum(0), rtol=0.01, atol=1e-3)


@pytest.mark.parametrize(
    ("option", "moved"),
    [
        ({"fp4_four_over_six": False}, (True, True, True)),
        ({"no_fp4_hadamard": True}, (False, True, True)),
        ({"no_fp4_stochastic_rounding": True}, (False, True, True)),
    ],
    ids=["fp4_four_over_six", "no_fp4_hadamard", "no_fp4_stochastic_rounding"],
)
def test_what_each_option_moves(option: dict[str, Any], moved: tuple[bool, ...]) -> None:
    plain, other = gradients(make(), *operands()), gradients(make(**option), *operands())
    assert tuple(not torch.equal(one, two) for one, two in zip(plain, other, strict=True)) == moved


def test_conforms() -> None:
    recipe = quartet.build(Options(), testing.context(recipe_backend="emulated"))
    testing.check_recipe(recipe, bound=0.2)
    testing.check_recipe(recipe, bound=0.2, where=testing.site(45, 33))
