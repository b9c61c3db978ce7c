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
from surogate_native_kit.compiler import disassemble
from surogate_native_nvfp4 import formats, kernel

NVCC = shutil.which("nvcc")
CUTLASS = importlib.util.find_spec("cutlass_library")
pytestmark = [
    pytest.mark.prove,
    pytest.mark.skipif(not os.environ.get("SUROGATE_PROVE"), reason="SUROGATE_PROVE is not set: nvcc takes minutes and 5 GB"),
    pytest.mark.skipif(NVCC is None or CUTLASS is None, reason="nvcc or the package nvidia-cutlass is not there"),
]


def compile_with_nvcc(source: Path, result: Path, *flags: str) -> None:
    assert NVCC is not None
    assert CUTLASS is not None
    assert CUTLASS.origin is not None
    headers = Path(CUTLASS.origin).parent / "source"
    includes = [f"-I{headers / 'include'}", f"-I{headers / 'tools' / 'util' / 'include'}"]
    command = [NVCC, "-O3", "-DNDEBUG", "-std=c++17", "--expt-relaxed-constexpr", "-arch=sm_100a", *includes, *flags]
    done = subprocess.run([*command, str(source), "-o", str(result)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_it_compiles_to_block_scaled_instructions(tmp_path: Path) -> None:
    compile_with_nvcc(kernel.CUDA / "gemm_sm100.cu", tmp_path / "gemm.cubin", "-cubin")
    code = disassemble(tmp_path / "gemm.cubin")
    assert "UTCOMMA" in code
    assert "STL" not in code


def test_cutlass_wants_scales_where_we_put_them(tmp_path: Path) -> None:
    compile_with_nvcc(Path(__file__).with_name("layout.cu"), tmp_path / "layout.so", "-shared", "-Xcompiler", "-fPIC")
    offset = ctypes.CDLL(str(tmp_path / "layout.so")).scale_offset
    offset.restype = ctypes.c_longlong
    for rows, blocks in ((256, 12), (200, 7), (128, 4)):
        scales = torch.arange(rows * blocks, dtype=torch.int32).view(rows, blocks)
        low, high = (formats.swizzle((scales >> shift & 255).to(torch.uint8)).int() for shift in (0, 8))
        flat = low | high << 8
        places = [[offset(rows, 16 * blocks, row, block) for block in range(blocks)] for row in range(rows)]
        assert torch.equal(flat[torch.tensor(places)], scales)
