"""What offloading needs of a device, and the device that CUDA has."""

from __future__ import annotations

import contextlib
import ctypes
import weakref
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, Protocol

import torch
from torch import Tensor

Mark = Any
"""A point in a stream of work, which other streams can wait for."""


class Device(Protocol):
    """Memory on a device and on its host, and copies between them beside the computation. Everything is one-dimensional."""

    def empty(self, count: int, dtype: torch.dtype) -> Tensor:
        """Memory of the device."""

    def pinned(self, count: int, dtype: torch.dtype) -> Tensor:
        """Memory of the host from which and to which copies run beside the computation. Zeros."""

    def fetch(self, buffer: Tensor, host: Tensor, after: Mark) -> Mark:
        """Copy ``host`` to ``buffer``, a tensor of the device, once ``after`` is reached. Returns the end of the copy."""

    def store(self, host: Tensor, buffer: Tensor, after: Mark) -> Mark:
        """Copy ``buffer`` to ``host`` once ``after`` is reached. Returns the end of the copy."""

    def here(self) -> Mark:
        """The end of the computation that was started so far."""

    def wait(self, mark: Mark) -> None:
        """The computation goes on once ``mark`` is reached."""

    def settle(self) -> None:
        """Wait, on the host, until every copy is done: what is read next on the host is there."""


Opener = Callable[[torch.device, bool], Device]
_opener: ContextVar[Opener | None] = ContextVar("opener", default=None)


def open_device(device: torch.device, write_combined: bool = False) -> Device:
    """Of this CUDA device; within :func:`opening` what that was given makes."""
    opener = _opener.get()
    return Cuda(device, write_combined) if opener is None else opener(device, write_combined)


@contextlib.contextmanager
def opening(opener: Opener) -> Iterator[None]:
    """Within it every device is opened by ``opener``: for tests, and for those who count memory without using any."""
    token = _opener.set(opener)
    try:
        yield
    finally:
        _opener.reset(token)


class Cuda:
    """The current CUDA device: a stream for each direction, so that copies in and out overlap too. ``write_combined``: pinned
    memory that the host's caches leave alone; it may cross the bus faster, and the host reads it slowly."""

    def __init__(self, device: torch.device, write_combined: bool = False):
        self.device, self.write_combined = device, write_combined
        self._inward, self._outward = torch.cuda.Stream(device), torch.cuda.Stream(device)

    def empty(self, count: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(count, dtype=dtype, device=self.device)

    def pinned(self, count: int, dtype: torch.dtype) -> Tensor:
        if self.write_combined and count:
            return write_combined(count * dtype.itemsize).view(dtype)
        return torch.zeros(count, dtype=dtype, pin_memory=True)

    def fetch(self, buffer: Tensor, host: Tensor, after: Mark) -> Mark:
        return self._copy(self._inward, buffer, host, after, buffer)

    def store(self, host: Tensor, buffer: Tensor, after: Mark) -> Mark:
        return self._copy(self._outward, host, buffer, after, buffer)

    def _copy(self, stream: torch.cuda.Stream, target: Tensor, source: Tensor, after: Mark, buffer: Tensor) -> Mark:
        stream.wait_event(after)
        with torch.cuda.stream(stream):
            target.copy_(source, non_blocking=True)
        buffer.record_stream(stream)  # its memory is not given to others before the copy is done
        return stream.record_event()

    def here(self) -> Mark:
        return torch.cuda.current_stream(self.device).record_event()

    def wait(self, mark: Mark) -> None:
        torch.cuda.current_stream(self.device).wait_event(mark)

    def settle(self) -> None:
        self._inward.synchronize()
        self._outward.synchronize()


def write_combined(size: int) -> Tensor:
    """(size,) uint8, zeros, in pinned memory that the host's caches leave alone."""
    from cuda.bindings import runtime

    flags = runtime.cudaHostAllocWriteCombined | runtime.cudaHostAllocPortable | runtime.cudaHostAllocMapped
    error, address = runtime.cudaHostAlloc(size, flags)
    if int(error):
        raise MemoryError(f"cudaHostAlloc of {size} bytes: {error}")
    tensor = torch.frombuffer((ctypes.c_uint8 * size).from_address(address), dtype=torch.uint8)
    weakref.finalize(tensor.untyped_storage(), runtime.cudaFreeHost, address)
    return tensor.zero_()
