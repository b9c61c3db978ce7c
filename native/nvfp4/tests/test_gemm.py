"""The block-scaled GEMMs, compiled in `make prove`; the first also in `make compile`, which `.ci/run` does. They are not run. And
the layout of scales that CUTLASS wants, asked on the host."""

from __future__ import annotations

import ctypes
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


def assert_block_scaled(arch: str, products: str) -> None:
    """Nothing but the matrix products meant, operands by the bulk copy engine, no spills."""
    code = disassemble(product(Source(kernel.CUDA / f"gemm_{arch.replace('_', '')[:-1]}.cu"), arch))
    found = re.findall(r"\b\w*OMMA\S*", code)
    assert found
    assert all(re.fullmatch(products, one) for one in found)
    assert "UTMALDG" in code
    assert not re.findall(r"\b(?:STL|LDL)\b", code)


@pytest.mark.prove("nvcc takes a minute and 6 GB")
def test_it_compiles_to_the_data_centres_block_scaled_products() -> None:
    """FP4 with a scale for every 16 values (4X), two multiprocessors on a tile (2CTA)."""
    assert_block_scaled("sm_100a", r"UTCOMMA\.2CTA\.4X")


@pytest.mark.prove("nvcc takes two minutes and 6 GB")
def test_it_compiles_to_the_workstations_block_scaled_products() -> None:
    assert_block_scaled("sm_120a", r"OMMA\.SF\.16864\.F32\.E2M1\.E2M1\.UE4M3\.4X")


def test_cutlass_wants_scales_where_we_put_them(tmp_path: Path) -> None:
    """Its layout compiled for the host: seconds, unlike a product."""
    flags = ["-x", "c++", "-cudart=none", "-cudadevrt=none", "-std=c++17", "-shared", "-Xcompiler", "-fPIC"]
    includes = [f"-I{place}" for place in headers()]
    source = Path(__file__).with_name("layout.cu")
    subprocess.run([compiler()[0], *flags, *includes, str(source), "-o", str(tmp_path / "layout.so")], check=True)
    offset = ctypes.CDLL(str(tmp_path / "layout.so")).scale_offset
    offset.restype = ctypes.c_longlong
    for rows, blocks in ((256, 12), (200, 7), (128, 4)):
        scales = torch.arange(rows * blocks, dtype=torch.int32).view(rows, blocks)
        low, high = (formats.swizzle((scales >> shift & 255).to(torch.uint8)).int() for shift in (0, 8))
        flat = low | high << 8
        places = [[offset(rows, 16 * blocks, row, block) for block in range(blocks)] for row in range(rows)]
        assert torch.equal(flat[torch.tensor(places)], scales)
