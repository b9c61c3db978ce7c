"""Bytes of living tensors, by what they are for: the peak of each phase, and what it was made of.

Every operation that makes a tensor is seen (``TorchDispatchMode``), and every storage is followed by a weak reference until it is
freed; so what autograd keeps counts, and what it lets go does not. Storages are counted once, whatever views there are of them.
What an operation takes and gives back inside of itself is not seen.

Autograd adds two gradients of one tensor in place, but not while a dispatch mode watches (``isTensorSubclassLike`` in torch's
``input_buffer.cpp``). So a sum is counted when the next operation begins, when autograd has let go of what it added.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from attrs import frozen
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

HOST = "on the host"
"""Label of what is offloaded."""


@frozen
class Peak:
    """The most bytes of a phase, and the bytes by label at that moment; the most on the host is beside the total."""

    total: int
    parts: dict[str, int]


@frozen
class Memory:
    """The peak of each phase of a step, in their order."""

    phases: dict[str, Peak]

    @property
    def peak(self) -> Peak:
        return max(self.phases.values(), key=lambda peak: peak.total)

    @property
    def total(self) -> int:
        return self.peak.total


class Tally(TorchDispatchMode):
    """``label`` names what the next tensors are for, ``phase`` what is being done; ``peaks`` has the peak of each phase.

    ``device`` is the type of device whose tensors count. Those made under the label :data:`HOST` stand for memory of the host: they
    are among the parts of a peak, but not in its total. ``stand_in``: the tensors have no values. Where one is asked for, 0 is
    given, and every place of a tensor counts as not zero.
    """

    def __init__(self, device: str, *, stand_in: bool = False):
        super().__init__()
        self._device = device
        self.label = self.phase = ""
        self.peaks: dict[str, Peak] = {}
        self._stand_in = stand_in
        self._alive: dict[int, tuple[Any, int, str]] = {}
        self._now: Counter[str] = Counter()
        self._total = 0
        self._sum = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._settle()
        self._sum = func is torch.ops.aten.add.Tensor
        if self._stand_in and func is torch.ops.aten._local_scalar_dense.default:
            return 0
        if self._stand_in and func is torch.ops.aten.nonzero.default:
            out = args[0].new_empty((args[0].numel(), args[0].ndim), dtype=torch.int64)
        elif self._stand_in and not func._schema.returns:  # torch's fused updates have no rule for shapes, and make nothing
            out = None
        else:
            out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._add(tensor)
        return out

    def hold(self, tensors: Iterable[Tensor], label: str) -> None:
        """Count tensors that were made elsewhere, or count them under another label."""
        before, self.label = self.label, label
        for tensor in tensors:
            key = tensor.untyped_storage()._cdata
            if key in self._alive:
                reference, size, old = self._alive[key]
                if old == HOST:
                    continue
                self._alive[key] = reference, size, label
                self._now[old] -= size
                self._now[label] += size
            else:
                self._add(tensor)
        self.label = before

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive or tensor.device.type != self._device:
            return
        self._alive[key] = weakref.ref(storage, lambda _: self._drop(key)), size, self.label
        self._now[self.label] += size
        self._total += size if self.label != HOST else 0
        if not self._sum:
            self._note()
        if self.label == HOST and self.phase in self.peaks:  # the most of the phase, not that of its peak
            parts = self.peaks[self.phase].parts
            parts[HOST] = max(parts.get(HOST, 0), self._now[HOST])

    def __exit__(self, *raised: Any) -> None:
        self._settle()
        super().__exit__(*raised)

    def _settle(self) -> None:
        if self._sum:
            self._sum = False
            self._note()

    def _note(self) -> None:
        if self.phase and (self.phase not in self.peaks or self._total > self.peaks[self.phase].total):
            away = self.peaks[self.phase].parts.get(HOST, 0) if self.phase in self.peaks else 0
            parts = {**self._now, HOST: max(away, self._now[HOST])}
            self.peaks[self.phase] = Peak(self._total, {label: size for label, size in parts.items() if size})

    def _drop(self, key: int) -> None:
        _, size, label = self._alive.pop(key)
        self._now[label] -= size
        self._total -= size if label != HOST else 0
