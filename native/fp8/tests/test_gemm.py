"""The FP8 products of CUTLASS for Hopper: compiled where there are its headers and nvcc. They are not run."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil

import pytest
from surogate_native_fp8 import ops
from surogate_native_kit import Source
from surogate_native_kit.compiler import disassemble
from surogate_native_kit.nvcc import product

pytestmark = [
    pytest.mark.prove,
    pytest.mark.skipif(not os.environ.get("SUROGATE_PROVE"), reason="SUROGATE_PROVE is not set: nvcc takes a minute and 3 GB"),
    pytest.mark.skipif(
        shutil.which("nvcc") is None or importlib.util.find_spec("cutlass_library") is None,
        reason="nvcc or the package nvidia-cutlass is not there",
    ),
]


@pytest.mark.parametrize(("name", "pair"), [("gemm_e4m3_sm90", "E4M3.E4M3"), ("gemm_e5m2_sm90", "E5M2.E4M3")])
def test_it_compiles_to_hoppers_products(name: str, pair: str) -> None:
    """FP8 products of warp groups, operands by the bulk copy engine, no spills."""
    code = disassemble(product(Source(ops.CUDA / f"{name}.cu"), "sm_90a"))
    found = re.findall(r"QGMMA\S*", code)
    assert found
    assert all(pair in one for one in found)
    assert "UTMALDG" in code
    assert not re.findall(r"\b(?:STL|LDL)\b", code)
