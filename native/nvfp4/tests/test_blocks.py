from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from surogate_native_nvfp4 import Blocks, draws, formats, quantise
from surogate_native_nvfp4.blocks import Metric, unpack
from torch import Tensor

STEP = torch.zeros((), dtype=torch.int64)
FIRST = 1.6 * torch.tensor([1, 0.93, 0.87, 0.78, 0.71, 0.65, 0.55, 0.46, 0.38, 0.31, 0.27, 0.22, 0.16, 0.10, 0.05, 0.02])
FIRST = (FIRST * torch.tensor([1.0, -1.0] * 8))[None]


def magnitudes(blocks: Blocks) -> list[list[float]]:
    return blocks.grid.flatten(0, 1).t().abs().tolist()


def squares(blocks: Blocks, x: Tensor) -> float:
    return float((blocks.dequantised() - x).square().sum())


def test_published_block() -> None:
    found = quantise(FIRST)
    assert float(1 / found.decode) == pytest.approx(1680)
    assert found.scale_bytes().view(torch.uint8).tolist() == [[126]]
    assert magnitudes(found) == [[6, 6, 6, 4, 4, 4, 3, 3, 2, 2, 1.5, 1.5, 1, 0.5, 0.5, 0]]
    assert found.packed().tolist() == [[247, 231, 230, 213, 196, 179, 146, 129]]
    assert found.codes()[0, -1] == 8
    assert squares(found, FIRST) == pytest.approx(0.119694, abs=1e-6)


def test_published_block_with_four_over_six() -> None:
    found = quantise(FIRST, four_over_six="mse")
    assert found.scales.tolist() == [[384]]
    assert magnitudes(found) == [[4, 4, 3, 3, 3, 3, 2, 2, 1.5, 1, 1, 1, 0.5, 0.5, 0, 0]]
    assert squares(found, FIRST) == pytest.approx(0.116672, abs=1e-6)
    assert quantise(FIRST, four_over_six="mae").scales.tolist() == [[256]]


def test_published_second_block() -> None:
    both = torch.cat([FIRST, 0.3 * FIRST], dim=1)
    found = quantise(both)
    assert found.scale_bytes().view(torch.uint8).tolist() == [[126, 112]]
    codes = found.codes()
    assert torch.equal(codes[:, :16], codes[:, 16:])
    found = quantise(both, four_over_six="mse")
    assert found.scales.flatten().tolist() == [384, 112]
    assert magnitudes(found)[0][16:] == [4, 4, 4, 3, 3, 3, 2, 2, 1.5, 1.5, 1, 1, 0.5, 0.5, 0, 0]


def test_example_of_the_paper_on_four_over_six() -> None:
    x = torch.zeros(1, 16)
    x[0, :4] = torch.tensor([10.0, 20, 30, 40])
    plain, better = quantise(x), quantise(x, four_over_six="mse")
    assert (magnitudes(plain)[0][:4], plain.scales.tolist()) == ([1.5, 3, 4, 6], [[448]])
    torch.testing.assert_close(plain.dequantised()[0, :4], torch.tensor([10, 20, 26.6667, 40]), rtol=1e-5, atol=0)
    assert (magnitudes(better)[0][:4], better.scales.tolist()) == ([1, 2, 3, 4], [[384]])
    torch.testing.assert_close(better.dequantised(), x, rtol=1e-6, atol=0)


