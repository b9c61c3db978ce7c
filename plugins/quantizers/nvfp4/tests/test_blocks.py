"""Stored bytes are those of the format's definition on the whole matrix; values are it in float64."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from surogate_native_nvfp4 import quantise
from surogate_quantizer_nvfp4 import blocks
from surogate_quantizer_nvfp4.blocks import Nvfp4, build
from surogate_quantizer_nvfp4.plugin import Options
from surogate_testing import check_storage

from surogate_core import testing

SHAPES = [(64, 64), (172, 64), (64, 172), (1, 300), (33, 7), (129, 257)]
EXAMPLE = [10.0, 20.0, 30.0, 40.0, *[0.0] * 12]
"""The block of arXiv 2512.02010, section 3: exact where 4 is the largest code, not where it is 6."""


def weight(shape: tuple[int, int], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))) * 0.02).to(dtype)


def packed(whole: torch.Tensor, four_over_six: bool) -> Nvfp4:
    storage = Nvfp4(tuple(whole.shape), four_over_six)
    storage.pack(whole)
    return storage


@pytest.mark.parametrize("four_over_six", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_pieces_give_the_bytes_and_values_of_the_whole(
    shape: tuple[int, int], four_over_six: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "PIECE", 1000)
    for dtype in (torch.float32, torch.bfloat16):
        storage = packed(weight(shape, dtype), four_over_six)
        whole = quantise(weight(shape, dtype), four_over_six="mse" if four_over_six else None)
        assert torch.equal(storage.weight, whole.packed())
        assert torch.equal(storage.weight_scale.view(torch.uint8), whole.scale_bytes().view(torch.uint8))
        assert torch.equal(storage.weight_scale_2, whole.decode)
        assert torch.equal(storage.unpack(torch.float32), whole.dequantised()[:, : shape[1]])


def test_values_by_the_definition() -> None:
    levels = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
    for shape, four_over_six in itertools.product(SHAPES, (True, False)):
        storage = packed(weight(shape), four_over_six)
        codes = storage.weight.numpy()
        values = levels[np.stack([codes & 15, codes >> 4], 2).reshape(shape[0], -1)]
        values *= storage.weight_scale.double().numpy().repeat(16, 1) * float(storage.weight_scale_2)
        np.testing.assert_allclose(storage.unpack(torch.float32).numpy(), values[:, : shape[1]], rtol=2e-7)


def test_the_published_block() -> None:
    assert packed(torch.tensor([EXAMPLE]), True).unpack(torch.float32)[0].tolist() == EXAMPLE
    found = packed(torch.tensor([EXAMPLE]), False).unpack(torch.float32)[0]
    torch.testing.assert_close(found[:4], torch.tensor([10, 20, 80 / 3, 40]))


@pytest.mark.parametrize(("four_over_six", "error"), [(True, 0.088), (False, 0.096)])
def test_a_storage_keeps_what_it_promises(four_over_six: bool, error: float) -> None:
    site = testing.site(1024, 1024)
    quantizer: Any = build(Options(qlora_four_over_six=four_over_six), testing.context())
    assert quantizer.claim(site) is None
    with torch.device("meta"):
        storage = quantizer.storage(site)
    check_storage(storage, weight((1024, 1024)), error)
    assert 8 * sum(tensor.nbytes for tensor in storage.buffers()) / 2**20 == pytest.approx(4.5, rel=1e-4)


def test_a_weight_of_zeros() -> None:
    assert not packed(torch.zeros(16, 48), True).unpack(torch.float32).any()
