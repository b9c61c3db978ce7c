"""Operands as bytes and their product, against what was not made from these bytes: the quantiser's values, and float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from surogate_native_nvfp4 import checks, draws, formats, kernel, operands, ops, packed
from surogate_native_nvfp4.rotation import signs_of
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

SHAPES = [(48, 64, 256), (17, 5, 100), (1, 3, 1), (130, 200, 272), (0, 4, 16), (4, 3, 0)]
SHORT, LONG = signs_of(torch.device("cpu")), draws.signs(draws.words(4, (3, 4), torch.tensor(1)))
DRAW = draws.Draw((5, 6), torch.tensor(7), 64)
CHOICES: list[dict[str, Any]] = [
    {},
    {"square": True, "four_over_six": "mse"},
    {"signs": SHORT, "turned": True, "four_over_six": "mse", "draw": DRAW},
    {"factor": torch.tensor(0.37), "draw": DRAW},
    {"eden": True, "signs": LONG, "factor": torch.tensor(0.37), "draw": DRAW},
    {"eden": True, "turned": True},
]


def drawn(rows: int, columns: int, seed: int = 0) -> Tensor:
    """Rows of very different size, so that a scale in another's place shows."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator) * torch.exp2(torch.randn(rows, 1, generator=generator) * 4)


def make(module: Any, x: Tensor, **choice: Any) -> Any:
    return (module.quantised_eden if choice.pop("eden", False) else module.quantised)(x, **choice)


@pytest.mark.parametrize("kernels", ["auto", "reference"])
@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: "-".join(choice) or "plain")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_an_operand_has_the_values_of_the_emulated_one(choice: dict[str, Any], dtype: torch.dtype, kernels: str) -> None:
    for rows, columns in ((33, 50), (130, 272)):
        x = drawn(rows, columns).to(dtype)
        bytes_, values = make(packed, x, kernels=kernels, **choice), make(operands, x, **choice)
        assert torch.equal(bytes_.values.float(), values.values)
        assert torch.equal(bytes_.decode, values.decode)


