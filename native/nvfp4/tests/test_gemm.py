"""The block-scaled GEMMs, compiled: one in every run of the tests, the other in `make prove`, where CUTLASS is also asked for its
layout of scales on the host. They are not run."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
from pathlib import Path

import pytest
import torch
from surogate_native_kit import Source
from surogate_native_kit.compiler import disassemble
from surogate_native_kit.nvcc import compiler, headers, product
from surogate_native_nvfp4 import formats, kernel

pytestmark = pytest.mark.xdist_group("nvcc")  # one compilation at a time: each takes 3 to 6 GB
slow = pytest.mark.skipif(not os.environ.get("SUROGATE_PROVE"), reason="SUROGATE_PROVE is not set: nvcc takes minutes and 6 GB")


def compiled(arch: str) -> str:
    code = disassemble(product(Source(kernel.CUDA / f"gemm_{arch.replace('_', '')[:-1]}.cu"), arch))
    assert not re.findall(r"\b(?:STL|LDL)\b", code)
    return code


def test_it_compiles_to_the_data_centres_block_scaled_products() -> None:
    """FP4 with a scale for every 16 values (4X), two multiprocessors on a tile (2CTA), operands by the bulk copy engine."""
    code = compiled("sm_100a")
    found = re.findall(r"UTCOMMA\S*", code)
    assert found
    assert all(one.startswith("UTCOMMA.2CTA.4X") for one in found)
    assert "UTMALDG" in code


@pytest.mark.prove
@slow
def test_it_compiles_to_the_workstations_block_scaled_products() -> None:
    code = compiled("sm_120a")
    found = re.findall(r"OMMA\S*", code)
    assert found
    assert all(one.endswith("F32.E2M1.E2M1.UE4M3.4X") for one in found)
    assert "UTMALDG" in code


@pytest.mark.prove
@slow
def test_cutlass_wants_scales_where_we_put_them(tmp_path: Path) -> None:
    flags = ["-std=c++17", "--expt-relaxed-constexpr", "-arch=sm_100a", "-shared", "-Xcompiler", "-fPIC"]
    without = ["-cudart=none", "-cudadevrt=none"]  # nothing of it runs on a device
    includes = [f"-I{place}" for place in headers()]
    source = Path(__file__).with_name("layout.cu")
    subprocess.run([compiler()[0], *flags, *without, *includes, str(source), "-o", str(tmp_path / "layout.so")], check=True)
    offset = ctypes.CDLL(str(tmp_path / "layout.so")).scale_offset
    offset.restype = ctypes.c_longlong
    for rows, blocks in ((256, 12), (200, 7), (128, 4)):
        scales = torch.arange(rows * blocks, dtype=torch.int32).view(rows, blocks)
        low, high = (formats.swizzle((scales >> shift & 255).to(torch.uint8)).int() for shift in (0, 8))
        flat = low | high << 8
        places = [[offset(rows, 16 * blocks, row, block) for block in range(blocks)] for row in range(rows)]
        assert torch.equal(flat[torch.tensor(places)], scales)
