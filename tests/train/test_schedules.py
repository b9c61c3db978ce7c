"""Learning rates against closed forms written here on their own."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from surogate_core import testing
from surogate_core.host import load_host
from surogate_core.train.schedules import learning_rate


def rates(total: int, **options: object) -> list[float]:
    context = testing.context(**options)  # type: ignore[arg-type]
    offer = load_host(discover=False).offer("schedules", context.config.lr_scheduler_type)
    return [learning_rate(context.config, offer.load()(None, context), step, total) for step in range(total)]


@pytest.mark.parametrize("name", ["linear", "cosine", "wsd"])
def test_conforms(name: str) -> None:
    offer = load_host(discover=False).offer("schedules", name)
    testing.check_schedule(offer.load()(None, testing.context()))


def test_linear_equals_torch() -> None:
    parameter = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([parameter], lr=3e-4)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=1.0, end_factor=0.1, total_iters=50)
    wanted = []
    for _ in range(50):
        wanted.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert rates(50, learning_rate=3e-4, final_lr_fraction=0.1) == pytest.approx(wanted, rel=1e-9)


def test_cosine_equals_torch() -> None:
    parameter = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([parameter], lr=1e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=40, eta_min=2e-4)
    wanted = []
    for _ in range(40):
        wanted.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    found = rates(40, learning_rate=1e-3, lr_scheduler_type="cosine", final_lr_fraction=0.2)
    assert found == pytest.approx(wanted, rel=1e-9)


def test_warmup_is_linear_from_zero_and_no_step_is_lost() -> None:
    found = rates(20, learning_rate=1.0, warmup_steps=4)
    assert found[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert found[-1] == pytest.approx(1 / 16)


def test_warmup_steps_override_the_ratio() -> None:
    assert rates(20, learning_rate=1.0, warmup_ratio=0.5, warmup_steps=2)[:2] == pytest.approx([0.5, 1.0])
    assert rates(20, learning_rate=1.0, warmup_ratio=0.2)[3] == pytest.approx(1.0)


def test_wsd_is_constant_then_falls_over_the_last_tenth() -> None:
    found = rates(100, learning_rate=1.0, lr_scheduler_type="wsd", final_lr_fraction=0.5)
    assert found[:91] == pytest.approx([1.0] * 91)
    assert found[91:] == pytest.approx([1.0 - 0.05 * number for number in range(1, 10)])


def test_cooldown_starts_at_the_rate_reached_there() -> None:
    found = rates(100, learning_rate=1.0, lr_scheduler_type="cosine", cooldown_steps=20, final_lr_fraction=0.1)
    reached = 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 0.8))
    assert found[80] == pytest.approx(reached)
    assert found[99] == pytest.approx(reached + (0.1 - reached) * 19 / 20)
    jumps = [abs(later - earlier) for earlier, later in itertools.pairwise(found)]
    assert max(jumps) < 0.02
