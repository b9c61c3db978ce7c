from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
from surogate_native_nvfp4 import quantise, rotate
from surogate_native_nvfp4.rotation import signs_of
from surogate_recipe_nvfp4 import linear
from surogate_recipe_nvfp4.linear import draws_of
from surogate_recipe_nvfp4.plugin import Options
from surogate_recipe_nvfp4.slot import Slot
from torch import Tensor

from surogate_core import testing

M, K, N = 32, 48, 64


def make(rows: int = N, columns: int = K, name: str = "model.layers.0.mlp.up_proj", seed: int = 1234, **options: Any) -> Slot:
    recipe = linear.build(Options(**options), testing.context(train_seed=seed, recipe_backend="emulated"))
    return recipe.linear(testing.site(rows, columns, name=name))


def operands(m: int = M, k: int = K, n: int = N, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    x, w, dy = (torch.randn(shape, generator=generator) for shape in ((m, k), (n, k), (m, n)))
    return x.to(dtype).requires_grad_(), (0.1 * w).to(dtype).requires_grad_(), (0.01 * dy).to(dtype)


def gradients(slot: Slot, x: Tensor, w: Tensor, dy: Tensor, bias: Tensor | None = None) -> tuple[Tensor, ...]:
    y = slot(x, w, bias)
    wanted = [tensor for tensor in (x, w, bias) if tensor is not None and tensor.requires_grad]
    return (y.detach(), *torch.autograd.grad(y, wanted, dy))


def exact(a: Any, b: Any) -> Tensor:
    return a.dequantised().double() @ b.dequantised().double().t()


@pytest.mark.parametrize("metric", ["mse", None])
def test_the_three_products_are_those_of_the_dequantised_operands(metric: Any) -> None:
    """In float64, and with the random bits of the first backward pass."""
    x, w, dy = operands()
    slot = make(fp4_four_over_six=metric is not None)
    y, dx, dw = gradients(slot, x, w, dy)
    dgrad, wgrad = draws_of(make(), M, N)
    square = quantise(w, square=True, four_over_six=metric)
    torch.testing.assert_close(y.double(), exact(quantise(x, four_over_six=metric), square), rtol=1e-5, atol=1e-6)
    left = quantise(dy, bits=dgrad.bits(M, N))
    wanted = left.dequantised().double() @ square.dequantised().double()
    torch.testing.assert_close(dx.double(), wanted, rtol=1e-5, atol=1e-8)
    signs = signs_of(dy.device)
    columns = quantise(rotate(dy.t(), signs), four_over_six=metric, bits=wgrad.bits(N, M))
    wanted = exact(columns, quantise(rotate(x.t(), signs), four_over_six=metric))
    torch.testing.assert_close(dw.double(), wanted, rtol=1e-5, atol=1e-6)


def on_the_grid(rows: int, columns: int, tile: tuple[int, int]) -> Tensor:
    """Values that NVFP4 holds exactly and whose neighbours half a unit away it holds too, with a 6 in each tile."""
    generator = torch.Generator().manual_seed(rows * columns)
    values = torch.randint(-3, 4, (rows, columns), generator=generator) * 0.5
    for row in range(0, rows, tile[0]):
        for column in range(0, columns, tile[1]):
            values[row + (column // tile[1]) % tile[0], column + row % tile[1]] = 6.0
    return values


@pytest.mark.parametrize("options", [{}, {"fp4_four_over_six": False}, {"no_fp4_stochastic_rounding": True}], ids=str)
def test_gradients_are_finite_differences_where_nothing_is_rounded(options: dict[str, Any]) -> None:
    """The forward pass itself is moved, from one exact value to its neighbours; gradients that are exact values are not rounded,
    stochastically or not, so the two have to agree to the last bits. Blocks along either dimension hold a 6."""
    x = on_the_grid(16, 16, (1, 16))
    x.fill_diagonal_(6.0)
    w = on_the_grid(32, 16, (16, 16))
    dy = on_the_grid(16, 32, (1, 16))
    dy[:, :16].fill_diagonal_(6.0)
    dy[:, 16:].fill_diagonal_(6.0)
    slot = make(32, 16, no_fp4_hadamard=True, **options)

    def loss() -> float:
        return float((slot(x, w, None).double() * dy.double()).sum())

    y, dx, dw = gradients(slot, x.clone().requires_grad_(), w.clone().requires_grad_(), dy)
    torch.testing.assert_close(y, x @ w.t(), rtol=1e-6, atol=1e-6)
    compared = 0
    for values, found in ((x, dx), (w, dw)):
        for index in range(0, values.numel(), 7):
            at = divmod(index, values.shape[1])
            here = float(values[at])
            if here == 6.0:
                continue
            values[at] = here + 0.5
            up = loss()
            values[at] = here - 0.5
            down = loss()
            values[at] = here
            assert float(found[at]) == pytest.approx(up - down, rel=1e-5, abs=1e-4)
            compared += 1
    assert compared > 80


def on_the_grid_rotated(rows: int, columns: int, seed: int) -> Tensor:
    """Exact values whose columns, rotated along rows in sixteens, are exact too: 12, 6 and 6 at three places, with signs, come from
    values of 0, 3 and 6."""
    generator = torch.Generator().manual_seed(seed)
    turned = torch.zeros(columns, rows // 16, 16)
    for block in turned.flatten(0, 1):
        block[torch.randperm(16, generator=generator)[:3]] = torch.tensor([12.0, 6.0, 6.0])
        block *= torch.randint(0, 2, (16,), generator=generator) * 2 - 1
    hadamard = functools.reduce(torch.kron, [torch.tensor([[1.0, 1.0], [1.0, -1.0]])] * 4) / 4
    return (turned @ hadamard * signs_of(turned.device)).flatten(1).t().contiguous()


@pytest.mark.parametrize("options", [{}, {"fp4_four_over_six": False}, {"no_fp4_stochastic_rounding": True}], ids=str)
def test_the_rotated_gradient_of_the_weight_is_finite_differences_where_nothing_is_rounded(options: dict[str, Any]) -> None:
    """As above, with operands that are exact before they are rotated and after."""
    x, dy = on_the_grid_rotated(32, 16, 1), on_the_grid_rotated(32, 32, 2)
    w = on_the_grid(32, 16, (16, 16))
    slot = make(32, 16, **options)
    y, _, dw = gradients(slot, x.clone().requires_grad_(), w.clone().requires_grad_(), dy)
    torch.testing.assert_close(y, x @ w.t(), rtol=1e-6, atol=1e-6)
    compared = 0
    for row, column in np.ndindex(*w.shape):
        here = float(w[row, column])
        if here == 6.0:
            continue
        sides = []
        for moved in (here + 0.5, here - 0.5):
            w[row, column] = moved
            sides.append(float((slot(x, w, None).double() * dy.double()).sum()))
        w[row, column] = here
        assert float(dw[row, column]) == pytest.approx(sides[0] - sides[1], rel=1e-5, abs=1e-4)
        compared += 1
    assert compared > 400


def test_gradients_are_unbiased_in_what_is_drawn() -> None:
    """The mean over draws nears the product with the gradient itself, as the root of their number. What is left, about one
    percent, is the clipping of the largest values of blocks whose scale was rounded down, as in Transformer Engine."""
    x, w, dy = operands()
    slot = make()
    square = quantise(w.detach(), square=True, four_over_six="mse").dequantised().double()
    right = quantise(rotate(x.detach().t(), signs_of(dy.device)), four_over_six="mse").dequantised().double()
    wanted = dy.double() @ square, rotate(dy.t(), signs_of(dy.device)).double() @ right.t()

    def errors(count: int) -> list[float]:
        draws = [gradients(slot, x, w, dy)[1:] for _ in range(count)]
        means = [torch.stack(parts).double().mean(0) for parts in zip(*draws, strict=True)]
        return [float((mean - one).norm() / one.norm()) for mean, one in zip(means, wanted, strict=True)]

    for one, many in zip(errors(1), errors(400), strict=True):
        assert many < one / 20 + 0.012
        assert one > 0.1


@pytest.mark.parametrize(("m", "k", "n"), [(5, 33, 45), (1, 16, 16), (17, 1, 3)])
def test_other_sizes_are_padded_with_zeros(m: int, k: int, n: int) -> None:
    """Without draws, so that sizes do not shift them: the same as a layer padded by hand."""

    def padded(values: Tensor) -> Tensor:
        wide = torch.zeros(*(-(-size // 16) * 16 for size in values.shape))
        wide[: values.shape[0], : values.shape[1]] = values.detach()
        return wide

    x, w, dy = operands(m, k, n)
    slot = make(n, k, no_fp4_stochastic_rounding=True)
    found = gradients(slot, x, w, dy)
    wide = make(n, k, no_fp4_stochastic_rounding=True)
    wanted = gradients(wide, padded(x).requires_grad_(), padded(w).requires_grad_(), padded(dy))
    for one, two, shape in zip(found, wanted, ((m, n), (m, k), (n, k)), strict=True):
        assert one.shape == shape
        torch.testing.assert_close(one, two[: shape[0], : shape[1]], rtol=1e-5, atol=1e-7)


def test_dtypes_leading_dimensions_and_bias() -> None:
    x, w, dy = operands(dtype=torch.bfloat16)
    bias = torch.randn(N, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16).requires_grad_()
    y, dx, dw, db = gradients(make(), x, w, dy, bias)
    assert {tensor.dtype for tensor in (y, dx, dw, db)} == {torch.bfloat16}
    plain = gradients(make(), x, w, dy)
    torch.testing.assert_close(y.float(), plain[0].float() + bias.float(), rtol=0.01, atol=0.02)
    torch.testing.assert_close(db.float(), dy.float().sum(0), rtol=0.01, atol=1e-3)
    folded = x.detach().view(4, 8, K).requires_grad_()
    again = gradients(make(), folded, w, dy.view(4, 8, N), bias)
    assert torch.equal(again[0].view(M, N), y)
    assert torch.equal(again[1].view(M, K), dx)
    assert torch.equal(again[2], dw)


@pytest.mark.parametrize(
    ("option", "moved"),
    [
        ({"fp4_four_over_six": False}, (True, True, True)),
        ({"no_fp4_hadamard": True}, (False, False, True)),
        ({"no_fp4_stochastic_rounding": True}, (False, True, True)),
    ],
    ids=["fp4_four_over_six", "no_fp4_hadamard", "no_fp4_stochastic_rounding"],
)
def test_what_each_option_moves(option: dict[str, Any], moved: tuple[bool, ...]) -> None:
    plain, other = gradients(make(), *operands()), gradients(make(**option), *operands())
    assert tuple(not torch.equal(one, two) for one, two in zip(plain, other, strict=True)) == moved


def test_conforms() -> None:
    recipe = linear.build(Options(), testing.context(recipe_backend="emulated"))
    testing.check_recipe(recipe, bound=0.22)
    testing.check_recipe(recipe, bound=0.22, where=testing.site(45, 33))


def test_what_is_not_finite_is_seen() -> None:
    x, w, _ = operands()
    with torch.no_grad():
        x[3, 4] = float("inf")
    assert make()(x, w, None).isnan().all()
