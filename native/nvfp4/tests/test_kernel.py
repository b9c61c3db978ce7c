"""The quantising kernel: its number formats for every bfloat16, its body on the host against the definition, its machine code."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from surogate_native_kit import ARCHITECTURES, HostProgram, cubin
from surogate_native_kit.compiler import disassemble
from surogate_native_nvfp4 import draws, formats, kernel, quantise
from torch import Tensor

SHAPES = [(1, 1), (5, 3), (16, 16), (17, 33), (130, 80), (200, 16), (40, 130)]
KEY = (0x12345678, 0xFEDCBA98)


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
    convert = program.function("host_e4m3", ctypes.c_uint8, ctypes.c_float)
    back = program.function("host_e4m3_value", ctypes.c_float, ctypes.c_uint8)
    positive = ALL_BF16[: 0x7F80 + 1]
    found = np.array([convert(value) for value in positive.tolist()], dtype=np.uint8)
    wanted = formats.e4m3(positive)
    np.testing.assert_array_equal(found, wanted.to(torch.float8_e4m3fn).view(torch.uint8).numpy())
    assert [back(int(code)) for code in found] == wanted.tolist()
    assert convert(float("nan")) == 0x7F
    assert np.isnan(back(0x7F))


def on_host(
    program: HostProgram, x: Tensor, square: bool, four: bool, step: Tensor | None = None, base: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Poisoned outputs, so that what is not written shows."""
    codes, scales, fake = kernel.empty(x, True)
    assert fake is not None
    codes.fill_(0xA5)
    fake.fill_(float("nan"))
    amax = x.float().abs().max().reshape(1)
    name = kernel.name_of(x.dtype, square=square, four_over_six=four, drawn=step is not None)
    packed = KEY[0] | KEY[1] << 32
    key = packed - (1 << 64) if packed >= 1 << 63 else packed
    grid = (kernel.grid_of(*x.shape, square), 1)
    program.run(name, grid, kernel.THREADS, x, amax, codes, scales, fake, *x.shape, key, 0 if step is None else step, base)
    return codes, scales, fake


def values(shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(shape[1])
    x = torch.randn(shape, generator=generator) * torch.exp2(torch.randint(-12, 8, (shape[0], 1), generator=generator).float())
    x[torch.rand(shape, generator=generator) < 0.1] = -0.0
    return x.to(dtype)


def compare(found: tuple[Tensor, Tensor, Tensor], wanted: object) -> None:
    codes, scales, fake = found
    assert torch.equal(codes, wanted.packed())  # type: ignore[attr-defined]
    assert torch.equal(scales, formats.swizzle(wanted.scale_bytes()).view(torch.uint8))  # type: ignore[attr-defined]
    assert torch.equal(fake.view(torch.int16), wanted.scaled().to(torch.bfloat16).contiguous().view(torch.int16))  # type: ignore[attr-defined]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("square", [False, True])
@pytest.mark.parametrize("four", [False, True])
def test_the_kernel_writes_the_bytes_of_the_definition(
    program: HostProgram, shape: tuple[int, int], dtype: torch.dtype, square: bool, four: bool
) -> None:
    x = values(shape, dtype)
    compare(on_host(program, x, square, four), quantise(x, square=square, four_over_six="mse" if four else None))


@pytest.mark.parametrize("four", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_kernel_draws_what_the_definition_draws(program: HostProgram, dtype: torch.dtype, four: bool) -> None:
    for shape, step, base in (((17, 33), 3, 0), ((40, 64), (5 << 32) + 1, 64)):
        x, now = values(shape, dtype), torch.tensor([step])
        width = -(-shape[1] // 16) * 16
        words = draws.words(base + shape[0] * width // 2, KEY, now[0])[base:]
        wanted = quantise(x, four_over_six="mse" if four else None, bits=draws.bits16(words, shape[0], width))
        compare(on_host(program, x, False, four, now, base), wanted)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("four", [False, True])
def test_what_is_not_finite(program: HostProgram, bad: float, four: bool) -> None:
    x = values((16, 32), torch.float32)
    x[3, 20] = bad
    codes, scales, _ = on_host(program, x, False, four)
    wanted = quantise(x, four_over_six="mse" if four else None)
    assert torch.equal(codes, wanted.packed())
    assert torch.equal(scales, formats.swizzle(wanted.scale_bytes()).view(torch.uint8))


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_it_compiles(arch: str) -> None:
    """With 16-byte loads and without spills; Blackwell's conversion where there is one."""
    code = disassemble(cubin(kernel.QUANTISE, arch))
    assert "LDG.E.128" in code
    assert "STL" not in code
    assert "LDL" not in code
    assert ("E2M1" in code) is (arch in ("sm_100a", "sm_120a"))


def test_names_and_grids() -> None:
    assert kernel.name_of(torch.bfloat16, square=True, four_over_six=True) == "quantise_bf16_square_four"
    assert kernel.name_of(torch.float32, drawn=True) == "quantise_fp32_drawn"
    assert kernel.grid_of(17, 33, True) == 1
    assert kernel.grid_of(4096, 2048, False) == 4096 * 128 // 256
