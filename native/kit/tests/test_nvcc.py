"""Products through nvcc: what is said where something is missing, the cache, and that the compiler's words are shown."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from surogate_native_kit import Source, cache, nvcc

from surogate_core.errors import PluginError

FAKE = """#!/bin/sh
case "$*" in
*--version*) echo "release 13.0, V13.0.88" ;;
*broken.cu*) echo "broken.cu(1): error: expected a declaration" >&2; exit 1 ;;
*) for last; do :; done; echo "$*" > "$last" ;;
esac
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With a compiler that writes its own command line, and headers that are there."""
    monkeypatch.setenv("SUROGATE_NATIVE_CACHE", str(tmp_path / "cache"))
    compiler = tmp_path / "nvcc"
    compiler.write_text(FAKE)
    compiler.chmod(0o755)
    monkeypatch.setenv("NVCC", str(compiler))
    monkeypatch.setattr(nvcc, "headers", lambda: [tmp_path / "include"])
    for name in ("gemm_sm90.cu", "broken.cu"):
        (tmp_path / name).write_text("// a product\n")
    return tmp_path


def test_a_product_is_built_once_for_its_architecture(place: Path) -> None:
    built = nvcc.product(Source(place / "gemm_sm90.cu"), "sm_90a")
    said = built.read_text()
    for word in ("-arch=sm_90a", "-cubin", "-DNDEBUG", f"-I{place / 'include'}", str(place / "gemm_sm90.cu")):
        assert word in said
    built.write_text("kept")
    assert nvcc.product(Source(place / "gemm_sm90.cu"), "sm_90a").read_text() == "kept"
    (place / "gemm_sm90.cu").write_text("// another\n")
    assert nvcc.product(Source(place / "gemm_sm90.cu"), "sm_90a") != built


def test_what_fails_shows_the_compilers_words_and_leaves_nothing(place: Path) -> None:
    with pytest.raises(PluginError, match=r"broken\.cu does not compile for sm_90a") as caught:
        nvcc.product(Source(place / "broken.cu"), "sm_90a")
    assert "expected a declaration" in caught.value.problems[0].how
    assert list(cache.directory().iterdir()) == []


def test_what_is_missing_is_named(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVCC", "no-such-nvcc")
    with pytest.raises(PluginError, match="there is no nvcc") as caught:
        nvcc.product(Source(place / "gemm_sm90.cu"), "sm_90a")
    assert "nvcc 13.0" in caught.value.problems[0].how


def test_missing_headers_name_their_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(PluginError, match="CUTLASS's headers are not installed") as caught:
        nvcc.headers()
    assert "nvidia-cutlass" in caught.value.problems[0].how


def test_everything_is_every_source_for_every_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvcc, "product", lambda source, arch: source.path)
    monkeypatch.setattr(nvcc, "cubin", lambda source, arch: source.path)
    found = {(name, arch) for name, arch, _ in nvcc.everything()}
    assert {("gemm_e4m3_sm90.cu", "sm_90a"), ("gemm_sm100.cu", "sm_100a"), ("norm.cu", "sm_80")} <= found
    assert len([arch for name, arch in found if name == "quantise.cu"]) == 6
