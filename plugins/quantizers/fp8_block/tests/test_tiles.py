"""Tiles against transformers' own fine-grained FP8 and a construction in numpy with ml_dtypes."""

from __future__ import annotations

import itertools
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from surogate_quantizer_fp8_block import tiles
from surogate_quantizer_fp8_block.plugin import Options
from surogate_quantizer_fp8_block.tiles import Tiles, build
from surogate_testing import check_storage

from surogate_core import testing

SHAPES = [(128, 128), (256, 384), (172, 64), (64, 172), (1, 300), (300, 1), (129, 257), (640, 96)]


def weight(shape: tuple[int, int], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))) * 0.02).to(dtype)


def packed(whole: torch.Tensor, block: int) -> Tiles:
    storage = Tiles(tuple(whole.shape), block)
    storage.pack(whole)
    return storage


@pytest.mark.parametrize("block", [64, 128, 256])
@pytest.mark.parametrize("shape", SHAPES)
def test_each_tile_by_its_definition(shape: tuple[int, int], block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "PIECE", 20_000)
    storage = packed(weight(shape), block)
    values, found = weight(shape).numpy(), storage.unpack(torch.float32).numpy()
    for row, column in itertools.product(range(0, shape[0], block), range(0, shape[1], block)):
        at = np.s_[row : row + block, column : column + block]
        scale = np.abs(values[at]).max() / np.float32(448)
        assert storage.weight_scale_inv[row // block, column // block] == scale
        codes = (values[at] / scale).astype(ml_dtypes.float8_e4m3fn)
        np.testing.assert_array_equal(storage.weight[at].float().numpy(), codes.astype(np.float32))
        np.testing.assert_array_equal(found[at], codes.astype(np.float32) * scale)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_transposed_weight_is_the_transposed_format(shape: tuple[int, int]) -> None:
    one, other = packed(weight(shape), 128), packed(weight(shape).t().contiguous(), 128)
    assert torch.equal(one.weight.view(torch.uint8), other.weight.t().contiguous().view(torch.uint8))
    assert torch.equal(one.weight_scale_inv, other.weight_scale_inv.t())
    assert torch.equal(one.unpack(torch.bfloat16), other.unpack(torch.bfloat16).t())


def test_transformers_reads_the_same_values() -> None:
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    storage = packed(weight((256, 384)), 128)
    found = Fp8Dequantize(None)._dequantize_one(storage.weight, storage.weight_scale_inv)
    torch.testing.assert_close(found.float(), storage.unpack(torch.float32), rtol=2**-8, atol=0)


@pytest.mark.parametrize(("block", "bits"), [(64, 8.0078), (128, 8.002), (256, 8.0005)])
def test_a_storage_keeps_what_it_promises(block: Any, bits: float) -> None:
    site = testing.site(1024, 1024)
    quantizer: Any = build(Options(qlora_block_size=block), testing.context())
    assert quantizer.claim(site) is None
    with torch.device("meta"):
        storage = quantizer.storage(site)
    check_storage(storage, weight((1024, 1024)), error=0.03)
    assert 8 * sum(tensor.nbytes for tensor in storage.buffers()) / 2**20 == pytest.approx(bits, rel=1e-4)


def test_zeros_and_large_values() -> None:
    whole = torch.zeros(256, 128)
    whole[128:] = 3e38
    found = packed(whole, 128).unpack(torch.float32)
    assert not found[:128].any()
    torch.testing.assert_close(found[128:], whole[128:], rtol=1e-6, atol=0)
