"""The block-scaled GEMM: compiled where there are CUTLASS headers and nvcc, its scale layout asked on the host. It is not run."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from surogate_native_kit import Source
from surogate_native_kit.compiler import disassemble
from surogate_native_kit.nvcc import headers, product
from surogate_native_nvfp4 import formats, kernel

NVCC = shutil.which("nvcc")
CUTLASS = importlib.util.find_spec("cutlass_library")
pytestmark = [
    pytest.mark.prove,
    pytest.mark.skipif(not os.environ.get("SUROGATE_PROVE"), reason="SUROGATE_PROVE is not set: nvcc takes minutes and 5 GB"),
    pytest.mark.skipif(NVCC is None or CUTLASS is None, reason="nvcc or the package nvidia-cutlass is not there"),
]


def test_it_compiles_to_block_scaled_instructions() -> None:
    code = disassemble(product(Source(kernel.CUDA / "gemm_sm100.cu"), "sm_100a"))
    assert "UTCOMMA" in code
    assert "STL" not in code


def test_cutlass_wants_scales_where_we_put_them(tmp_path: Path) -> None:
    assert NVCC is not None
    flags = ["-std=c++17", "--expt-relaxed-constexpr", "-arch=sm_100a", "-shared", "-Xcompiler", "-fPIC"]
    includes = [f"-I{place}" for place in headers()]
    source = Path(__file__).with_name("layout.cu")
    subprocess.run([NVCC, *flags, *includes, str(source), "-o", str(tmp_path / "layout.so")], check=True)
    offset = ctypes.CDLL(str(tmp_path / "layout.so")).scale_offset
    offset.restype = ctypes.c_longlong
    for rows, blocks in ((256, 12), (200, 7), (128, 4)):
        scales = torch.arange(rows * blocks, dtype=torch.int32).view(rows, blocks)
        low, high = (formats.swizzle((scales >> shift & 255).to(torch.uint8)).int() for shift in (0, 8))
        flat = low | high << 8
        places = [[offset(rows, 16 * blocks, row, block) for block in range(blocks)] for row in range(rows)]
        assert torch.equal(flat[torch.tensor(places)], scales)
