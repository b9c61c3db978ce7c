from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from surogate_native_nvfp4 import formats

ALL_BF16 = torch.arange(65536, dtype=torch.int32).to(torch.uint16).view(torch.bfloat16).float()


def test_e2m1_ties_and_saturation() -> None:
    given = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 5.01, 7.0, 0.2500001, float("inf")])
    wanted = [0.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0, 6.0, 6.0, 0.5, 6.0]
    assert formats.e2m1(given).tolist() == wanted
    assert formats.e2m1(-given).tolist() == [-value for value in wanted]
    assert formats.e2m1_codes(formats.e2m1(torch.tensor([-0.0, -0.25, 0.0, -6.0, float("nan")]))).tolist() == [8, 8, 0, 15, 7]


def test_e2m1_of_all_bfloat16_values(second: SimpleNamespace) -> None:
    finite = ALL_BF16[~ALL_BF16.isnan()]
    codes = formats.e2m1_codes(formats.e2m1(finite)).numpy()
    np.testing.assert_array_equal(codes, second.e2m1_codes(finite.numpy()))
    inside = finite[finite.abs() <= 6]  # where ml_dtypes saturates it is not the hardware's rule that it follows
    theirs = inside.numpy().astype(ml_dtypes.float4_e2m1fn).view(np.uint8) & 15
    np.testing.assert_array_equal(formats.e2m1_codes(formats.e2m1(inside)).numpy(), theirs)
    assert ALL_BF16.isnan().sum() == 254
    assert formats.e2m1(ALL_BF16[ALL_BF16.isnan()]).isnan().all()


def test_e2m1_between_bfloat16_values(second: SimpleNamespace) -> None:
    """float32 on both sides of every tie."""
    ties = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])
    near = torch.cat([ties, torch.nextafter(ties, ties + 1), torch.nextafter(ties, ties - 1)])
    np.testing.assert_array_equal(formats.e2m1_codes(formats.e2m1(near)).numpy(), second.e2m1_codes(near.numpy()))


def test_e4m3_of_all_bfloat16_values() -> None:
    finite = ALL_BF16[~ALL_BF16.isnan()]
    theirs = np.clip(finite.numpy(), -448, 448).astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
    np.testing.assert_array_equal(formats.e4m3(finite).numpy(), theirs)


def test_codes_pack_with_the_even_column_low() -> None:
    codes = torch.arange(16, dtype=torch.uint8).repeat(3, 1)
    packed = formats.pack(codes)
    assert packed[0].tolist() == [0x10, 0x32, 0x54, 0x76, 0x98, 0xBA, 0xDC, 0xFE]
    assert torch.equal(formats.unpack(packed), codes)
    assert formats.e2m1_values(codes[0]).tolist() == [0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6]
    assert torch.equal(formats.e2m1_codes(formats.e2m1_values(codes)), codes)


@pytest.mark.parametrize(("low", "high"), [(0.0, 0.5), (0.5, 1.0), (1.5, 2.0), (2.0, 3.0), (3.0, 4.0), (4.0, 6.0)])
def test_stochastic_e2m1_takes_the_neighbours_in_proportion(low: float, high: float) -> None:
    bits = torch.arange(65536)
    for share in (0.1, 0.5, 0.77):
        x = torch.full((65536,), low + share * (high - low))
        drawn = formats.e2m1_stochastic(-x, bits)
        assert set(drawn.abs().tolist()) == {low, high}
        assert float((drawn.abs() == high).double().mean()) == pytest.approx(share, abs=2**-15)
    for exact in (low, high):
        assert set(formats.e2m1_stochastic(torch.full((65536,), exact), bits).tolist()) == {exact}


def test_stochastic_e2m1_saturates() -> None:
    assert set(formats.e2m1_stochastic(torch.tensor([6.1, 100.0, -7.0]), torch.tensor([65535] * 3)).tolist()) == {6.0, -6.0}


