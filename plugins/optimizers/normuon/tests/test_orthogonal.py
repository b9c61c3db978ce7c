"""Polar Express against the published figures of its scalar map and against torch's SVD in float64; the iteration, with the
coefficients of torch's Muon, against torch's Muon."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from surogate_optimizer_normuon import orthogonal
from surogate_optimizer_normuon.orthogonal import COEFFICIENTS, orthogonalize
from torch import Tensor

MUON = torch.optim.Muon([torch.zeros(2, 2)]).defaults
NEWTON_SCHULZ = (MUON["ns_coefficients"],) * MUON["ns_steps"]


def scalar(s: Tensor, coefficients: Sequence[tuple[float, float, float]] = COEFFICIENTS) -> Tensor:
    for a, b, c in coefficients:
        s = a * s + b * s**3 + c * s**5
    return s


def gaussian(seed: int) -> Tensor:
    return torch.randn(1, 64, 256, generator=torch.Generator().manual_seed(seed))


def test_the_scalar_map_has_the_published_figures() -> None:
    s = torch.tensor([1.0, 0.5, 1e-9], dtype=torch.float64)
    found = scalar(s)
    assert found[:2].tolist() == pytest.approx([0.8591290, 0.9106109], abs=1e-7)
    assert float(found[2] / s[2]) == pytest.approx(989.468, abs=1e-3)
    grid = scalar(torch.linspace(0.001, 1, 100_001, dtype=torch.float64))
    assert float(grid.min()) == pytest.approx(0.85887, abs=1e-5)
    assert float(grid.max()) == pytest.approx(1.14113, abs=1e-5)


def test_the_scalar_map_of_muon_has_the_published_figures() -> None:
    s = torch.tensor([1.0, 0.5, 1e-9], dtype=torch.float64)
    found = scalar(s, NEWTON_SCHULZ)
    assert found[:2].tolist() == pytest.approx([0.6964364, 0.7654385], abs=1e-7)
    assert float(found[2] / s[2]) == pytest.approx(484.876, abs=1e-3)
    grid = scalar(torch.linspace(0.01, 1, 100_001, dtype=torch.float64), NEWTON_SCHULZ)
    assert float(grid.min()) == pytest.approx(0.68183, abs=1e-5)
    assert float(grid.max()) == pytest.approx(1.13436, abs=1e-5)
    fixed = torch.tensor([0.753469, 1.597011], dtype=torch.float64).sqrt()
    torch.testing.assert_close(scalar(fixed, NEWTON_SCHULZ[:1]), fixed, rtol=0, atol=2e-6)


@pytest.mark.parametrize("tall", [False, True])
def test_with_the_coefficients_of_muon_the_iteration_is_torchs(tall: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the bit, on a gradient in bfloat16, for which both divide by the norm in bfloat16."""
    monkeypatch.setattr(orthogonal, "COEFFICIENTS", NEWTON_SCHULZ)
    monkeypatch.setattr(orthogonal, "SAFETY", 1.0)
    x = gaussian(2).bfloat16()
    x = x.transpose(1, 2) if tall else x
    weight = torch.nn.Parameter(torch.zeros(x.shape[1:]))
    weight.grad = x[0].float()
    torch.optim.Muon([weight], lr=1, weight_decay=0, momentum=0, nesterov=False, adjust_lr_fn="match_rms_adamw").step()
    found = orthogonalize(x, torch.bfloat16)
    scale = 0.2 * 256**0.5  # what Muon multiplies an update by
    torch.testing.assert_close(-weight.detach() / scale, found[0].float(), rtol=1e-6, atol=0)
    s = torch.linalg.svdvals(found.double())
    assert 0.67 < float(s.min()) < float(s.max()) < 1.14


@pytest.mark.parametrize("shape", [(3, 16, 40), (2, 40, 16), (2, 24, 24), (1, 1, 9)])
def test_singular_vectors_stay_and_singular_values_follow_the_map(shape: tuple[int, int, int]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    u, s, v = torch.linalg.svd(x, full_matrices=False)
    wanted = u @ torch.diag_embed(scalar(s / (1.02 * s.norm(dim=1, keepdim=True)))) @ v
    torch.testing.assert_close(orthogonalize(x, torch.float64), wanted, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(orthogonalize(x.float(), torch.float32).double(), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [1e-20, 1.0, 1e15])
def test_in_bfloat16_all_singular_values_come_near_one_whatever_the_scale(size: float) -> None:
    """Within the published bounds, which are those of one such matrix; of sixty, thirteen go below 0.858, none beyond these."""
    found = orthogonalize(torch.cat([gaussian(seed) for seed in range(8)]) * size, torch.bfloat16)
    assert found.dtype == torch.bfloat16
    s = torch.linalg.svdvals(found.double())
    assert float(s.min()) > 0.857
    assert float(s.max()) < 1.143
    assert float(s[1].min()) > 0.858


def test_only_rounding_the_result_to_bfloat16_leaves_the_range_of_the_scalar_map(monkeypatch: pytest.MonkeyPatch) -> None:
    *first, last = COEFFICIENTS
    monkeypatch.setattr(orthogonal, "COEFFICIENTS", first)
    before = torch.linalg.svdvals(orthogonalize(torch.cat([gaussian(seed) for seed in range(8)]), torch.bfloat16).double())
    s = scalar(before, [last])
    assert float(s.min()) > 0.85887 - 1e-5
    assert float(s.max()) < 1.14113 + 1e-5


def test_zeros_stay_zero() -> None:
    assert not orthogonalize(torch.zeros(1, 4, 6), torch.bfloat16).any()
