"""Kernel bodies on the host: the same source, compiled as C++ with :file:`surogate_host.h` for grid, block and warp.

Every thread of a block is a fiber; barriers and shuffles switch between them. It is exact and slow, and it finds a barrier that not
all threads reach. It does not find races between threads, because the fibers of a block run one at a time.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import os
import shutil
import subprocess
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from surogate_core.errors import PluginError
from surogate_native_kit import cache
from surogate_native_kit.source import Source

if TYPE_CHECKING:
    from torch import Tensor

FLAGS = ("-std=c++17", "-O2", "-shared", "-fPIC", "-ffp-contract=off", "-Wall", "-Wno-unknown-pragmas", "-Werror")
MOST_ARGUMENTS = 13
ERRORS = {1: "a barrier that some threads of the block do not reach", 2: "threads that wait for each other", 3: "a block too large"}


class HostProgram:
    """A source compiled for the host, with ``flags`` besides. Raises PluginError where there is no C++ compiler, or with the
    compiler's messages."""

    def __init__(self, source: Source, flags: tuple[str, ...] = ()):
        found = compiler()
        name = f"{source.path.stem}-host-{source.digest(found, *FLAGS, *flags)}.so"
        self._library = ctypes.CDLL(str(cache.built(name, lambda path: _compile(found, source, flags, path))))

    def function(self, name: str, result: type | None, *arguments: type) -> ctypes._CFuncPtr:  # type: ignore[name-defined]
        """A plain ``extern "C"`` function of the source, such as a number-format primitive."""
        found = getattr(self._library, name)
        found.restype, found.argtypes = result, arguments
        return found

    def run(self, name: str, grid: tuple[int, int], block: int, *arguments: int | Tensor) -> None:
        """The kernel ``name`` over a grid of blocks of ``block`` threads. Tensors are passed by address. Raises RuntimeError for a
        kernel whose threads do not meet at its barriers."""
        values = [argument if isinstance(argument, int) else argument.data_ptr() for argument in arguments]
        if len(values) > MOST_ARGUMENTS:
            raise TypeError(f"{name}: {len(values)} arguments, at most {MOST_ARGUMENTS}")
        packed = (ctypes.c_int64 * MOST_ARGUMENTS)(*values)
        entry = ctypes.cast(getattr(self._library, name), ctypes.c_void_p)
        runner = self.function("surogate_run", ctypes.c_int, ctypes.c_void_p, *[ctypes.c_uint] * 3, ctypes.c_void_p)
        if code := runner(entry, grid[0], grid[1], block, packed):
            raise RuntimeError(f"{name}: {ERRORS[code]}")


def compiler() -> str:
    """``CXX``, or g++. Raises PluginError where there is no such program."""
    name = os.environ.get("CXX", "g++")
    if shutil.which(name) is None:
        raise PluginError(
            f"there is no C++ compiler {name!r}, which the kernels' host build needs",
            how="install the system's package g++, or set CXX to another compiler",
        )
    return name


def _compile(compiler: str, source: Source, flags: tuple[str, ...], path: Path) -> None:
    includes = [f"-I{place}" for place in source.directories]
    command = [compiler, *FLAGS, *flags, *includes, "-x", "c++", str(source.path), "-o", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PluginError(f"{source.path.name} does not compile as C++", where=str(source.path), how=done.stderr)


def usable(program: Callable[[], HostProgram], kernels: str, what: str) -> bool:
    """Whether a CPU's own build, which ``program`` gives, is used under the option ``kernels``. ``auto``: where there is a C++
    compiler; if it fails, a warning says that ``what`` goes on without. ``native``: PluginError where it cannot be had."""
    if kernels == "reference":
        return False
    try:
        program()
    except PluginError as error:
        if kernels == "native":
            raise
        if "no C++ compiler" not in str(error):
            warnings.warn(f"{what} goes on in plain torch: {error}", stacklevel=3)
        return False
    return True


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="native")


def spread(work: Callable[[int, int, int], None], address: int, first: int, last: int, least: int) -> None:
    """``work(address, start, end)`` over ``first`` to ``last`` in as many parts as torch has threads, none shorter than ``least``.
    The calls leave Python's lock to each other; results must not depend on the parts."""
    import torch

    threads = min(torch.get_num_threads(), max(1, (last - first) // least))
    ends = [first + (last - first) * part // threads for part in range(threads + 1)]
    jobs = [_pool(threads).submit(work, address, start, end) for start, end in itertools.pairwise(ends[1:])]
    work(address, ends[0], ends[1])
    for job in jobs:
        job.result()
