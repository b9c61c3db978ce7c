"""The ops on a CPU and on the meta device, and that their parts are the definitions one after the other."""

from __future__ import annotations

import pytest
import torch
from surogate_native_nvfp4 import RHT_SIGNS, draws, formats, ops, quantise, quantise_eden, rotate
from torch import Tensor

KEY, STEP = (9, 10), torch.tensor(3)
SHORT, LONG = torch.tensor(RHT_SIGNS).float(), draws.signs(draws.words(4, KEY, STEP))


@pytest.fixture
def x() -> Tensor:
    return torch.randn(40, 72, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)


def test_the_weight_gradients_operand_of_nvfp4(x: Tensor) -> None:
    matrix = rotate(x.t(), SHORT)
    found, amax = ops.rotate(x, SHORT, turned=True)
    assert torch.equal(found, matrix)
    assert amax.item() == matrix.abs().max()
    codes, scales, fake = ops.quantise(x, amax, signs=SHORT, turned=True, four_over_six=True, key=KEY, step=STEP, base=8, fake=True)
    wanted = quantise(matrix, four_over_six="mse", bits=draws.bits16(draws.words(8 + 72 * 24, KEY, STEP)[8:], 72, 48))
    assert torch.equal(codes, wanted.packed())
    assert torch.equal(scales, formats.swizzle(wanted.scale_bytes()).view(torch.uint8))
    assert torch.equal(fake.float(), wanted.scaled())


def test_an_operand_of_quartet(x: Tensor) -> None:
    matrix = rotate(x.float() * 0.5, LONG)
    _, amax = ops.rotate(x, LONG, factor=torch.tensor(0.5), out=False)
    codes, scales, fake = ops.quantise_eden(x, amax, signs=LONG, factor=torch.tensor(0.5), key=KEY, step=STEP)
    wanted = quantise_eden(matrix, draws.bits16(draws.words(160, KEY, STEP), 40, 8))
    assert torch.equal(codes, wanted.packed())
    assert torch.equal(scales, formats.swizzle(wanted.scale_bytes()).view(torch.uint8))
    assert fake.numel() == 0


def test_square_blocks(x: Tensor) -> None:
    codes, _, _ = ops.quantise(x, x.float().abs().max(), square=True)
    assert torch.equal(codes, quantise(x, square=True).packed())


@pytest.mark.parametrize("turned", [False, True])
def test_meta_tensors_have_the_shapes_and_dtypes_of_results(x: Tensor, turned: bool) -> None:
    def results(x: Tensor) -> list[Tensor]:
        signs, amax = [signs.to(x.device) for signs in (SHORT, LONG)], torch.ones(1, device=x.device)
        found = [*ops.rotate(x, signs[1], turned=turned), *ops.rotate(x, signs[0], turned=turned, out=False)]
        found += ops.quantise(x, amax, signs=signs[0], turned=turned, fake=True)
        return [*found, *ops.quantise_eden(x, amax, signs=signs[1], turned=turned)]

    for meta, real in zip(results(x.to("meta")), results(x), strict=True):
        assert meta.is_meta
        assert (meta.shape, meta.dtype, meta.stride()) == (real.shape, real.dtype, real.stride())
