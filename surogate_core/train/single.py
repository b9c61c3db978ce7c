"""The parallelism of one process on one device: it changes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from surogate_core.contracts import Context

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


class Single:
    rank = 0
    world_size = 1

    def __init__(self, device: str):
        self._device = device

    def device(self) -> torch.device:
        import torch

        return torch.device(self._device)

    def wrap(self, model: nn.Module) -> nn.Module:
        return model

    def sum(self, value: Tensor) -> Tensor:
        return value

    def rows(self, rows: Sequence[Any]) -> Iterator[Any]:
        return iter(rows)


def build(options: None, context: Context) -> Single:
    return Single(context.device)
