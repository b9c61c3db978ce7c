"""The FP8 products of CUTLASS for Hopper, compiled in `make prove`; the first also in `make compile`, which
`.ci/run` does. They are not run."""

from __future__ import annotations

import re

import pytest
from surogate_native_fp8 import ops
from surogate_native_kit import Source
from surogate_native_kit.compiler import disassemble
from surogate_native_kit.nvcc import product

pytestmark = pytest.mark.xdist_group("nvcc")  # one compilation at a time: each takes 3 to 6 GB


def assert_hoppers_product(name: str, pair: str) -> None:
    """FP8 products of warp groups, operands by the bulk copy engine, no spills."""
    code = disassemble(product(Source(ops.CUDA / f"{name}.cu"), "sm_90a"))
    found = re.findall(r"QGMMA\S*", code)
    assert found
    assert all(pair in one for one in found)
    assert "UTMALDG" in code
    assert not re.findall(r"\b(?:STL|LDL)\b", code)


@pytest.mark.prove("nvcc takes half a minute and 3 GB")
def test_forward_compiles_to_hoppers_products() -> None:
    assert_hoppers_product("gemm_e4m3_sm90", "E4M3.E4M3")


@pytest.mark.prove("nvcc takes half a minute and 3 GB")
def test_backward_compiles_to_hoppers_products() -> None:
    assert_hoppers_product("gemm_e5m2_sm90", "E5M2.E4M3")