def mixture(rows: int, columns: int, seed: int) -> Tensor:
    """Values of very different sizes, with zeros, whole blocks of them, and values that lie on ties."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, columns, generator=generator)
    x *= torch.exp2(torch.randint(-9, 6, (rows, columns // 16), generator=generator).float()).repeat_interleave(16, 1)
    x[torch.rand(rows, columns, generator=generator) < 0.1] = 0.0
    x[0, :16] = 0.0
    x[1, :16] = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5, 6] * 2)
    return x


@pytest.mark.parametrize("square", [False, True])
@pytest.mark.parametrize("metric", [None, "mse", "mae", "abs_max"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_equal_a_second_construction(
    second: SimpleNamespace, square: bool, metric: Metric | None, dtype: torch.dtype
) -> None:
    for seed, scale in enumerate((1.0, 1e-4, 3e4)):
        x = (mixture(48, 96, seed) * scale).to(dtype)
        found = quantise(x, square=square, four_over_six=metric)
        packed, scales, decode = second.quantise(x.float().numpy(), square, metric)
        np.testing.assert_array_equal(found.scale_bytes().view(torch.uint8).numpy(), scales)
        np.testing.assert_array_equal(found.packed().numpy(), packed)
        assert np.float32(float(found.decode)) == decode


def test_bytes_decode_to_the_fake_quantised_values() -> None:
    x = mixture(40, 64, 5)
    found = quantise(x, four_over_six="mse")
    again = unpack(found.packed(), found.scale_bytes(), found.decode)
    assert torch.equal(again.dequantised(), found.dequantised())
    by_hand = formats.e2m1_values(found.codes()) * found.scale_bytes().float().repeat_interleave(16, 1)
    assert torch.equal(by_hand, found.scaled())


def test_scaled_values_are_exact_in_bfloat16(second: SimpleNamespace) -> None:
    """All products of a value and a scale."""
    products = torch.tensor(np.outer(second.E2M1[:8], second.E4M3))
    assert torch.equal(products.to(torch.bfloat16).double(), products)
    assert torch.equal(products.to(torch.float16).double(), products)


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (17, 33), (16, 15), (3, 100)])
@pytest.mark.parametrize("square", [False, True])
def test_other_sizes_are_padded_with_zeros(rows: int, columns: int, square: bool) -> None:
    x = torch.randn(rows, columns, generator=torch.Generator().manual_seed(1))
    padded = torch.zeros(-(-rows // 16) * 16, -(-columns // 16) * 16)
    padded[:rows, :columns] = x
    found, wanted = (quantise(y, square=square, four_over_six="mse") for y in (x, padded))
    assert found.shape == (rows, padded.shape[1])
    assert torch.equal(found.codes(), wanted.codes()[:rows])
    assert torch.equal(found.scales, wanted.scales[:, :rows])
    assert not found.scaled()[:, columns:].any()


def test_square_blocks_are_those_of_the_transpose() -> None:
    x = mixture(64, 48, 3)
    one, other = (quantise(y, square=True, four_over_six="mse").dequantised() for y in (x, x.t()))
    assert torch.equal(one, other.t())
    rows = quantise(x, four_over_six="mse").dequantised()
    assert not torch.equal(rows, quantise(x.t(), four_over_six="mse").dequantised().t())


def test_a_part_of_a_matrix_with_the_whole_ones_amax() -> None:
    x = mixture(32, 64, 4)
    whole = quantise(x)
    part = quantise(x[16:], amax=x.abs().max())
    assert torch.equal(part.packed(), whole.packed()[16:])


class TestAtTheEdge:
    def test_zeros(self) -> None:
        x = torch.zeros(16, 32)
        x[0, 0] = -0.0
        for square in (False, True):
            found = quantise(x, square=square, four_over_six="mse")
            assert not found.dequantised().any()
            assert float(found.decode) == 1.0
            assert found.codes()[0, 0] == 8

    def test_tiny_values_keep_finite_scales(self) -> None:
        x = torch.full((1, 16), 1e-40)
        found = quantise(x)
        assert found.dequantised().isfinite().all()
        assert float(found.decode) == pytest.approx(1 / torch.finfo(torch.float32).max, rel=1e-6)

    def test_a_block_whose_scale_vanishes_is_zero(self) -> None:
        x = torch.zeros(1, 32)
        x[0, 0], x[0, 16], x[0, 17] = 1.0, 1e-7, -1e-7
        found = quantise(x)
        assert found.scales.flatten().tolist() == [448, 0]
        assert found.codes()[0, 16:18].tolist() == [0, 8]

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
    def test_what_is_not_finite_makes_every_product_nan(self, value: float) -> None:
        x = torch.ones(16, 32)
        x[3, 4] = value
        for square in (False, True):
            found = quantise(x, square=square)
            assert found.dequantised().isnan().all()
            assert found.packed().shape == (16, 16)

    def test_nothing(self) -> None:
        assert quantise(torch.zeros(0, 32)).shape == (0, 32)

    def test_no_matrix(self) -> None:
        with pytest.raises(ValueError, match="a matrix is quantised, not a tensor of shape"):
            quantise(torch.zeros(16))
        with pytest.raises(ValueError, match="random bits of shape"):
            quantise(torch.zeros(2, 32), bits=torch.zeros(2, 16))


@pytest.fixture(scope="module")
def normal() -> Tensor:
    return torch.randn(4096, 2048, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)


def relative_square(found: Blocks, x: Tensor) -> float:
    wanted = x.float()
    return float((found.dequantised() - wanted).square().mean() / wanted.square().mean())


@pytest.mark.parametrize(
    ("square", "metric", "effective"),
    [(False, None, 3.394), (False, "mse", 3.523), (False, "mae", 3.501), (True, None, 3.166)],
)
def test_effective_bits_of_normal_values(normal: Tensor, square: bool, metric: Metric | None, effective: float) -> None:
    found = -math.log2(relative_square(quantise(normal, square=square, four_over_six=metric), normal)) / 2
    assert found == pytest.approx(effective, abs=0.002)
    assert found > {None: 3.38, "mse": 3.52, "mae": 3.49}[metric] or square


def test_how_often_four_is_chosen(normal: Tensor) -> None:
    for metric, share in (("mse", 0.45), ("mae", 0.34)):
        found = quantise(normal[:1024], four_over_six=metric)
        assert float((found.grid.abs().amax(1) <= 4).float().mean()) == pytest.approx(share, abs=0.01)


def test_stochastic_rounding_is_unbiased_with_room_for_scales_that_were_rounded_down(normal: Tensor) -> None:
    x = normal[:64, :256]
    room = 6 * 16 / 17

    def mean_error(count: int, limit: float, metric: Metric | None = None) -> float:
        total = torch.zeros(x.shape)
        for draw in range(count):
            bits = draws.bits16((64, 256), (1, 2), 0, STEP + draw)
            total += quantise(x, bits=bits, limit=limit, four_over_six=metric).dequantised()
        return float((total / count - x.float()).square().mean() / x.float().square().mean())

    one, many = mean_error(1, room), mean_error(256, room)
    assert one == pytest.approx(2.35e-2, rel=0.04)
    assert many == pytest.approx(one / 256, rel=0.1)
    assert mean_error(256, room, "mse") < 1.2 * mean_error(1, room, "mse") / 256
    assert mean_error(256, 6.0) > 1.5 * one / 256, "without the room the largest values are clipped"
