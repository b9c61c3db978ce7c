"""CUTLASS products → cubin through nvcc. NVRTC takes twice as long for Hopper's, and cannot build Blackwell's.

python -m surogate_native_kit.nvcc        # make native: every product and every kernel that the families have, into the cache
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import pkgutil
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from surogate_core.errors import PluginError
from surogate_native_kit import cache
from surogate_native_kit.compiler import ARCHITECTURES, cubin
from surogate_native_kit.source import Source

FLAGS = ("-O3", "-DNDEBUG", "-std=c++17", "--expt-relaxed-constexpr")  # without NDEBUG ptxas serialises Hopper's products


def product(source: Source, arch: str) -> Path:
    """The compiled module of a CUTLASS source, from the cache where it was compiled before. Raises PluginError naming what to
    install where nvcc or CUTLASS's headers are missing, or with the compiler's words."""
    compiler = shutil.which(os.environ.get("NVCC", "nvcc"))
    if compiler is None:
        raise PluginError(
            "there is no nvcc, which CUTLASS's products need", how="install CUDA's nvcc 13.0, or set NVCC to its path"
        )
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    name = f"{source.path.stem}-{arch}-{source.digest(arch, version, *FLAGS, *map(str, headers()))}.cubin"
    return cache.built(name, functools.partial(_compile, compiler, source, arch))


def headers() -> list[Path]:
    """Where CUTLASS's headers are. Raises PluginError naming their package."""
    found = importlib.util.find_spec("cutlass_library")
    if found is None or found.origin is None:
        raise PluginError("CUTLASS's headers are not installed", how="pip install --no-deps nvidia-cutlass==4.2.0.0")
    place = Path(found.origin).parent / "source"
    return [place / "include", place / "tools" / "util" / "include"]


def _compile(compiler: str, source: Source, arch: str, path: Path) -> None:
    includes = [f"-I{place}" for place in (*source.directories, *headers())]
    command = [compiler, *FLAGS, f"-arch={arch}", "-cubin", *includes, str(source.path), "-o", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PluginError(f"{source.path.name} does not compile for {arch}", where=str(source.path), how=done.stderr)


def everything() -> Iterator[tuple[str, str, Path]]:
    """(source, architecture, module): builds all sources of the installed families. The name of a product ends in its
    architecture."""
    for info in pkgutil.iter_modules():
        if info.name.startswith("surogate_native_") and info.name != __package__:
            module: ModuleType = importlib.import_module(info.name)
            for path in sorted((Path(str(module.__file__)).parent / "cuda").glob("*.cu")):
                source = Source(path)
                if "_sm" in path.stem:
                    arch = f"sm_{path.stem.rpartition('_sm')[2]}a"
                    yield path.name, arch, product(source, arch)
                else:
                    yield from ((path.name, arch, cubin(source, arch)) for arch in ARCHITECTURES)


if __name__ == "__main__":
    for name, arch, built in everything():
        print(f"{name} {arch} {built}", file=sys.stdout, flush=True)
