"""`offload_residual`: what enters a decoder layer waits for the backward pass in the memory of the host.

Each layer is called with hooks for the tensors that autograd saves. The layer's input goes to pinned memory while the layer is
computed, and comes back while the layer above it goes backward. With recomputation it is all that a layer keeps, so that the
device holds two of them whatever the number of layers.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from attrs import define, field
from surogate_offload import Device, Mark, open_device
from torch import Tensor, nn


@define(eq=False)
class Away:
    """One tensor in the host's memory. ``buffer``: on the device again, or on its way (``there``)."""

    host: Tensor
    shape: torch.Size
    stored: Mark
    below: weakref.ref[Away] | None
    buffer: Tensor | None = None
    there: Mark = None


@define(eq=False)
class Residuals:
    """The inputs of the layers of one model."""

    device: Device
    _free: dict[tuple[int, torch.dtype], list[Tensor]] = field(factory=dict)
    _last: weakref.ref[Away] | None = None

    def put(self, values: Tensor) -> Away:
        place = (values.numel(), values.dtype)
        unused = self._free.setdefault(place, [])
        host = unused.pop() if unused else self.device.pinned(*place)
        stored = self.device.store(host, values.detach().reshape(-1), self.device.here())
        away = Away(host, values.shape, stored, self._last)
        weakref.finalize(away, unused.append, host)
        self._last = weakref.ref(away)
        return away

    def get(self, away: Away) -> Tensor:
        """The tensor; the one of the layer below sets out as well."""
        self._bring(away)
        self.device.wait(away.there)
        if away.below is not None and (below := away.below()) is not None:
            self._bring(below)
        assert away.buffer is not None
        return away.buffer.view(away.shape)

    def _bring(self, away: Away) -> None:
        if away.buffer is None:
            away.buffer = self.device.empty(away.host.numel(), away.host.dtype)
            self.device.wait(away.stored)
            away.there = self.device.fetch(away.buffer, away.host, self.device.here())

    def around(self, kind: type[nn.Module]) -> type[nn.Module]:
        """A class of layers that are called with the hooks."""
        residuals = self

        def call(layer: Any, *args: Any, **kwargs: Any) -> Any:
            # autograd holds on to the hooks, so these must not hold on to the input
            own = _identity(args[0] if args else kwargs["hidden_states"])
            kept: list[Away] = []

            def pack(saved: Tensor) -> Tensor | Away:
                if _identity(saved) != own:
                    return saved
                if not kept:  # what a layer saves twice is one tensor
                    kept.append(residuals.put(saved))
                return kept[0]

            def unpack(saved: Tensor | Away) -> Tensor:
                return residuals.get(saved) if isinstance(saved, Away) else saved

            with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
                return kind.__call__(layer, *args, **kwargs)

        return type(kind.__name__, (kind,), {"__call__": call, "__module__": kind.__module__, "__qualname__": kind.__qualname__})


def _identity(values: Tensor) -> tuple[Any, ...]:
    """Of tensors that are alive at the same time, also of those without values."""
    return values.untyped_storage()._cdata, values.storage_offset(), values.shape, values.dtype


def offload_residuals(layers: Iterable[nn.Module], device: torch.device) -> None:
    """From now on the inputs of these layers are kept in the host's memory. Before ``recompute``, which keeps nothing else."""
    residuals = Residuals(open_device(device))
    kinds: dict[type[nn.Module], type[nn.Module]] = {}
    for layer in layers:
        own = type(layer)
        layer.__class__ = kinds.setdefault(own, residuals.around(own))
