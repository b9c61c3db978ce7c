"""The parallelism of one process on one device: a shard is the whole tensor, and nothing is sent."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from surogate_core.contracts import Context
from surogate_distributed_single.plugin import Sharding


class Single:
    """See :class:`surogate_core.contracts.Parallelism`."""

    rank = 0
    world_size = 1

    def __init__(self, device: str):
        self._device = torch.device(device)

    def device(self) -> torch.device:
        return self._device

    def wrap(self, model: nn.Module) -> nn.Module:
        return model

    def sum(self, value: Tensor) -> Tensor:
        return value

    def rows(self, rows: Sequence[Any]) -> Iterator[Any]:
        return iter(rows)


def build(options: Sharding, context: Context) -> Single:
    return Single(context.device)
