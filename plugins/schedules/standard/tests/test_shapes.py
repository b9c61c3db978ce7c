"""Learning rates against closed forms written here on their own."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import pytest
import torch
from surogate_loop_standard.schedules import learning_rate

from surogate_core import testing
from surogate_core.host import load_host


def rates(total: int, **options: object) -> list[float]:
    context = testing.context(**options)  # type: ignore[arg-type]
    offer = load_host().offer("schedules", context.config.lr_scheduler_type)
    return [learning_rate(context.config, offer.load()(None, context), step, total) for step in range(total)]


@pytest.mark.parametrize("name", ["linear", "cosine", "constant", "wsd"])
def test_conforms(name: str) -> None:
    offer = load_host().offer("schedules", name)
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


@pytest.mark.parametrize(
    ("name", "total", "warmup", "cooldown", "final"),
    [
        ("linear", 100, 0, 0, 0.0),
        ("linear", 60, 7, 0, 0.1),
        ("linear", 97, 10, 20, 0.0),
        ("cosine", 100, 0, 0, 0.0),
        ("cosine", 83, 9, 0, 0.25),
        ("cosine", 120, 12, 40, 0.1),
        ("wsd", 100, 0, 0, 0.0),
        ("wsd", 95, 5, 0, 0.2),  # a tenth of 95 steps is 10, rounded up
        ("wsd", 80, 8, 30, 0.0),
        ("constant", 50, 0, 0, 0.0),
        ("constant", 50, 5, 0, 0.3),
        ("constant", 64, 6, 16, 0.5),
    ],
)
def test_closed_forms(name: str, total: int, warmup: int, cooldown: int, final: float) -> None:
    """Every step, in rational arithmetic but for the cosine; and no jump beyond the steepest of the three slopes."""
    base = Fraction(3, 1000)
    low = base * Fraction(final).limit_denominator(100)

    def shaped(step: int) -> float | Fraction:
        if step < warmup:
            return base * (step + 1) / warmup
        share = Fraction(step - warmup, total - warmup)
        if name == "linear":
            return base - (base - low) * share
        return float(low + base) / 2 + float(base - low) / 2 * math.cos(math.pi * share) if name == "cosine" else base

    tail = cooldown or (-(-total // 10) if name == "wsd" else 0)
    start = total - tail
    wanted = [
        float(shaped(t) if t < start or not tail else shaped(start) * (total - t) / tail + low * (t - start) / tail)
        for t in range(total)
    ]
    options = {"warmup_steps": warmup, "cooldown_steps": cooldown, "final_lr_fraction": final}
    found = rates(total, learning_rate=float(base), lr_scheduler_type=name, **options)
    assert found == pytest.approx(wanted, rel=1e-12)
    rise = 1 / warmup if warmup else 0.0
    fall = max(math.pi / 2 / (total - warmup) if name != "constant" else 0.0, 1 / tail if tail else 0.0)
    assert all(-fall - 1e-12 <= (later - earlier) / float(base) <= rise + 1e-12 for earlier, later in itertools.pairwise(found))
