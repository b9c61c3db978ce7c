"""CUTLASS products → cubin through nvcc. NVRTC takes twice as long for Hopper's, and cannot build Blackwell's.

python -m surogate_native_kit.nvcc        # make native: every product and every kernel that the families have, into the cache
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
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
from surogate_native_kit.compiler import ARCHITECTURES, cubin, files
from surogate_native_kit.source import Source

FLAGS = ("-O3", "-DNDEBUG", "-std=c++17", "--expt-relaxed-constexpr")  # without NDEBUG ptxas serialises Hopper's products
RELEASE = "13.0"  # a driver of CUDA 13.0 need not load the cubins of a later compiler
PACKAGES = ("nvidia-cuda-nvcc", "nvidia-nvvm", "nvidia-cuda-crt", "nvidia-cuda-runtime", "nvidia-cuda-cccl")
"""What nvcc needs of CUDA. Their own requirements have no versions: all of them are named, or pip mixes releases."""
CUTLASS = "nvidia-cutlass"


def product(source: Source, arch: str) -> Path:
    """The compiled module of a CUTLASS source, from the cache where it was compiled before. Raises PluginError naming what to
    install where nvcc or CUTLASS's headers are missing, or with the compiler's words."""
    path, version = compiler()
    name = f"{source.path.stem}-{arch}-{source.digest(arch, version, _version(CUTLASS), *FLAGS)}.cubin"
    return cache.built(name, functools.partial(_compile, path, source, arch))


def compiler() -> tuple[str, str]:
    """nvcc's path and what identifies its release: ``NVCC`` where that is set, else that of the installed packages, else that of
    the PATH. Raises PluginError naming the packages where there is none, or where they are not of one release."""
    named = os.environ.get("NVCC")
    if not named and (packaged := [file for file in files(PACKAGES[0], "nvcc") if file.name == "nvcc"]):
        found = {package: _version(package) for package in PACKAGES}
        if wrong := [f"{package} {version}" for package, version in found.items() if not version.startswith(f"{RELEASE}.")]:
            raise PluginError(f"the packages of nvcc are not all of CUDA {RELEASE}: {', '.join(wrong)}", how=_install())
        return str(packaged[0]), " ".join(found.values())
    path = shutil.which(named or "nvcc")
    if path is None:
        what = f"NVCC is {named!r}, which is no program" if named else "there is no nvcc, which CUTLASS's products need"
        raise PluginError(what, how=f"{_install()}; or set NVCC to the path of nvcc {RELEASE}")
    return path, subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout


def _install() -> str:
    return "pip install " + " ".join(f"'{package}=={RELEASE}.*'" for package in PACKAGES)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "is missing"


def headers() -> list[Path]:
    """Where CUTLASS's headers are. Raises PluginError naming their package."""
    found = importlib.util.find_spec("cutlass_library")
    if found is None or found.origin is None:
        raise PluginError("CUTLASS's headers are not installed", how=f"pip install --no-deps {CUTLASS}==4.2.0.0")
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