def test_stochastic_e4m3_takes_the_neighbours_in_proportion(second: SimpleNamespace) -> None:
    bits = torch.arange(65536)
    for code in (0, 1, 5, 7, 8, 40, 77, 103, 125):
        low, high = second.E4M3[code], second.E4M3[code + 1]
        drawn = formats.e4m3_stochastic(torch.full((65536,), low + 0.3 * (high - low)), bits)
        assert set(drawn.tolist()) == {low, high}
        assert float((drawn == high).double().mean()) == pytest.approx(0.3, abs=2**-15)
        assert set(formats.e4m3_stochastic(torch.full((65536,), low), bits).tolist()) == {low}
    assert formats.e4m3_stochastic(torch.tensor([500.0]), torch.tensor([65535])).tolist() == [448.0]


@pytest.mark.parametrize(("rows", "blocks"), [(128, 4), (256, 12), (200, 7), (1, 1), (129, 5)])
def test_swizzled_scales_are_where_the_layout_says(rows: int, blocks: int) -> None:
    scales = torch.randint(1, 127, (rows, blocks), dtype=torch.uint8)
    flat = formats.swizzle(scales)
    across = -(-blocks // 4)
    assert flat.numel() == -(-rows // 128) * across * 512
    wanted = np.zeros(flat.numel(), dtype=np.uint8)
    for r in range(rows):
        for c in range(blocks):
            wanted[((r // 128) * across + c // 4) * 512 + (r % 32) * 16 + ((r % 128) // 32) * 4 + c % 4] = scales[r, c]
    np.testing.assert_array_equal(flat.numpy(), wanted)
    assert torch.equal(formats.unswizzle(flat, rows, blocks), scales)
    as_scales = scales.view(torch.float8_e4m3fn)
    assert torch.equal(formats.unswizzle(formats.swizzle(as_scales), rows, blocks).view(torch.uint8), scales)


def test_swizzle_at_the_published_places() -> None:
    scales = torch.zeros(256, 12, dtype=torch.uint8)
    for number, place in enumerate([(0, 0), (1, 0), (32, 0), (0, 1), (0, 4), (128, 0)], start=1):
        scales[place] = number
    flat = formats.swizzle(scales)
    assert [int(flat[at]) for at in (0, 16, 4, 1, 512, 512 * 3)] == [1, 2, 3, 4, 5, 6]


def of_torch() -> Callable[[torch.Tensor], torch.Tensor]:
    """torch's own statement of the order that cuBLASLt documents for scales of blocks of 16 ("128 x 4 tiles"), which it tests
    ``_scaled_mm`` with. Its module wants a package for tests that is not needed for this."""
    source = Path(torch.__file__).with_name("testing") / "_internal" / "common_quantized.py"
    wanted = [node for node in ast.parse(source.read_text()).body if getattr(node, "name", "") in ("ceil_div", "to_blocked")]
    known: dict[str, Any] = {"torch": torch}
    exec(compile(ast.Module(wanted, []), str(source), "exec"), known)
    return known["to_blocked"]


@pytest.mark.parametrize(("rows", "blocks"), [(128, 4), (256, 12), (200, 7), (1, 1), (129, 5), (384, 6)])
def test_the_order_of_scales_is_torchs_for_cublaslt_and_that_of_cutlass_atom(rows: int, blocks: int) -> None:
    """cuDNN calls it F8_128x4. CUTLASS states it as a CuTe layout of one atom, ((32, 4), (16, 4)) : ((16, 4), (0, 1)) for (row,
    column of values), atoms one after another along columns first: each coordinate is split and meets its strides."""
    scales = torch.randint(1, 127, (rows, blocks), dtype=torch.uint8, generator=torch.Generator().manual_seed(rows))
    flat = formats.swizzle(scales)
    assert torch.equal(flat, of_torch()(scales))
    sizes, strides, atom = (32, 4, 16, 4), (16, 4, 0, 1), 512
    across = -(-blocks // 4)
    row, column = np.meshgrid(np.arange(rows), 16 * np.arange(blocks) + 9, indexing="ij")  # any value of a block
    inside = (row % 32, row // 32 % sizes[1], column % sizes[2], column // 16 % sizes[3])
    places = sum(part * stride for part, stride in zip(inside, strides, strict=True)) + atom * (row // 128 * across + column // 64)
    np.testing.assert_array_equal(flat.numpy()[places], scales.numpy())
    assert int((flat != 0).sum()) == rows * blocks
