"""Bytes of living tensors, by what they are for: the peak, and what it was made of.

Every operation that makes a tensor is seen (``TorchDispatchMode``), and every storage is followed by a weak reference until it is
freed; so what autograd keeps counts, and what it lets go does not. Storages are counted once, whatever views there are of them. What
an operation takes and gives back inside of itself is not seen; ``surogate`` operators say how much that is (``WORKSPACE``).
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

SCRATCH = "scratch"


class Tally(TorchDispatchMode):
    """``label`` names what the next tensors are for. ``now`` and ``at_peak`` are bytes by label, ``peak`` the largest sum.

    stand_in  the tensors have no values: where one is asked for, 0 is given, and every position of a tensor counts as not zero
    """

    def __init__(self, label: str, *, stand_in: bool = False, workspace: Callable[[Any, Any], int] = lambda op, arguments: 0):
        super().__init__()
        self.label, self._stand_in, self._workspace = label, stand_in, workspace
        self._alive: dict[int, tuple[Any, int, str]] = {}
        self.now: Counter[str] = Counter()
        self.at_peak: dict[str, int] = {}
        self.total = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self._stand_in and func is torch.ops.aten._local_scalar_dense.default:
            return 0
        if self._stand_in and func is torch.ops.aten.nonzero.default:
            out = args[0].new_empty((args[0].numel(), args[0].ndim), dtype=torch.int64)
        else:
            out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._add(tensor, self.label)
        if func.namespace == "surogate" and (extra := self._workspace(func, args)):
            self._compare(extra)
        return out

    def hold(self, tensors: Iterable[Tensor], label: str) -> None:
        """Count tensors that were made elsewhere, or count them under another label."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if found := self._alive.get(storage._cdata):
                reference, size, old = found
                self._alive[storage._cdata] = reference, size, label
                self.now[old] -= size
                self.now[label] += size
            else:
                self._add(tensor, label)

    def restart(self) -> None:
        """Forget the peak so far."""
        self.peak = 0
        self._compare()

    def _add(self, tensor: Tensor, label: str) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._alive:
            self._alive[key] = weakref.ref(storage, lambda _: self._drop(key)), size, label
            self.now[label] += size
            self.total += size
            self._compare()

    def _drop(self, key: int) -> None:
        _, size, label = self._alive.pop(key, (None, 0, SCRATCH))
        self.now[label] -= size
        self.total -= size

    def _compare(self, extra: int = 0) -> None:
        if self.total + extra > self.peak:
            self.peak = self.total + extra
            self.at_peak = {label: size for label, size in self.now.items() if size}
            if extra:
                self.at_peak[SCRATCH] = self.at_peak.get(SCRATCH, 0) + extra
