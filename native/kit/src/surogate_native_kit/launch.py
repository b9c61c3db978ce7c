"""Kernels on the current CUDA device and torch's current stream, through cuda.core; on the CPU, their bodies on the host.

Nothing here has been run on a GPU by the tests of this package: they have none. They check everything up to the launch itself.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from surogate_native_kit.compiler import cubin
from surogate_native_kit.host import HostProgram
from surogate_native_kit.source import Source

if TYPE_CHECKING:
    import torch


def architecture(capability: tuple[int, int]) -> str:
    """What to compile for: ``(9, 0)`` → ``sm_90a``, ``(8, 6)`` → ``sm_86``. From 9.0 on kernels may use the instructions that only
    this architecture has (suffix a)."""
    major, minor = capability
    return f"sm_{major}{minor}{'a' if major >= 9 else ''}"


def addressable(tensor: torch.Tensor) -> bool:
    """Whether a kernel can read it: tensors on the meta device and torch's FakeTensors have shapes and no values."""
    from torch._subclasses.fake_tensor import FakeTensor

    return not (tensor.is_meta or isinstance(tensor, FakeTensor))


class Kernels:
    """The kernels of one source. Compiled on first use, for the device that asks."""

    def __init__(self, source: Source):
        self.source = source
        self._kernel = functools.cache(self._load)
        self._host = functools.cache(lambda: HostProgram(source))

    def _load(self, name: str, device: int) -> Any:
        import torch
        from cuda.core import Device, ObjectCode

        Device(device).set_current()  # the primary context, which torch uses too
        module = cubin(self.source, architecture(torch.cuda.get_device_capability(device)))
        return ObjectCode.from_cubin(str(module)).get_kernel(name)

    def launch(self, name: str, device: torch.device, grid: tuple[int, ...], block: tuple[int, ...], *arguments: int) -> None:
        """Enqueue a kernel, or run its body on the host for ``device`` "cpu". ``arguments``: addresses and sizes, each passed as 64
        bits."""
        if device.type == "cpu":
            self._host().run(name, (grid[0], grid[1] if len(grid) > 1 else 1), block[0], *arguments)
            return
        import torch
        from cuda.core import launch

        index = torch.cuda.current_device() if device.index is None else device.index
        kernel = self._kernel(name, index)
        launch(_stream(torch.cuda.current_stream(index).cuda_stream), _config(grid, block), kernel, *arguments)


@functools.cache
def _config(grid: tuple[int, ...], block: tuple[int, ...]) -> Any:
    from cuda.core import LaunchConfig

    return LaunchConfig(grid=grid, block=block)


@functools.cache
def _stream(handle: int) -> Any:
    from cuda.core import Stream

    return Stream.from_handle(handle)
