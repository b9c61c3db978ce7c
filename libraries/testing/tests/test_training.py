"""Optimizers, schedules, loggers and parallelisms that break one promise each, and what the check says of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from surogate_testing import check_logger, check_optimizer, check_parallelism, check_schedule
from torch import Tensor


class Momentum:
    """An update rule with one float32 state a value."""

    def __init__(self, fault: str):
        self.fault = fault

    def state_bytes(self, shape: tuple[int, ...], name: str = "") -> int:
        values = torch.Size(shape).numel()
        return values if self.fault == "understates" else 4 * values

    def bind(self, groups: Any, seed: int) -> Any:
        params, fault = groups[0].params, self.fault
        velocities = [torch.zeros_like(parameter) for parameter in params]

        class State:
            def step(self, lr: Tensor, step: int) -> None:
                with torch.no_grad():
                    for parameter, velocity in zip(params, velocities, strict=True):
                        velocity.mul_(0.9).add_(parameter.grad)
                        parameter.sub_(lr * (velocity + (1e-3 if fault == "restless" else 0.0)))

            def state_dict(self) -> dict[str, Tensor]:
                return {} if fault == "forgets" else {str(number): velocity for number, velocity in enumerate(velocities)}

            def load_state_dict(self, state: dict[str, Tensor]) -> None:
                for number, velocity in enumerate(velocities):
                    if str(number) in state:
                        velocity.copy_(state[str(number)])

        return State()


OPTIMIZERS = {
    "": "",
    "forgets": "3 steps, save, load and 3 steps differ from 6 steps",
    "restless": "a parameter moved without a gradient",
    "understates": "state_bytes says 6212, the state holds 24848",
}


@pytest.mark.parametrize("fault", OPTIMIZERS)
def test_optimizer(fault: str) -> None:
    optimizer: Any = Momentum(fault)
    if not fault:
        check_optimizer(optimizer)
        return
    with pytest.raises(AssertionError, match=OPTIMIZERS[fault]):
        check_optimizer(optimizer)


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        (lambda progress: 1.0 - progress if progress < 0.5 else 0.8, "rises"),
        (lambda progress: 0.9, "starts at 0.9, not at 1"),
        (lambda progress: 1.0 - 2 * progress, "leaves"),
    ],
)
def test_schedule(shape: Callable[[float], float], said: str) -> None:
    check_schedule(lambda progress: 1.0 - progress)
    with pytest.raises(AssertionError, match=said):
        check_schedule(shape)


class Logger:
    def __init__(self, fault: str):
        self.fault, self.open = fault, True

    def log(self, record: dict[str, Any]) -> None:
        if self.fault == "picky":
            record["loss"]

    def close(self) -> None:
        if self.fault == "once" and not self.open:
            raise RuntimeError("closed already")
        self.open = False

    def state(self) -> dict[str, Any]:
        return {"id": ("a", "b") if self.fault == "tuple" else ["a", "b"]}


LOGGERS: dict[str, tuple[type[Exception], str]] = {
    "picky": (KeyError, "loss"),
    "once": (RuntimeError, "closed already"),
    "tuple": (AssertionError, "the state does not survive JSON"),
}


@pytest.mark.parametrize("fault", LOGGERS)
def test_logger(fault: str) -> None:
    good: Any = Logger("")
    check_logger(good)
    kind, said = LOGGERS[fault]
    with pytest.raises(kind, match=said):
        check_logger(Logger(fault))  # type: ignore[arg-type]


class Rank:
    def __init__(self, rank: int, world: int, fault: str):
        self.rank, self.world_size, self.fault, self.asked = rank, world, fault, 0

    def device(self) -> Any:
        return "cpu" if self.fault == "device" else torch.device("cpu")

    def wrap(self, model: Any) -> Any:
        return model

    def sum(self, value: Tensor) -> Tensor:
        return value * 2 if self.fault == "sum" else value

    def rows(self, rows: list[Any]) -> Any:
        self.asked += 1
        mine = rows[self.rank :: self.world_size]
        if self.fault == "moves" and self.asked > 1:
            return iter(mine[::-1])
        return iter({"all": rows, "drops": mine[1:], "first": rows[:3]}.get(self.fault, mine))


PARALLELISMS = {
    "rank": "rank 1 calls itself 0",
    "world": "rank 0 says that there are 3 processes, not 2",
    "device": "device.. gives 'cpu', no torch.device",
    "all": "two ranks take one row",
    "drops": r"no rank takes \[0, 1\]",
    "moves": "rank 0 takes other rows when it is asked again",
}


def ranks(fault: str, world: int = 2) -> Any:
    own = [0] * world if fault == "rank" else range(world)
    return [Rank(number, 3 if fault == "world" else world, fault) for number in own]


@pytest.mark.parametrize("fault", PARALLELISMS)
def test_parallelism(fault: str) -> None:
    check_parallelism(ranks(""))
    with pytest.raises(AssertionError, match=PARALLELISMS[fault]):
        check_parallelism(ranks(fault))


def test_a_single_process_sums_nothing() -> None:
    check_parallelism(ranks("", 1))
    with pytest.raises(AssertionError, match="the sum over a single process changes a value"):
        check_parallelism(ranks("sum", 1))
