"""Training: update rules, schedules, processes, and where records go."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from attrs import frozen

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


@frozen(kw_only=True)
class ParamGroup:
    """Parameters that share a weight decay, with their names in the model, in the model's order."""

    names: tuple[str, ...]
    params: tuple[Tensor, ...]
    weight_decay: float


class Optimizer(Protocol):
    """An update rule. Unbound until the model exists, so that the plan can ask for its memory."""

    def state_bytes(self, shape: tuple[int, ...], name: str = "") -> int:
        """Bytes of state for one parameter of this shape. ``name``: its name in the model, for rules that go by it."""

    def bind(self, groups: Sequence[ParamGroup], seed: int) -> OptimizerState:
        """Allocate zero states for these parameters. ``seed`` feeds every random choice of the rule."""


class OptimizerState(Protocol):
    def step(self, lr: Tensor, step: int) -> None:
        """Update all parameters in place from their ``.grad``. ``lr`` is a float32 scalar on the device (gradients are already
        clipped); ``step`` counts from 1. Must not read a value back from the device."""

    def state_dict(self) -> dict[str, Tensor]:
        """Flat names → tensors, all that is needed to continue bit for bit."""

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Raises ResumeError naming what is missing or has another shape."""


@runtime_checkable
class HoldsGradients(Protocol):
    """An optimizer state that takes each gradient to a place of its own once a backward pass has completed it: ``.grad`` is None
    afterwards. What a step's backward passes gave is added up, and ``step`` updates from it and then starts anew. The unbound
    optimizer says so with ``holds_gradients = True``: the plan then counts none on the device."""

    def clip(self, parameters: Sequence[Tensor], max_norm: float) -> Tensor:
        """What ``torch.nn.utils.get_total_norm`` and, with ``max_norm`` above 0, ``clip_grads_with_norm_`` do with the gradients of
        these parameters in this order, bit for bit: the norm before clipping, on the device. ``step`` uses what was clipped."""


Schedule = Callable[[float], float]
"""Progress through the decay phase in [0, 1] → the factor between 1 (base rate) and 0 (``final_lr_fraction``)."""


class Logger(Protocol):
    """``log`` and ``close`` are called from one thread of the logger's own, so they may take their time; ``build`` is not."""

    def log(self, record: Mapping[str, Any]) -> None:
        """One record of plain JSON values. ``record["kind"]`` is "run", "ledger", "step", "eval", "checkpoint", "notice",
        "decision" or "end"; see ``docs/metrics.md``."""

    def close(self) -> None: ...


@runtime_checkable
class KeepsState(Protocol):
    """A logger that has to know in a continued run what it was in the earlier one: the id of its run."""

    def state(self) -> Mapping[str, Any]:
        """Plain JSON values, kept in every checkpoint. Called while one is being saved, from the thread of the training."""


class Parallelism(Protocol):
    """Where processes run and how state is sharded. Exactly one per run; the built-in ``single`` does nothing, so the loop has
    no "if distributed"."""

    rank: int
    world_size: int

    def device(self) -> torch.device: ...

    def wrap(self, model: nn.Module) -> nn.Module: ...

    def sum(self, value: Tensor) -> Tensor:
        """Sum over all ranks, on the device."""

    def rows(self, rows: Sequence[Any]) -> Iterator[Any]:
        """This rank's share of the rows of one optimizer step."""