@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: "-".join(choice) or "plain")
def test_the_kernels_bodies_make_the_same_bytes(choice: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU is asked for, on the host."""
    x = drawn(33, 50).to(torch.bfloat16)
    wanted = make(packed, x, **choice)
    monkeypatch.setattr(ops, "_chosen", lambda name, kernels: getattr(kernel, name))
    for one, two in zip(make(packed, x, **choice).tensors(), wanted.tensors(), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("kernels", ["auto", "reference"])
@pytest.mark.parametrize(("m", "n", "k"), SHAPES)
def test_the_product_is_that_of_the_values(m: int, n: int, k: int, kernels: str) -> None:
    a, b = drawn(m, k, 1), drawn(n, k, 2)
    left, right = (operands.quantised(x, four_over_six="mse") for x in (a, b))
    exact = (left.values.double() @ right.values.double().t()) * float(left.decode) * float(right.decode)
    mine = [packed.quantised(x, four_over_six="mse") for x in (a, b)]
    found = packed.product(mine[0], mine[1], kernels=kernels)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-5 * float(exact.abs().amax() if exact.numel() else 0))
    assert torch.equal(packed.product(mine[0], mine[1], torch.bfloat16, kernels=kernels), found.to(torch.bfloat16))


def test_another_order_of_scales_or_of_halves_is_another_product() -> None:
    a, b = (packed.quantised(drawn(64, 128, seed)) for seed in (1, 2))
    right = packed.product(a, b)
    rows = formats.unswizzle(a.scales, 64, 8)
    plain = torch.zeros_like(a.scales)
    plain[: rows.numel()] = rows.flatten()
    for codes, scales in ((a.codes, plain), (a.codes >> 4 | a.codes << 4, a.scales)):
        wrong = packed.product(packed.Operand(codes, scales, a.decode), b)
        assert float((wrong - right).norm() / right.norm()) > 0.1


@pytest.mark.parametrize("metric", ["mse", None])
@pytest.mark.parametrize(("rows", "columns"), [(48, 64), (17, 100), (1, 1), (130, 272)])
def test_a_square_operand_is_turned_without_rounding_it_again(rows: int, columns: int, metric: Any) -> None:
    made = packed.quantised(drawn(rows, columns), square=True, four_over_six=metric)
    turned = packed.Operand.turned_of(made.tensors(both=True))
    assert torch.equal(turned.values[:, :rows], made.values.t())
    assert not turned.values[:, rows:].any()
    assert packed.Operand.of(made.tensors(both=True)).codes is made.codes


def test_what_is_not_finite_reaches_the_product() -> None:
    a, b = drawn(16, 32), packed.quantised(drawn(16, 32))
    a[3, 4] = float("inf")
    for made in (packed.quantised(a), packed.quantised_eden(a)):
        assert made.decode.isnan()
    assert packed.product(packed.quantised(a), b).isnan().all()


def test_another_metric_is_refused() -> None:
    with pytest.raises(ValueError, match='four_over_six = "mae": the kernel chooses by "mse"'):
        packed.quantised(drawn(16, 16), four_over_six="mae")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("m", "n", "k"), SHAPES)
def test_torch_accepts_the_call_for_a_gpu(m: int, n: int, k: int, dtype: torch.dtype) -> None:
    """Its own check of dtypes, strides, sizes, number and order of scales, without a GPU. The padded bytes mean the same."""
    parts = checks._operands((m, n, k), lambda *shape: drawn(*shape))
    with FakeTensorMode(allow_non_fake_inputs=True):
        fake = [torch.empty(part.shape, dtype=part.dtype, device="cuda") for part in parts]
        found = packed.scaled_mm_kernel(*fake, dtype)
        assert (found.shape, found.dtype, found.device.type) == ((m, n), dtype, "cuda")
    meta = torch.ops.surogate_nvfp4.scaled_mm(*[part.to("meta") for part in parts], dtype)
    assert (meta.shape, meta.dtype) == ((m, n), dtype)


def test_torch_refuses_sizes_that_are_not_padded(monkeypatch: pytest.MonkeyPatch) -> None:
    """That the check above looks."""
    parts = checks._operands((5, 30, 48), lambda *shape: drawn(*shape))
    monkeypatch.setattr(packed, "_padded", lambda codes, rows, width: codes)
    with FakeTensorMode(allow_non_fake_inputs=True), pytest.raises(RuntimeError, match="divisible by 16"):
        packed.scaled_mm_kernel(*[torch.empty(part.shape, dtype=part.dtype, device="cuda") for part in parts], torch.bfloat16)


@pytest.mark.parametrize(("m", "n", "k"), SHAPES[:4])
def test_padding_for_a_gpu_changes_no_value(m: int, n: int, k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is handed to torch, multiplied by the definition: padded codes with the scales as they are."""
    a, b = (packed.quantised(drawn(rows, k, rows)) for rows in (m, n))

    def multiplied(left: Tensor, right: Tensor, *given: Any, output_dtype: torch.dtype) -> Tensor:
        codes = left.view(torch.uint8), right.t().view(torch.uint8)
        assert all(one.shape[1] % 16 == 0 for one in codes)
        assert codes[1].shape[0] % 16 == 0
        scales, decode = zip(*(given[0], given[2]), strict=True)
        return packed.scaled_mm(*codes, *(one.view(torch.uint8) for one in scales), *decode, output_dtype)

    monkeypatch.setattr(packed.F, "scaled_mm", multiplied)
    given = a.codes, b.codes, a.scales, b.scales, a.decode, b.decode, torch.float32
    torch.testing.assert_close(packed.scaled_mm_kernel(*given), packed.scaled_mm(*given), rtol=1e-6, atol=1e-5)


def test_the_products_check_is_for_such_units_alone_and_its_reference_holds() -> None:
    assert checks.PRODUCT.needs == (10, 0)
    assert checks.PRODUCT.difference((33, 50, 80), 1, "cpu") is None
