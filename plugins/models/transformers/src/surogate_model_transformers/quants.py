"""Where quantised weights are between their uses: `persistent_quants`, `offload_quants`, `qlora_offload_experts`.

There are two kinds. What a quantizer packed lives as long as the model. What a recipe makes of a weight is a copy
(:class:`~surogate_core.contracts.KeepsCopies`), which lives

    until the weight changes    where weights are not sharded
    for one use                 where they are, and of a packed weight, which is unpacked for each use
    until the weight changes    with `persistent_quants`: of a packed weight, which never changes, for good

Both kinds can be in pinned memory of the host, from which those of a decoder layer are fetched while its neighbour is computed.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from attrs import frozen
from surogate_offload import Ahead, Away, Kept, Lasting, Offloaded, Unkept, open_device
from torch import Tensor, nn

from surogate_core.contracts import KeepsCopies, Storage
from surogate_model_transformers.experts import Stack
from surogate_model_transformers.plugin import Options
from surogate_model_transformers.slots import SlotLinear


@frozen(eq=False)
class Shelf:
    """Storages whose buffers are one block in the memory of the host."""

    ahead: Ahead
    storages: tuple[Any, ...]
    away: Away

    @classmethod
    def of(cls, ahead: Ahead, group: int, storages: Sequence[Any]) -> Shelf:
        """Takes the buffers of these modules, which are on the host, and puts views of the block in their place."""
        places = [place for storage in storages for place in _buffers(storage)]
        tensors = [own[name] for own, name in places]
        away = ahead.room(group, tensors)
        ahead.fill(away, tensors)
        for (own, name), view in zip(places, away.inside(away.host), strict=True):
            own[name] = view
        return cls(ahead, tuple(storages), away)

    def fetched(self) -> list[Any]:
        """The storages with their buffers on the device, for one use."""
        parts = iter(self.ahead.get(self.away))
        return [_twin(storage, parts) for storage in self.storages]


@frozen(eq=False)
class Fetched:
    """The storage of one linear layer, on a shelf; see :class:`surogate_core.contracts.Storage`."""

    shelf: Shelf

    def unpack(self, dtype: torch.dtype) -> Tensor:
        weight: Tensor = self.shelf.fetched()[0].unpack(dtype)
        return weight

    def state_dict(self) -> dict[str, Tensor]:
        buffers: dict[str, Tensor] = self.shelf.storages[0].state_dict()
        return buffers


def _buffers(module: nn.Module) -> Iterator[tuple[dict[str, Any], str]]:
    """Where the buffers of a module are, those of its parts last."""
    yield from ((module._buffers, name) for name, buffer in module._buffers.items() if buffer is not None)
    for part in module._modules.values():
        if part is not None:
            yield from _buffers(part)


def _twin(module: nn.Module, parts: Iterator[Tensor]) -> nn.Module:
    """The module with other buffers, which come in the order of :func:`_buffers`."""
    twin = copy.copy(module)
    twin._buffers = {name: None if buffer is None else next(parts) for name, buffer in module._buffers.items()}
    twin._modules = {name: None if part is None else _twin(part, parts) for name, part in module._modules.items()}
    return twin


def keep(blocks: Sequence[nn.Module], options: Options, shards_weights: bool, device: torch.device) -> None:
    """Put storages and copies of these decoder layers where the options say. Storages are in the memory of the host still."""
    offloads = options.offload_quants or options.qlora_offload_experts
    # one for each kind: once there are copies of packed weights, these are not used any more
    packed, copies = (Ahead(open_device(device)), Ahead(open_device(device))) if offloads else (None, None)
    for number, block in enumerate(blocks):
        for module in list(block.modules()):
            if not isinstance(module, SlotLinear | Stack):
                continue
            stack = isinstance(module, Stack)
            stored = bool(module.storages) if isinstance(module, Stack) else module.storage is not None
            for compute in module.computes if isinstance(module, Stack) else (module.compute,):
                if isinstance(compute, KeepsCopies):
                    compute.copies = _copies(options, shards_weights, stored, compute.copies, copies, number)
            if stored and packed is not None and (options.offload_quants or stack):
                _shelve(module, packed, number)


def _copies(options: Options, sharded: bool, stored: bool, now: Any, ahead: Ahead | None, number: int) -> Any:
    """Where one compute keeps its copy."""
    if not options.persistent_quants:
        return Unkept() if sharded else now
    elsewhere = Offloaded(ahead, number) if options.offload_quants and ahead is not None else None
    return Lasting(elsewhere or Kept(all=True)) if stored else elsewhere or now


def _shelve(module: SlotLinear | Stack, ahead: Ahead, number: int) -> None:
    if isinstance(module, Stack):
        shelf = Shelf.of(ahead, number, module.storages)
        module.set_storages(module.storages, shelf.fetched)
        return
    storage = module.storage
    del module.storage  # a module's name is not given to another object
    module.storage = cast(Storage, Fetched(Shelf.of(ahead, number, [storage])))  # which has packed
