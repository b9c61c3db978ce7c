"""Products through nvcc: which one is taken, what is said where something is missing, the cache and its races."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
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


@pytest.mark.parametrize("changed", ["nvcc", "nvidia-cutlass"])
def test_another_compiler_or_other_headers_build_anew(place: Path, monkeypatch: pytest.MonkeyPatch, changed: str) -> None:
    before = nvcc.product(Source(place / "gemm_sm90.cu"), "sm_90a")
    if changed == "nvcc":
        (place / "nvcc").write_text(FAKE.replace("V13.0.88", "V13.0.89"))
    else:
        monkeypatch.setattr(importlib.metadata, "version", lambda name: f"{name} of another day")
    assert nvcc.product(Source(place / "gemm_sm90.cu"), "sm_90a") != before


def test_two_processes_that_race_for_a_product_both_win(place: Path) -> None:
    """Both compile: the compiler of each ends when both have written."""
    wait = f"touch {place}/at.$$; while [ $(ls {place}/at.* | wc -l) -lt 2 ]; do sleep 0.01; done"
    (place / "nvcc").write_text(FAKE.replace('> "$last" ;;', f'> "$last"; {wait} ;;'))
    code = f"""
from pathlib import Path; from surogate_native_kit import Source, nvcc
nvcc.headers = list
print(nvcc.product(Source(Path({str(place / "gemm_sm90.cu")!r})), "sm_90a"))"""
    both = [subprocess.Popen([sys.executable, "-c", code], stdout=-1, text=True) for _ in range(2)]
    said = [process.communicate(timeout=120)[0].strip() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert said[0] == said[1]
    assert [path.name for path in cache.directory().iterdir()] == [Path(said[0]).name]


def test_what_fails_shows_the_compilers_words_and_leaves_nothing(place: Path) -> None:
    with pytest.raises(PluginError, match=r"broken\.cu does not compile for sm_90a") as caught:
        nvcc.product(Source(place / "broken.cu"), "sm_90a")
    assert "expected a declaration" in caught.value.problems[0].how
    assert list(cache.directory().iterdir()) == []


def test_the_installed_packages_compile_unless_nvcc_is_named(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiler that this project's requirements install, before that of a toolkit on the PATH."""
    assert nvcc.compiler() == (str(place / "nvcc"), "release 13.0, V13.0.88\n")
    monkeypatch.setenv("PATH", f"{place}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("NVCC")
    path, version = nvcc.compiler()
    assert path == str(importlib.metadata.distribution("nvidia-cuda-nvcc").locate_file("nvidia/cu13/bin/nvcc"))
    said = subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout
    assert f"V{version.split()[0]}" in said
    monkeypatch.setattr(nvcc, "files", lambda package, start: [])
    assert nvcc.compiler()[0] == str(place / "nvcc")


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVCC", "no-such-nvcc")
    with pytest.raises(PluginError, match="NVCC is 'no-such-nvcc', which is no program"):
        nvcc.compiler()
    monkeypatch.delenv("NVCC")
    monkeypatch.setattr(nvcc, "files", lambda package, start: [])
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(PluginError, match="there is no nvcc") as caught:
        nvcc.compiler()
    assert caught.value.problems[0].how.startswith("pip install 'nvidia-cuda-nvcc==13.0.*' 'nvidia-nvvm==13.0.*'")


def test_packages_of_several_releases_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """pip fulfils nvcc's unversioned requirements with the newest: ptxas would not read what that release's cicc writes."""
    versions = dict.fromkeys(nvcc.PACKAGES, "13.0.88") | {"nvidia-nvvm": "13.5.37"}

    def version(name: str) -> str:
        if name == "nvidia-cuda-cccl":
            raise importlib.metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.delenv("NVCC", raising=False)
    monkeypatch.setattr(nvcc, "files", lambda package, start: [Path("nvcc.profile"), Path("nvcc")])
    monkeypatch.setattr(importlib.metadata, "version", version)
    with pytest.raises(PluginError, match=r"of CUDA 13\.0: nvidia-nvvm 13\.5\.37, nvidia-cuda-cccl is missing\n"):
        nvcc.compiler()


def test_missing_headers_name_their_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(PluginError, match="CUTLASS's headers are not installed") as caught:
        nvcc.headers()
    assert "nvidia-cutlass" in caught.value.problems[0].how


def test_everything_is_every_source_for_every_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvcc, "product", lambda source, arch: source.path)
    monkeypatch.setattr(nvcc, "cubin", lambda source, arch: source.path)
    found = {(name, arch) for name, arch, _ in nvcc.everything()}
    assert {
        ("gemm_e4m3_sm90.cu", "sm_90a"),
        ("gemm_sm100.cu", "sm_100a"),
        ("gemm_sm120.cu", "sm_120a"),
        ("norm.cu", "sm_80"),
    } <= found
    assert len([arch for name, arch in found if name == "quantise.cu"]) == 6


@pytest.mark.xdist_group("nvcc")
def test_compilations_are_one_group(request: pytest.FixtureRequest) -> None:
    """Several at once would take more memory than a small machine has: they go to one worker, which the name of the group shows."""
    if not getattr(request.config.option, "loadgroup", False):
        pytest.skip("tests run in one process, or without groups: pytest -n 2 --dist loadgroup, as make test does")
    assert request.node.nodeid.endswith("@nvcc")
