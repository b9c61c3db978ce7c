"""Polar Express against the published figures of its scalar map and against torch's SVD in float64."""

from __future__ import annotations

import pytest
import torch
from surogate_optimizer_normuon.orthogonal import COEFFICIENTS, orthogonalize
from torch import Tensor


def scalar(s: Tensor) -> Tensor:
    for a, b, c in COEFFICIENTS:
        s = a * s + b * s**3 + c * s**5
    return s


def test_the_scalar_map_has_the_published_figures() -> None:
    s = torch.tensor([1.0, 0.5, 1e-9], dtype=torch.float64)
    found = scalar(s)
    assert found[:2].tolist() == pytest.approx([0.8591290, 0.9106109], abs=1e-7)
    assert float(found[2] / s[2]) == pytest.approx(989.468, abs=1e-3)
    grid = scalar(torch.linspace(0.001, 1, 100_001, dtype=torch.float64))
    assert float(grid.min()) == pytest.approx(0.85887, abs=1e-5)
    assert float(grid.max()) == pytest.approx(1.14113, abs=1e-5)


@pytest.mark.parametrize("shape", [(3, 16, 40), (2, 40, 16), (2, 24, 24), (1, 1, 9)])
def test_singular_vectors_stay_and_singular_values_follow_the_map(shape: tuple[int, int, int]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    u, s, v = torch.linalg.svd(x, full_matrices=False)
    wanted = u @ torch.diag_embed(scalar(s / (1.02 * s.norm(dim=1, keepdim=True)))) @ v
    torch.testing.assert_close(orthogonalize(x, torch.float64), wanted, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(orthogonalize(x.float(), torch.float32).double(), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [1e-20, 1.0, 1e15])
def test_in_bfloat16_all_singular_values_come_near_one_whatever_the_scale(size: float) -> None:
    x = torch.randn(2, 64, 256, generator=torch.Generator().manual_seed(2)) * size
    found = orthogonalize(x, torch.bfloat16)
    assert found.dtype == torch.bfloat16
    s = torch.linalg.svdvals(found.float())
    assert float(s.min()) > 0.855
    assert float(s.max()) < 1.146


def test_zeros_stay_zero() -> None:
    assert not orthogonalize(torch.zeros(1, 4, 6), torch.bfloat16).any()
