"""The kernels: their number formats for every bfloat16, their bodies on the host against the definitions, their machine code."""

from __future__ import annotations

import ctypes
import itertools
import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from surogate_native_kit import ARCHITECTURES, HostProgram, Source, cubin
from surogate_native_kit.checks import poisoned
from surogate_native_kit.compiler import disassemble
from surogate_native_nvfp4 import draws, formats, kernel, quantise, quantise_eden, rotate
from surogate_native_nvfp4.blocks import Blocks
from surogate_native_nvfp4.rotation import signs_of
from torch import Tensor

SHAPES = [(1, 1), (5, 3), (16, 16), (17, 33), (130, 80), (40, 130)]
KEY = (0x12345678, 0xFEDCBA98)
STEP = torch.tensor([(5 << 32) + 1])
SIGNS = {16: signs_of(torch.device("cpu")), 128: draws.signs(draws.words(4, (3, 4), STEP[0]))}
FACTOR = torch.tensor([0.37])
dtypes = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])


@pytest.fixture(scope="module")
def program() -> HostProgram:
    return HostProgram(kernel.QUANTISE)


ALL_BF16 = torch.arange(65536, dtype=torch.int32).to(torch.uint16).view(torch.bfloat16).float()


def test_every_bfloat16_to_e2m1(program: HostProgram, second: SimpleNamespace) -> None:
    convert = program.function("host_e2m1", ctypes.c_uint8, ctypes.c_float, ctypes.c_float)
    found = np.array([convert(value, 1.5) for value in ALL_BF16.tolist()], dtype=np.uint8)
    assert (found >> 4 == 3).all()
    nan = ALL_BF16.isnan().numpy()
    np.testing.assert_array_equal(found[~nan] & 15, second.e2m1_codes(ALL_BF16.numpy()[~nan]))
    assert set((found[nan] & 15).tolist()) == {7}
    assert convert(0.25, -0.0) == 0x80


def test_every_bfloat16_to_e4m3(program: HostProgram) -> None:
    """By the integer form, and by the float32 arithmetic that scales are rounded with."""
    convert = program.function("host_e4m3", ctypes.c_uint8, ctypes.c_float)
    back = program.function("host_e4m3_value", ctypes.c_float, ctypes.c_uint8)
    near = program.function("host_e4m3_near", ctypes.c_float, ctypes.c_float)
    positive = ALL_BF16[: 0x7F80 + 1]
    found = np.array([convert(value) for value in positive.tolist()], dtype=np.uint8)
    wanted = formats.e4m3(positive)
    np.testing.assert_array_equal(found, wanted.to(torch.float8_e4m3fn).view(torch.uint8).numpy())
    assert [back(int(code)) for code in found] == wanted.tolist()
    assert [near(value) for value in positive.tolist()] == wanted.tolist()
    assert convert(float("nan")) == 0x7F
    assert np.isnan(back(0x7F))
    assert np.isnan(near(float("nan")))


