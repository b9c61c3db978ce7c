from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from surogate_native_nvfp4 import draws, quantise_eden, rotate
from surogate_native_nvfp4.eden import LIMIT, TOP
from torch import Tensor

KEY = (5, 6)
STEP = torch.zeros((), dtype=torch.int64)


def drawn(x: Tensor, step: int, group: int = 128) -> Tensor:
    return draws.bits16((x.shape[0], -(-x.shape[1] // group) * group // 16), KEY, 1, STEP + step)


def test_effective_bits_of_normal_values() -> None:
    x = torch.randn(4096, 2048, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    rotated = rotate(x, draws.signs(128, KEY, 0, STEP))
    error = (quantise_eden(rotated, drawn(rotated, 0)).dequantised() - rotated).square().mean() / rotated.square().mean()
    assert float(error) == pytest.approx(9.7e-3, rel=0.01)
    assert -math.log2(float(error)) / 2 == pytest.approx(3.342, abs=0.003)
    assert -math.log2(float(error)) / 2 > 3.32


def test_unbiased_over_signs_and_scales() -> None:
    """The mean of n draws, rotated back, comes as near as the root of n; rounded to nearest alone it does not."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(24, 256, generator=generator) * torch.rand(24, 1, generator=generator)

    def mean_error(count: int, stochastic: bool) -> float:
        total = torch.zeros(x.shape)
        for step in range(count):
            signs = draws.signs(128, KEY, 0, STEP + step)
            found = quantise_eden(rotate(x, signs), drawn(x, step) if stochastic else None).dequantised()
            back = rotate(torch.eye(128), signs)  # rows of R: y R^T undoes y = x R
            total += (found.unflatten(1, (-1, 128)) @ back.t()).flatten(1)
        return float((total / count - x).square().mean() / x.square().mean())

    one = mean_error(1, True)
    assert one == pytest.approx(9.7e-3, rel=0.1)
    assert mean_error(1024, True) < 1.3 * one / 1024


def test_against_the_definition_in_float64() -> None:
    x = torch.randn(8, 256, generator=torch.Generator().manual_seed(3))
    bits = drawn(x, 0)
    found = quantise_eden(x, bits)
    z, decode = x.double().numpy(), float(x.abs().max()) / TOP / LIMIT
    assert float(found.decode) == pytest.approx(decode, rel=1e-6)
    grid, scales = found.grid.flatten(0, 1).t().double().numpy(), found.scales.t().double().numpy()
    first = quantise_eden(x, None)
    blocks = np.abs(z.reshape(8, 16, 16)).max(-1) / LIMIT / decode
    plain = torch.tensor(blocks).float().to(torch.float8_e4m3fn).double().numpy()
    scaled = z.reshape(8, 16, 16) / (plain * decode)[..., None]
    parts = scaled.reshape(8, 2, 128), grid.reshape(8, 2, 128)
    factor = (parts[0] ** 2).sum(-1) / (parts[0] * parts[1]).sum(-1)
    wanted = plain * np.repeat(factor, 8, axis=1)
    spacing = 2.0 ** (np.floor(np.log2(wanted)) - 3)
    assert np.all(np.abs(scales - wanted) < spacing * (1 + 1e-5))
    up = (scales > wanted).mean()
    assert 0.3 < up < 0.7
    assert np.all(np.abs(first.scales.t().double().numpy() - wanted) <= spacing / 2 * (1 + 1e-5))


def test_zeros_and_what_is_not_finite() -> None:
    assert not quantise_eden(torch.zeros(4, 128), drawn(torch.zeros(4, 128), 0)).dequantised().any()
    x = torch.ones(2, 128)
    x[0, 0] = float("inf")
    assert quantise_eden(x, None).dequantised().isnan().all()


def test_other_sizes_are_padded_with_zeros() -> None:
    x = torch.randn(5, 140, generator=torch.Generator().manual_seed(4))
    padded = torch.zeros(5, 256)
    padded[:, :140] = x
    found, wanted = (quantise_eden(y, drawn(y, 0)) for y in (x, padded))
    assert torch.equal(found.packed(), wanted.packed())
    assert torch.equal(found.scales, wanted.scales)
