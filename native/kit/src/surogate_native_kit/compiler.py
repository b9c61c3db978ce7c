"""CUDA C++ → cubin through NVRTC. Needs the compiler's package, but neither a GPU, nor a driver, nor a toolkit."""

from __future__ import annotations

import ctypes
import functools
import importlib.metadata
import subprocess
from pathlib import Path

from surogate_core.errors import PluginError
from surogate_native_kit import cache
from surogate_native_kit.source import Source

ARCHITECTURES = ("sm_80", "sm_86", "sm_89", "sm_90a", "sm_100a", "sm_120a")
FLAGS = ("-std=c++17", "-DNDEBUG")
COMPILER = "nvidia-cuda-nvrtc"
DISASSEMBLER = "nvidia-cuda-nvdisasm"


def cubin(source: Source, arch: str) -> Path:
    """The compiled module for ``arch`` ("sm_90a"), from the cache where it was compiled before.

    Raises PluginError with the compiler's messages, or with the package to install where there is no compiler.
    """
    name = f"{source.path.stem}-{arch}-{source.digest(arch, version(), *FLAGS)}.cubin"
    return cache.built(name, functools.partial(_compile, source, arch))


def version() -> str:
    """NVRTC's. Raises PluginError with the package to install where there is none."""
    try:
        return importlib.metadata.version(COMPILER)
    except importlib.metadata.PackageNotFoundError:
        raise missing(COMPILER, "compile kernels") from None


def _compile(source: Source, arch: str, path: Path) -> None:
    from cuda.core import Program, ProgramOptions

    for library in (*files(COMPILER, "libnvrtc-builtins.so"), *files(COMPILER, "libnvrtc.so")):  # the version in the key
        ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
    options = ProgramOptions(
        std="c++17", arch=arch, define_macro=["NDEBUG"], include_path=[str(place) for place in source.directories]
    )
    try:
        path.write_bytes(Program(source.path.read_text("utf-8"), "c++", options).compile("cubin").code)
    except Exception as error:  # cuda.core wraps NVRTC's log in errors of several kinds
        raise PluginError(f"{source.path.name} does not compile for {arch}", where=str(source.path), how=str(error)) from error


def disassemble(module: Path) -> str:
    """The SASS of a cubin. Raises PluginError naming the package where there is no disassembler."""
    tools = files(DISASSEMBLER, "nvdisasm")
    if not tools:
        raise missing(DISASSEMBLER, "read compiled kernels")
    return subprocess.run([str(tools[0]), "-c", str(module)], capture_output=True, text=True, check=True).stdout


def files(package: str, start: str) -> list[Path]:
    """Files of an installed package whose names start so; none where the package is not installed."""
    try:
        listed = importlib.metadata.files(package) or ()
    except importlib.metadata.PackageNotFoundError:
        return []
    return [Path(str(file.locate())) for file in listed if file.name.startswith(start)]


def missing(package: str, purpose: str) -> PluginError:
    """The error that names a package to install."""
    return PluginError(f"the package {package}, which is needed to {purpose}, is not installed", how=f"pip install {package}")
