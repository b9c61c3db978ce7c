"""The update of all parameters of an optimizer at once, by the CUDA kernel or by the same source built for the CPU."""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable, Mapping, Sequence
from ctypes import c_int64, c_void_p
from pathlib import Path

import torch
from attrs import frozen
from surogate_native_kit import HostProgram, Kernels, Source
from surogate_native_kit.host import spread, usable
from torch import Tensor

from surogate_native_adam8.codes import BLOCK, Codebook
from surogate_native_adam8.reference import Rates

SOURCE = Source(Path(__file__).with_name("cuda") / "adam8.cu")
FAST = ("-O3", "-fno-math-errno", "-fno-trapping-math")
"""For the CPU: results are the same with and without, but a square root or a comparison is not in the way of vectors."""
THREADS, GROUPS = 256, 16
RESIDENT = 4
"""Thread blocks for each multiprocessor; each goes through its share of the arena."""
FIRST_CELL, LAST_CELL = 0x3380, 0x3F80
"""Upper 16 bits of 2^-24 and of 1."""
SHARE = 64
"""Blocks below which a thread of the CPU is not worth its start."""


@functools.cache
def _program() -> HostProgram:
    return HostProgram(SOURCE, FAST)


def native_on(device: torch.device, kernels: str) -> bool:
    """Whether the native update is used. ``auto``: on a GPU, and on a CPU where there is a C++ compiler, whose failure is told as a
    warning. ``native``: PluginError where it cannot be had."""
    if device.type == "cuda":
        return kernels != "reference"
    return usable(_program, kernels, "adamw_8bit")


@frozen(kw_only=True, eq=False)
class States:
    """What a stretch of blocks of 256 values has: codes (uint8) and scales (float32, one a block) of m and v, or, in blocks without
    codes, ``exact`` moments (float32). ``remainder`` (int16): bfloat16 parameters have masters. On the device of the update, or in
    pinned memory that a GPU reads by itself."""

    codes: tuple[Tensor, Tensor]
    absmax: tuple[Tensor, Tensor]
    exact: tuple[Tensor, Tensor]
    remainder: Tensor | None = None

    @property
    def coded(self) -> int:
        """Blocks with codes; they come first."""
        return len(self.absmax[0])

    def part(self, first: int, last: int) -> States:
        """Views of blocks ``first`` to ``last``."""
        low, high = min(first, self.coded), min(last, self.coded)
        exact = slice((first - low) * BLOCK, (last - high) * BLOCK)
        return States(
            codes=_both(self.codes, slice(low * BLOCK, high * BLOCK)),
            absmax=_both(self.absmax, slice(low, high)),
            exact=_both(self.exact, exact),
            remainder=None if self.remainder is None else self.remainder[first * BLOCK : last * BLOCK],
        )


def _both(pair: tuple[Tensor, Tensor], place: slice) -> tuple[Tensor, Tensor]:
    return pair[0][place], pair[1][place]


