"""What a kernel family declares about each of its kernels, so that one command can check and time them all.

A family ``surogate_native_X`` has a module ``checks`` with ``CHECKS``, a sequence of :class:`Check`. On a GPU its kernels run
there; elsewhere their bodies run on the host, as C++.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import pkgutil
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from attrs import field, frozen
from torch import Tensor

Shape = tuple[int, ...]
Run = Callable[..., Sequence[Tensor]]


@frozen(kw_only=True)
class Check:
    """One kernel beside its definition.

    inputs     ``inputs(shape, draw)``: fresh tensors on the CPU, where ``draw(*shape)`` gives normal values, float32
    kernel     takes them on the device, copies of its own, and gives all that it wrote, arguments included
    reference  the same by the definition
    shapes     odd ones, small enough for the host
    large      the shape that is timed on a GPU
    traffic    bytes that have to be read and written for a shape
    flops      operations of a shape for a matrix product; 0 for what memory bounds
    close      largest relative error (Frobenius), of all results or of each; of integers the share that may differ, each by 1; 0:
               every byte is equal
    timed      ``timed(*inputs)`` gives what is timed, for a kernel with preparations that are made once and not at every call
    baseline   what a user would have otherwise, with its name
    on_host    whether the kernel's body can run on the host; a library's cannot
    needs      least compute capability of a GPU that has what it computes with
    """

    name: str
    inputs: Callable[[Shape, Callable[..., Tensor]], Sequence[Tensor]]
    kernel: Run
    reference: Run
    shapes: Sequence[Shape]
    large: Shape
    traffic: Callable[[Shape], int]
    flops: Callable[[Shape], int] = lambda shape: 0
    close: float | Sequence[float] = 0.0
    timed: Callable[..., Callable[[], object]] | None = field(default=None)
    baseline: tuple[str, Run] | None = field(default=None)
    on_host: bool = True
    needs: tuple[int, int] = (0, 0)

    def lacks(self, device: str) -> str:
        """Why it cannot be run on this device; empty where it can."""
        if device == "cpu":
            return "" if self.on_host else "a library's kernel needs a GPU"
        return (
            ""
            if torch.cuda.get_device_capability() >= self.needs
            else f"it needs compute capability {self.needs[0]}.{self.needs[1]}"
        )

    def difference(self, shape: Shape, seed: int, device: str) -> str | None:
        """What differs between kernel and definition on fresh inputs, with memory that is written to poisoned; None where nothing
        does."""
        given = self.drawn(shape, seed, device)
        with poisoned():
            found = self.kernel(*(tensor.clone() for tensor in given))
        wanted = self.reference(*(tensor.clone() for tensor in given))
        for number, (one, other) in enumerate(zip(found, wanted, strict=True)):
            if (one.shape, one.dtype) != (other.shape, other.dtype):
                return f"result {number} is {tuple(one.shape)} {one.dtype}, not {tuple(other.shape)} {other.dtype}"
            if said := _differ(one, other, self.close if isinstance(self.close, float) else self.close[number]):
                return f"result {number}: {said}"
        return None

    def drawn(self, shape: Shape, seed: int, device: str) -> list[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        made = self.inputs(shape, lambda *size: torch.randn(size, generator=generator))
        return [tensor.to(device) for tensor in made]


def _differ(one: Tensor, other: Tensor, close: float) -> str | None:
    if close and not one.is_floating_point():
        steps = (one.long() - other.long()).abs()
        count, most = int((steps > 0).sum()), int(steps.max()) if steps.numel() else 0
        fine = count <= close * one.numel() and most <= 1
        return None if fine else f"{count} of {one.numel()} differ, by up to {most}: {close:.0e} of them by 1 are allowed"
    if close:
        error = float((one.double() - other.double()).norm() / other.double().norm().clamp_min(1e-30))
        return None if error <= close else f"relative error {error:.2e}, {close:.0e} is allowed"
    same = one.contiguous().view(torch.uint8) == other.contiguous().view(torch.uint8) if one.numel() else torch.tensor(True)
    return None if bool(same.all()) else f"{int((~same).sum())} of {same.numel()} bytes differ"


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """Memory that torch hands out without writing to it holds not-a-number, or the largest integer: what is left out shows."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def families() -> dict[str, Sequence[Check]]:
    """The checks of every installed family, by the family's name."""
    found = {}
    for module in sorted(info.name for info in pkgutil.iter_modules() if info.name.startswith("surogate_native_")):
        if importlib.util.find_spec(f"{module}.checks") and module != __name__.rpartition(".")[0]:
            loaded: Any = importlib.import_module(f"{module}.checks")
            found[module.removeprefix("surogate_native_")] = loaded.CHECKS
    return found