def values(shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(shape[1])
    x = torch.randn(shape, generator=generator) * torch.exp2(torch.randint(-12, 8, (shape[0], 1), generator=generator).float())
    x[torch.rand(shape, generator=generator) < 0.1] = -0.0
    return x.to(dtype)


def on_host(x: Tensor, amax: Tensor, group: int = 0, factor: Tensor | None = None, **given: Any) -> kernel.Results:
    """Of poisoned memory, so that what is not written shows."""
    whole = {"turned": False, "key": KEY, "step": None, "base": 0, "fake": True, **given}
    with poisoned():
        if whole.pop("eden", False):
            return kernel.quantise_eden(x, amax, SIGNS.get(group), factor, **whole)
        whole = {"square": False, "four_over_six": False, **whole}
        return kernel.quantise(x, amax, SIGNS.get(group), factor, **whole)


def compare(found: kernel.Results, wanted: Blocks) -> None:
    codes, scales, fake = found
    assert torch.equal(codes, wanted.packed())
    assert torch.equal(scales, formats.swizzle(wanted.scale_bytes()).view(torch.uint8))
    assert torch.equal(fake.view(torch.int16), wanted.scaled().to(torch.bfloat16).contiguous().view(torch.int16))


def largest(x: Tensor) -> Tensor:
    return x.float().abs().max().reshape(1)


def bits(rows: int, columns: int, base: int) -> Tensor:
    return draws.bits16(draws.words(base + -(-rows * columns // 2), KEY, STEP[0])[base:], rows, columns)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@dtypes
@pytest.mark.parametrize("square", [False, True])
@pytest.mark.parametrize("four", [False, True])
def test_quantising_writes_the_bytes_of_the_definition(
    shape: tuple[int, int], dtype: torch.dtype, square: bool, four: bool
) -> None:
    x = values(shape, dtype)
    for turned in (False, True):
        found = on_host(x, largest(x), square=square, four_over_six=four, turned=turned)
        compare(found, quantise(x.t() if turned else x, square=square, four_over_six="mse" if four else None))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@dtypes
@pytest.mark.parametrize("group", [0, 16])
def test_an_operand_is_turned_multiplied_rotated_and_drawn_in_one_pass(
    shape: tuple[int, int], dtype: torch.dtype, group: int
) -> None:
    """As the operands of a weight gradient are: the same as one step of the definition after the other."""
    x = values(shape, dtype)
    for turned, four, base in ((True, True, 64), (True, False, None), (False, True, None), (False, False, 0)):
        matrix = x.float() * FACTOR
        matrix = matrix.t() if turned else matrix
        matrix = rotate(matrix, SIGNS[16]) if group else matrix
        drawn = None if base is None else bits(len(matrix), kernel.whole(matrix.shape[1], 16), base)
        found = on_host(
            *(x, largest(matrix), group, FACTOR),
            turned=turned,
            four_over_six=four,
            step=None if base is None else STEP,
            base=base or 0,
        )
        compare(found, quantise(matrix, four_over_six="mse" if four else None, bits=drawn))


@pytest.mark.parametrize("shape", [*SHAPES, (20, 257)], ids=str)
@pytest.mark.parametrize("group", [0, 128])
@pytest.mark.parametrize("turned", [False, True])
def test_ms_eden_writes_the_bytes_of_the_definition(shape: tuple[int, int], group: int, turned: bool) -> None:
    for dtype, base in ((torch.bfloat16, 64), (torch.float32, None)):
        x = values(shape, dtype)
        matrix = x.t().float() * FACTOR if turned else x.float() * FACTOR
        matrix = rotate(matrix, SIGNS[128]) if group else matrix
        drawn = None if base is None else bits(len(matrix), kernel.whole(matrix.shape[1], 128) // 16, base)
        step = None if base is None else STEP
        found = on_host(x, largest(matrix), group, FACTOR, turned=turned, eden=True, step=step, base=base or 0)
        compare(found, quantise_eden(matrix, drawn))


@pytest.mark.parametrize("shape", [*SHAPES, (20, 257)], ids=str)
@pytest.mark.parametrize("group", [16, 128])
def test_rotations_have_the_bits_of_the_definition_and_its_largest_magnitude(shape: tuple[int, int], group: int) -> None:
    for dtype, turned in itertools.product((torch.bfloat16, torch.float32), (False, True)):
        x = values(shape, dtype)
        wanted = rotate((x.float() * FACTOR).t() if turned else x.float() * FACTOR, SIGNS[group])
        with poisoned():
            found, amax = kernel.rotate(x, SIGNS[group], FACTOR, turned, True)
            nothing, alone = kernel.rotate(x, SIGNS[group], FACTOR, turned, False)
        assert torch.equal(found.view(torch.int32), wanted.contiguous().view(torch.int32))
        assert amax.item() == alone.item() == wanted.abs().max()
        assert nothing.shape == (0, wanted.shape[1])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("four", [False, True])
def test_what_is_not_finite(bad: float, four: bool) -> None:
    x = values((16, 32), torch.float32)
    x[3, 20] = bad
    codes, scales, _ = on_host(x, largest(x), four_over_six=four)
    wanted = quantise(x, four_over_six="mse" if four else None)
    assert torch.equal(codes, wanted.packed())
    assert torch.equal(scales, formats.swizzle(wanted.scale_bytes()).view(torch.uint8))
    _, amax = kernel.rotate(x, SIGNS[16], None, True, False)
    assert not amax.isfinite()
    _, scales, fake = on_host(x, amax, 128, eden=True, step=STEP)
    assert fake.isnan().all()
    assert set(formats.unswizzle(scales, 16, 8).flatten().tolist()) == {0x7F}


def test_addresses_that_are_no_multiples_of_16_and_nothing() -> None:
    x = values((33, 64), torch.bfloat16)
    off = torch.empty(33 * 64 + 1, dtype=torch.bfloat16)[1:].view(33, 64).copy_(x)
    for turned in (False, True):
        found = (on_host(one, largest(x), 128, eden=True, turned=turned) for one in (x, off))
        assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    assert [tensor.numel() for tensor in on_host(x[:0], largest(x))] == [0, 0, 0]


def test_what_the_kernels_do_not_combine() -> None:
    x = values((16, 32), torch.float32)
    with pytest.raises(ValueError, match="16 x 16 are not rotated, and rounded to nearest"):
        on_host(x, largest(x), square=True, step=STEP)
    with pytest.raises(ValueError, match="a rotation of 128 columns: the quantising kernel takes 16"):
        on_host(x, largest(x), 128)
    with pytest.raises(ValueError, match="a rotation of 16 columns: MS-EDEN's kernel takes 128"):
        on_host(x, largest(x), 16, eden=True)
    with pytest.raises(ValueError, match="a rotation of 32 columns: the kernel takes 16 and 128"):
        kernel.rotate(x, torch.ones(32), None, False, True)


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("source", [kernel.QUANTISE, kernel.ROTATE, kernel.EDEN], ids=lambda source: source.path.stem)
def test_it_compiles(source: Source, arch: str) -> None:
    """Each kernel loads its values and stores what is 16 bytes a thread (q * s, what is rotated; codes are 8, a scale one) 16 bytes
    at a time, without spills; Blackwell's conversion where there is one."""
    text = disassemble(cubin(source, arch))
    kernels = {part.split(",")[0]: part for part in re.split(r"\.section\s+\.text\.", text)[1:]}
    assert len(kernels) == {"quantise": 16, "rotate": 8, "eden": 4}[source.path.stem]
    for name, body in kernels.items():
        loads = len(re.findall(r"\bLDG\.E\.128", body)) - 4  # less the signs of the rotation
        assert loads >= 1 if "turned" in name else loads == (2 if "bf16" in name else 4), name
        assert len(re.findall(r"\bSTG\.E\.128", body)) == (4 if source == kernel.ROTATE else 2), name
        assert not re.findall(r"\b(?:STL|LDL)\b", body), name
        assert ("E2M1" in body) is (arch in ("sm_100a", "sm_120a") and source != kernel.ROTATE), name


def test_names_and_grids() -> None:
    assert kernel.name_of("quantise", torch.bfloat16, square=True, four=True) == "quantise_bf16_square_four"
    assert kernel.name_of("eden", torch.float32, turned=True) == "eden_fp32_turned"
    assert kernel.grid_of(17, 48, square=True) == (1,)
    assert kernel.grid_of(4096, 2048) == (4096 * 128 // 256,)
    assert kernel.grid_of(33, 144, turned=True) == (4,)