class Update:
    """The update of parameters (contiguous, bfloat16 or float32) in an arena of ``blocks`` blocks, of which the first ``coded``
    have codes. Parameter i starts at ``starts[i]``, a multiple of 256, and has the weight decay ``decays[i]``.

    ``run`` is called with the table of addresses, the first and the last block: by default the kernel of the device.
    """

    def __init__(
        self,
        *,
        blocks: int,
        coded: int,
        params: Sequence[Tensor],
        starts: Sequence[int],
        decays: Sequence[float],
        books: tuple[Codebook, Codebook],
        device: torch.device,
        run: Callable[[Tensor, int, int], None] | None = None,
    ):
        self._params, self._starts, self._decays, self._coded = params, starts, decays, coded
        self._run = run or (launch if device.type == "cuda" else _spread)
        self._hyper, self._tables = torch.zeros(8, device=device), _tables(books).to(device)
        owners = torch.empty(blocks, dtype=torch.int32)
        for index, (start, param) in enumerate(zip(starts, params, strict=True)):
            owners[start // BLOCK : start // BLOCK + -(-param.numel() // BLOCK)] = index
        self._owners = owners.to(device)
        self._segments = torch.zeros(len(params), 5, dtype=torch.int64, device=device)
        self._rows = {id(param): row for row, param in enumerate(params)}
        self._addresses: list[tuple[int, int]] = []
        self._noise: tuple[Tensor, ...] = ()
        self._grads: list[Tensor | None] = []

    def prepare(self, lr: Tensor, rates: Rates, noise: tuple[Tensor, Tensor] | None, scale: float = 1.0) -> None:
        """Everything about one step but the states. Gradients are multiplied by ``scale``. ``noise``: int16, a row (4096,) and one
        number for each row of the arena, by which bfloat16 parameters without masters are rounded."""
        numbers = (rates.correction, rates.beta1, 1 - rates.beta1, rates.beta2, 1 - rates.beta2, rates.epsilon * rates.root, scale)
        self._hyper.copy_(torch.tensor([0.0, *numbers]), non_blocking=True)
        self._hyper[:1].copy_(lr.reshape(1), non_blocking=True)
        self._noise = noise or ()
        self._grads = [None if param.grad is None else param.grad.contiguous() for param in self._params]
        addresses = [
            (param.data_ptr(), 0 if grad is None else grad.data_ptr())
            for param, grad in zip(self._params, self._grads, strict=True)
        ]
        if addresses == self._addresses:
            return
        self._addresses = addresses
        rows = [
            (*pair, start, param.numel(), _packed(decay, param.dtype))
            for pair, param, start, decay in zip(addresses, self._params, self._starts, self._decays, strict=True)
        ]
        self._segments.copy_(torch.tensor(rows), non_blocking=True)

    def gradients(self, addresses: Mapping[int, int]) -> None:
        """For the launches that follow: id of a parameter → the address at which value 0 of its gradient would be, of its dtype, or
        0 for none. What a launch reads of it must be there."""
        numbers = ([self._rows[one] for one in addresses], list(addresses.values()))
        rows, values = (torch.tensor(each).to(self._segments.device, non_blocking=True) for each in numbers)
        self._segments[rows, 1] = values

    def launch(self, states: States, first: int, last: int) -> None:
        """Update blocks ``first`` to ``last``, whose states these are."""
        exact = max(first - self._coded, 0) * BLOCK
        addresses = [
            *(codes.data_ptr() - first * BLOCK for codes in states.codes),
            *(absmax.data_ptr() - first * 4 for absmax in states.absmax),
            *(moment.data_ptr() - exact * 4 for moment in states.exact),
            0 if states.remainder is None else states.remainder.data_ptr() - first * BLOCK * 2,
            *([part.data_ptr() for part in self._noise] or (0, 0)),
            *(part.data_ptr() for part in (self._hyper, self._tables, self._segments, self._owners)),
            self._coded,
        ]
        self._run(torch.tensor(addresses).to(self._hyper.device, non_blocking=True), first, last)

    def release(self) -> None:
        """Let go of the gradients."""
        self._grads, self._noise = [], ()


def _packed(decay: float, dtype: torch.dtype) -> int:
    """The last eight bytes of a segment: its decay and whether it is bfloat16."""
    if dtype not in (torch.bfloat16, torch.float32):
        raise TypeError(f"a parameter of {dtype}: bfloat16 or float32 wanted")
    return int(struct.unpack("<q", struct.pack("<fi", decay, dtype == torch.bfloat16))[0])


def _tables(books: tuple[Codebook, Codebook]) -> Tensor:
    """Bytes of ``Tables`` in adam8.h."""
    parts = []
    for book in books:
        bases, bounds = book.bases.cpu().to(torch.int32), book.bounds.cpu().view(torch.int32)
        upper = torch.arange(FIRST_CELL, LAST_CELL + 1, dtype=torch.int32)
        cells = [_entries(bases[book.offset + upper], bounds[book.offset + upper], upper, 1)]
        if book.offset:
            cells.append(_entries(bases[upper], bounds[upper], upper - book.offset, -1))
        parts += [book.values.cpu().view(torch.int32), *cells]
    return torch.cat(parts)


def _entries(bases: Tensor, bounds: Tensor, upper: Tensor, sign: int) -> Tensor:
    """For cells of one sign, given the code at their lower end and the bits of the boundary above it. A value is above a boundary
    of its cell when its lower bits are; for negative values these grow downwards, and a tie goes down."""
    inside = (bounds >> 16 == upper).to(torch.int32)
    lower = bounds & 0xFFFF
    if sign > 0:
        return (torch.where(inside == 1, lower, 0xFFFF) << 16) | (bases + inside) << 8 | bases
    # the code at the end near 0 comes first; with a boundary at that very end no value of the cell has it
    near = bases + torch.where(lower > 0, inside, 0)
    return (torch.where((inside == 1) & (lower > 0), lower - 1, 0xFFFF) << 16) | bases << 8 | near


_kernels = Kernels(SOURCE)


def launch(arena: Tensor, first: int, last: int) -> None:
    """The kernel; its body on the host, as two thread blocks, where the table of addresses is on the CPU."""
    most = RESIDENT * torch.cuda.get_device_properties(arena.device).multi_processor_count if arena.is_cuda else 2
    grid = (min(most, -(-(last - first) // GROUPS)),)
    _kernels.launch("adam8_update", arena.device, grid, (THREADS,), arena.data_ptr(), first, last)


def _spread(arena: Tensor, first: int, last: int) -> None:
    """Over as many threads as torch has. Results do not depend on their number."""
    spread(_program().function("adam8_blocks", None, c_void_p, c_int64, c_int64), arena.data_ptr(), first, last, SHARE)
