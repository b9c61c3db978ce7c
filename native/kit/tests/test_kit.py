"""The kit: hashes, the cache and its races, both compilers, what is said where one is missing, and the host's barriers."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from surogate_native_kit import ARCHITECTURES, HostProgram, Kernels, Source, cache, compiler, cubin
from surogate_native_kit.launch import architecture

from surogate_core.errors import PluginError

REVERSE = """
#include "surogate_device.h"
#include "more.h"
extern "C" __global__ void reverse(const uint32_t* x, uint32_t* y, uint32_t* most, int64_t size) {
    __shared__ uint32_t held[256];
    const int64_t place = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    const uint32_t value = place < size ? x[place] * FACTOR : 0;
    held[threadIdx.x] = value;
    __syncthreads();
    if (place < size) y[place] = held[blockDim.x - 1 - threadIdx.x];
    uint32_t largest = value;
    for (int lanes = 16; lanes; lanes /= 2) largest = max(largest, __shfl_xor_sync(0xffffffffu, largest, lanes));
    if (threadIdx.x % 32 == 0) atomicMax(most, largest);
}
extern "C" __global__ void uneven(uint32_t* x) {
    if (threadIdx.x < 7) __syncthreads();
    x[threadIdx.x] = 1;
}
extern "C" __global__ void stuck(uint32_t* x) {
    if (threadIdx.x) __shfl_xor_sync(0xffffffffu, 1u, 1);
}
"""


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Source:
    monkeypatch.setenv("SUROGATE_NATIVE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "reverse.cu").write_text(REVERSE)
    (tmp_path / "more.h").write_text("#define FACTOR 1\n")
    return Source(tmp_path / "reverse.cu")


def test_the_host_runs_blocks_barriers_shuffles_and_atomics(source: Source) -> None:
    program = HostProgram(source)
    x = torch.randperm(512, generator=torch.Generator().manual_seed(1)).to(torch.int32)
    y, most = torch.full((512,), -1, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    program.run("reverse", (4, 1), 128, x, y, most, 512)
    assert torch.equal(y, x.reshape(4, 128).flip(1).flatten())
    assert most.item() == 511


@pytest.mark.parametrize(
    ("kernel", "said"), [("uneven", "some threads of the block do not reach"), ("stuck", "wait for each other")]
)
def test_the_host_finds_barriers_that_do_not_meet(source: Source, kernel: str, said: str) -> None:
    with pytest.raises(RuntimeError, match=f"{kernel}: .*{said}"):
        HostProgram(source).run(kernel, (1, 1), 64, torch.zeros(64, dtype=torch.int32))


def test_too_many_arguments_and_a_block_too_large_are_refused(source: Source) -> None:
    with pytest.raises(TypeError, match="14 arguments, at most 13"):
        HostProgram(source).run("reverse", (1, 1), 32, *range(14))
    with pytest.raises(RuntimeError, match="a block too large"):
        HostProgram(source).run("reverse", (1, 1), 2048, *range(4))


def test_a_cubin_is_elf_for_its_architecture_and_kept(source: Source) -> None:
    paths = {arch: cubin(source, arch) for arch in ("sm_80", "sm_90a")}
    assert {path.read_bytes()[:4] for path in paths.values()} == {b"\x7fELF"}
    assert ".target\tsm_90a" in compiler.disassemble(paths["sm_90a"])
    paths["sm_80"].write_bytes(b"kept")
    assert cubin(source, "sm_80").read_bytes() == b"kept"


@pytest.mark.parametrize("change", ["source", "header", "compiler"])
def test_the_key_changes_with_source_header_and_compiler(source: Source, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    before = cubin(source, "sm_80")
    if change == "compiler":
        version = importlib.metadata.version
        monkeypatch.setattr(importlib.metadata, "version", lambda name: version(name) + ".1")
    else:
        changed = source.path if change == "source" else source.path.with_name("more.h")
        changed.write_text(changed.read_text() + "// changed\n")
    assert cubin(source, "sm_80") != before


def test_two_processes_that_race_for_a_build_both_win(source: Source) -> None:
    code = f"""
from pathlib import Path; from surogate_native_kit import Source, cubin
print("ready", flush=True); input(); print(cubin(Source(Path({str(source.path)!r})), "sm_80"))"""
    both = [subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, text=True) for _ in range(2)]
    for process in both:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in both:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    said = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert said[0] == said[1]
    assert [path.name for path in cache.directory().iterdir()] == [Path(said[0].strip()).name]


def test_a_build_that_fails_leaves_nothing_and_shows_the_compilers_words(source: Source) -> None:
    source.path.write_text("this is no C++\n")
    with pytest.raises(PluginError, match="does not compile for sm_80") as caught:
        cubin(source, "sm_80")
    assert "reverse.cu" in caught.value.problems[0].where
    assert "error" in caught.value.problems[0].how
    with pytest.raises(PluginError, match=r"does not compile as C\+\+"):
        HostProgram(source)
    assert list(cache.directory().iterdir()) == []


def test_a_missing_compiler_names_its_package(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(PluginError, match=r"no C\+\+ compiler 'no-such-compiler'") as host:
        HostProgram(source)
    assert "g++" in host.value.problems[0].how

    def absent(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    for function in ("version", "files"):
        monkeypatch.setattr(importlib.metadata, function, absent)
    with pytest.raises(PluginError) as nvrtc:
        cubin(source, "sm_80")
    assert nvrtc.value.problems[0].how == "pip install nvidia-cuda-nvrtc"
    with pytest.raises(PluginError) as disassembler:
        compiler.disassemble(source.path)
    assert disassembler.value.problems[0].how == "pip install nvidia-cuda-nvdisasm"


def test_the_cache_is_where_the_user_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SUROGATE_NATIVE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.directory() == tmp_path / "surogate" / "native"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache.directory() == Path.home() / ".cache" / "surogate" / "native"


def test_architectures_of_devices() -> None:
    known = [(8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)]
    assert tuple(map(architecture, known)) == ARCHITECTURES


def test_a_launch_reaches_the_driver_and_no_further_without_one(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    """The launcher is not run on a GPU here: all that is shown is that everything before the driver's first call works."""
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU: run on one without, where the body runs on the host")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    with pytest.raises(Exception, match="NVIDIA driver"):
        Kernels(source).launch("reverse", torch.device("cuda"), (1,), (32,), 0, 0, 0, 0)


def test_the_host_compiler_is_here() -> None:
    assert shutil.which(os.environ.get("CXX", "g++")), "install the package g++"
