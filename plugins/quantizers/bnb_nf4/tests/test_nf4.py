"""The bytes are bitsandbytes' own, called on the whole weight at once; the values are the format's definition in float64."""

from __future__ import annotations

import itertools
from typing import Any

import bitsandbytes.functional as bnb
import numpy as np
import pytest
import torch
from surogate_quantizer_bnb_nf4 import nf4
from surogate_quantizer_bnb_nf4.nf4 import Nf4, build
from surogate_quantizer_bnb_nf4.plugin import Options
from surogate_testing import check_storage

from surogate_core import testing

SHAPES = [
    *((rows, columns) for rows, columns in itertools.product((32, 172, 512), (64, 172, 384))),
    *((64, 48), (5, 64), (1, 300), (3, 7), (1, 1), (1, 2), (129, 511), (33, 515), (2, 4096), (640, 96), (1024, 1031)),
]
LEVELS = [
    *(-1, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334),
    *(-0.09105003625154495, 0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1),
]
"""The 16 levels as published (arXiv 2305.14314, appendix E)."""


def weight(shape: tuple[int, int], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))) * 0.02).to(dtype)


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("block", [64, 128, 256, 512])
def test_bytes_and_scales_are_bitsandbytes(block: int, double: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nf4, "PIECE", 4096)  # several pieces, as a large weight has
    assert len(SHAPES) == 20
    for shape, dtype in itertools.product(SHAPES, (torch.float32, torch.bfloat16)):
        whole = weight(shape, dtype)
        codes, state = bnb.quantize_4bit(whole, blocksize=block, quant_type="nf4", compress_statistics=double)
        storage = Nf4(shape, block, double)
        storage.pack(whole)
        assert torch.equal(storage.weight, codes), shape
        assert torch.equal(storage.absmax, state.absmax), shape
        if double:
            assert torch.equal(storage.nested_absmax, state.state2.absmax), shape
            assert torch.equal(storage.nested_offset, state.offset), shape


@pytest.mark.parametrize("double", [True, False])
def test_values_are_level_times_absmax(double: bool) -> None:
    dynamic = bnb.create_dynamic_map().double().numpy()
    for shape, block in itertools.product(SHAPES, (64, 512)):
        storage = Nf4(shape, block, double)
        storage.pack(weight(shape))
        codes, count = storage.weight.flatten().numpy(), shape[0] * shape[1]
        index = np.stack([codes >> 4, codes & 15], 1).ravel()[:count]
        absmax = storage.absmax.numpy()
        if double:
            nested = storage.nested_absmax.double().numpy().repeat(256)[: len(absmax)]
            absmax = dynamic[absmax] * nested + float(storage.nested_offset)
        wanted = (np.array(LEVELS)[index] * absmax.astype(np.float64).repeat(block)[:count]).reshape(shape)
        np.testing.assert_allclose(storage.unpack(torch.float32).numpy(), wanted, rtol=1e-6, atol=1e-9)


def test_published_bytes() -> None:
    storage = Nf4((1, 64), 64, double=False)
    storage.pack(torch.linspace(-1, 1, 64)[None])
    known = "0 0 1 17 17 17 18 34 34 51 52 68 69 85 102 103 120 136 153 170 171 187 204 204 221 221 238 238 238 239 255 255"
    assert storage.weight.flatten().tolist() == [int(byte) for byte in known.split()]


def test_a_value_goes_to_the_nearest_level() -> None:
    """Decision bounds are the middles between levels; the float32 neighbours of each bound are on its two sides."""
    bounds = [(low + high) / 2 for low, high in itertools.pairwise(LEVELS)]
    assert [bounds[0], bounds[7], bounds[14]] == pytest.approx([-0.8480963707, 0.0397901498, 0.8614784479], abs=4e-8)
    middle = np.array(bounds, dtype=np.float32)
    block = np.ones((1, 64), dtype=np.float32)
    block[0, :30] = np.stack([np.nextafter(middle, np.float32(-2)), np.nextafter(middle, np.float32(2))], 1).ravel()
    storage = Nf4((1, 64), 64, double=False)
    storage.pack(torch.from_numpy(block))
    codes = storage.weight.flatten()
    found = torch.stack([codes >> 4, codes & 15], 1).flatten()[:30]
    assert found.view(15, 2).tolist() == [[code, code + 1] for code in range(15)]


@pytest.mark.parametrize(
    ("options", "bits"),
    [
        (Options(), 4.127),
        (Options(qlora_bnb_double_quant=False), 4.5),
        (Options(qlora_bnb_block_size=256), 4.032),
        (Options(qlora_bnb_block_size=512, qlora_bnb_double_quant=False), 4.0625),
    ],
)
def test_a_storage_keeps_what_it_promises(options: Options, bits: float) -> None:
    site = testing.site(1024, 1024)
    quantizer: Any = build(options, testing.context())
    assert quantizer.claim(site) is None
    with torch.device("meta"):
        storage = quantizer.storage(site)
    check_storage(storage, weight((1024, 1024)), error=0.12)
    assert 8 * sum(tensor.nbytes for tensor in storage.buffers()) / 2**20 == pytest.approx(bits, rel=1e-3)


def test_a_weight_of_zeros() -> None:
    storage = Nf4((16, 48), 64, double=True)
    storage.pack(torch.zeros(16, 48))
    assert not storage.unpack(torch.float32).any()
