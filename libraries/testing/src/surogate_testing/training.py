"""Update rules, schedules, loggers, and the ways to spread a run over processes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from surogate_core.contracts import KeepsState, Logger, Optimizer, Parallelism, ParamGroup, Schedule
from surogate_testing.plain import plain

RECORDS = ("run", "ledger", "step", "eval", "checkpoint", "notice", "decision", "end")
"""Kinds of records: docs/metrics.md."""


def check_optimizer(
    optimizer: Optimizer, *, shapes: Sequence[tuple[int, ...]] = ((96, 64), (7, 5), (33,)), names: Sequence[str] | None = None
) -> None:
    """State round-trips bit for bit in mid-run, nothing moves without gradient and decay, and ``state_bytes`` tells the truth.
    ``names``: of the parameters with these shapes, for rules that go by the name."""
    called = tuple(names or (f"p{number}" for number in range(len(shapes))))

    def parameters() -> list[Tensor]:
        generator = torch.Generator().manual_seed(5)
        return [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]

    def bind(params: list[Tensor], decay: float = 0.1) -> Any:
        return optimizer.bind([ParamGroup(names=called, params=tuple(params), weight_decay=decay)], 11)

    def steps(params: list[Tensor], bound: Any, first: int, last: int) -> None:
        for step in range(first, last + 1):
            generator = torch.Generator().manual_seed(step)
            for parameter in params:
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            bound.step(torch.tensor(1e-2), step)

    whole, resumed = parameters(), parameters()
    bound = bind(whole)
    steps(whole, bound, 1, 6)
    before = bind(resumed)
    steps(resumed, before, 1, 3)
    saved = {name: tensor.clone() for name, tensor in before.state_dict().items()}
    after = bind(resumed)
    after.load_state_dict(saved)
    steps(resumed, after, 4, 6)
    for one, two in zip(whole, resumed, strict=True):
        assert torch.equal(one, two), "3 steps, save, load and 3 steps differ from 6 steps"
    for name, tensor in bound.state_dict().items():
        assert torch.equal(tensor, after.state_dict()[name]), f"state {name!r} differs after a round trip"
    still = parameters()
    quiet = bind(still, decay=0.0)
    for parameter in still:
        parameter.grad = torch.zeros_like(parameter)
    quiet.step(torch.tensor(1e-2), 1)
    for one, two in zip(parameters(), still, strict=True):
        assert torch.equal(one, two), "a parameter moved without a gradient"
    held = sum(tensor.nbytes for tensor in bound.state_dict().values())
    said = sum(map(optimizer.state_bytes, shapes, called))
    assert abs(held - said) <= 0.05 * held + 4096, f"state_bytes says {said}, the state holds {held}"


def check_schedule(schedule: Schedule) -> None:
    """1 at the start, never above 1 nor below 0, never rising."""
    values = [schedule(number / 100) for number in range(101)]
    assert values[0] == 1.0, f"the shape starts at {values[0]}, not at 1"
    assert all(-1e-9 <= value <= 1 for value in values), "the shape leaves [0, 1]"
    assert all(later <= earlier + 1e-12 for earlier, later in itertools.pairwise(values)), "the shape rises"


def check_logger(logger: Logger) -> None:
    """Every kind of record is taken, with no more than ``kind`` and ``step`` in it, close may be called twice, a state is JSON."""
    for kind in RECORDS:
        logger.log({"kind": kind, "step": 1})
    if isinstance(logger, KeepsState):
        plain(logger.state(), "the state")
    logger.close()
    logger.close()


def check_parallelism(ranks: Sequence[Parallelism]) -> None:
    """``ranks`` are those of one run, in order: each knows its place, and the shares of a step's rows have nothing in common, are
    of one size, leave nothing out and are the same when asked again. Nothing is communicated here: ``sum`` and ``wrap`` want a test
    of their own, but for a single process, whose sums change nothing."""
    world, rows = len(ranks), list(range(3 * len(ranks)))
    shares = []
    for number, one in enumerate(ranks):
        assert one.world_size == world, f"rank {number} says that there are {one.world_size} processes, not {world}"
        assert one.rank == number, f"rank {number} calls itself {one.rank}"
        shares.append(list(one.rows(rows)))
        assert shares[-1] == list(one.rows(rows)), f"rank {number} takes other rows when it is asked again"
        assert isinstance(one.device(), torch.device), f"rank {number}: device() gives {one.device()!r}, no torch.device"
    taken = [row for share in shares for row in share]
    assert len(taken) == len(set(taken)), f"two ranks take one row: {shares}"
    assert set(taken) == set(rows), f"no rank takes {sorted(set(rows) - set(taken))}"
    assert {len(share) for share in shares} == {3}, f"the ranks' shares differ in size: {shares}"
    if world == 1:
        value = torch.tensor([1.5, -2.0])
        assert torch.equal(ranks[0].sum(value), value), "the sum over a single process changes a value"
