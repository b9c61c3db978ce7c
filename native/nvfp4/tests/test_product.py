from __future__ import annotations

import pytest
import torch
from surogate_native_nvfp4 import product, quantise


@pytest.mark.parametrize(("m", "n", "k"), [(48, 64, 256), (17, 5, 100), (128, 32, 1024)])
def test_the_emulated_product_is_that_of_the_dequantised_operands(m: int, n: int, k: int) -> None:
    generator = torch.Generator().manual_seed(k)
    a, b = (quantise(torch.randn(rows, k, generator=generator), four_over_six="mse") for rows in (m, n))
    exact = (a.scaled().double() @ b.scaled().double().t()) * float(a.decode) * float(b.decode)
    bound = 1e-5 * k**0.5 * float(exact.abs().mean())
    assert float((product(a, b).double() - exact).abs().max()) < bound


def test_the_sum_of_one_block_is_exact() -> None:
    """16 products of the largest spread: nothing is lost but in the last factor."""
    generator = torch.Generator().manual_seed(1)
    a, b = (quantise(torch.randn(64, 16, generator=generator) * 100) for _ in range(2))
    exact = (a.scaled().double() @ b.scaled().double().t()).float() * (a.decode * b.decode)
    assert torch.equal(product(a, b), exact)
