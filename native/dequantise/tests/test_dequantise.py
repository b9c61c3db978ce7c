"""Definitions and kernel bodies against bitsandbytes, ml_dtypes and the quantisers' own storages; machine code."""

from __future__ import annotations

import re
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from surogate_native_dequantise import nf4, ops, reference, tiles
from surogate_native_kit import ARCHITECTURES, cubin
from surogate_native_kit.compiler import disassemble

SIDES = {"definition": (reference.nf4, reference.tiles), "kernel": (ops.nf4_kernel, ops.tiles_kernel), "op": (nf4, tiles)}
DTYPES = [torch.bfloat16, torch.float32]


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("block", [64, 256])
def test_nf4_is_bitsandbytes(side: str, dtype: torch.dtype, block: int) -> None:
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    weight = torch.randn(40, 256, generator=torch.Generator().manual_seed(block))
    codes, state = quantize_4bit(weight, blocksize=block, quant_type="nf4")
    wanted = dequantize_4bit(codes, state)
    found = SIDES[side][0](codes.flatten(), state.absmax, weight.numel(), block, dtype).view(weight.shape)
    assert torch.equal(found, wanted.to(dtype))


@pytest.mark.parametrize("side", SIDES)
def test_every_code_of_nf4_in_both_halves_of_a_byte(side: str) -> None:
    codes = torch.arange(256, dtype=torch.int32).to(torch.uint8)
    found = SIDES[side][0](codes, torch.full((8,), 2.0), 512, 64, torch.float32).view(256, 2)
    levels = np.array(reference.LEVELS, dtype=np.float32) * 2
    np.testing.assert_array_equal(found.numpy(), np.stack([np.repeat(levels, 16), np.tile(levels, 16)], 1))


@pytest.mark.parametrize("side", SIDES)
def test_every_code_of_e4m3(side: str) -> None:
    codes = torch.arange(256, dtype=torch.int32).to(torch.uint8)
    found = SIDES[side][1](codes.view(torch.float8_e4m3fn).view(16, 16), torch.tensor([[0.75]]), 16, torch.float32)
    wanted = codes.numpy().view(ml_dtypes.float8_e4m3fn).astype(np.float32) * np.float32(0.75)
    np.testing.assert_array_equal(found.flatten().numpy(), wanted)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(130, 272), (40, 70)])
def test_tiles_are_those_of_the_quantiser(side: str, dtype: torch.dtype, shape: tuple[int, int]) -> None:
    from surogate_quantizer_fp8_block.tiles import Tiles

    storage = Tiles(shape, 64)
    storage.pack(torch.randn(shape, generator=torch.Generator().manual_seed(1)))
    assert torch.equal(SIDES[side][1](storage.weight, storage.weight_scale_inv, 64, dtype), storage.unpack(dtype))


def test_sizes_that_the_kernels_do_not_take() -> None:
    with pytest.raises(ValueError, match="blocks of 48 values: the kernel takes multiples of 32"):
        ops.nf4_kernel(torch.zeros(1, dtype=torch.uint8), torch.ones(1), 2, 48, torch.float32)
    with pytest.raises(ValueError, match="tiles of 24 values: the kernel takes multiples of 16"):
        ops.tiles_kernel(torch.zeros(1, 1).to(torch.float8_e4m3fn), torch.ones(1, 1), 24, torch.float32)


def test_shapes_for_meta_tensors() -> None:
    codes, scales = torch.zeros(8, 16).to(torch.float8_e4m3fn), torch.ones(1, 1)
    checks: Any = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.surogate_dequantise.tiles.default, (codes, scales, 16, torch.bfloat16), test_utils=checks[1:])
    packed = torch.zeros(5, dtype=torch.uint8)
    torch.library.opcheck(
        torch.ops.surogate_dequantise.nf4.default, (packed, torch.ones(1), 9, 64, torch.bfloat16), test_utils=checks
    )


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_what_the_kernels_compile_to(arch: str) -> None:
    """16-byte loads and stores, no spills."""
    text = disassemble(cubin(ops.DEQUANTISE, arch))
    kernels = {part.split(",")[0]: part for part in re.split(r"\.section\s+\.text\.", text)[1:]}
    assert len(kernels) == 4
    for name, body in kernels.items():
        assert not re.findall(r"\b(?:STL|LDL)\b", body), name
        assert len(re.findall(r"\bLDG\.E\.128", body)) == 1, name
        stores = len(re.findall(r"\bSTG\.E\.128", body))
        assert stores == {"nf4_bf16": 4, "nf4_fp32": 8, "tiles_bf16": 2, "tiles_fp32": 4}[name.split(".")[0].strip()], name
