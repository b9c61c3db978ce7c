"""Loss curves to try the diagnostics on: recorded ones (``curves.json``, from ``record_curves.py``), and made ones with one
property each. Every made curve is drawn from its own seed."""

from __future__ import annotations

import functools
import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from surogate_observer_diagnostics.observer import Facts

Records = list[dict[str, Any]]


@functools.cache
def recorded() -> dict[str, dict[str, Any]]:
    return json.loads((Path(__file__).parent / "curves.json").read_text())


def real(name: str) -> tuple[Records, Facts]:
    curve = recorded()[name]
    records: Records = []
    evals = dict(map(tuple, curve["evals"]))
    for step, (loss, norm, rate) in enumerate(zip(curve["loss"], curve["grad_norm"], curve["lr"], strict=True), 1):
        records.append(one(step, loss, norm, rate, curve["steps"], curve["tokens"]))
        records[-1] |= {name: curve[name][step - 1] for name in ("moe_load_imbalance", "moe_expert_utilisation") if name in curve}
        if step in evals:
            records.append({"kind": "eval", "step": step, "loss": evals[step]})
    return records, Facts(
        parameters=curve["parameters"],
        warmup=curve["warmup"],
        clips="max_grad_norm" in curve["change"],
        crowd=curve.get("crowd", 1.0),
    )


def one(step: int, loss: float, norm: float = 1.0, rate: float = 1e-3, total: int = 0, tokens: int = 1000) -> dict[str, Any]:
    return {"kind": "step", "step": step, "loss": loss, "grad_norm": norm, "lr": rate, "total_steps": total, "tokens": tokens}


def made(
    seed: int,
    steps: int,
    level: Callable[[int], float],
    noise: float = 0.05,
    norm: Callable[[int], float] = lambda step: 1.0,
    rate: Callable[[int], float] = lambda step: 1e-3,
    evals: int = 0,
    eval_level: Callable[[int], float] | None = None,
    load: Callable[[int], float] | None = None,
    used: Callable[[int], float] = lambda step: 1.0,
    tokens: int = 1000,
) -> Records:
    """``level``: the loss without its noise. ``evals``: steps between evaluations, which have a hundredth of the noise. ``load``
    and ``used``: how a mixture of experts spreads its ``tokens``."""
    draw = random.Random(seed)
    records: Records = []
    for step in range(1, steps + 1):
        loss = level(step) + draw.gauss(0, noise)
        records.append(one(step, loss, norm(step) * math.exp(draw.gauss(0, 0.1)), rate(step), steps, tokens))
        if load is not None:
            records[-1] |= {"moe_load_imbalance": load(step) * math.exp(draw.gauss(0, 0.1)), "moe_expert_utilisation": used(step)}
        if evals and step % evals == 0:
            records.append({"kind": "eval", "step": step, "loss": (eval_level or level)(step) + draw.gauss(0, noise / 100)})
    return records


def power(start: float, end: float, scale: float) -> Callable[[int], float]:
    """What losses of healthy runs look like: a power law above a floor (Kaplan et al. 2020)."""
    return lambda step: end + (start - end) * (1 + step / scale) ** -0.5


def falls(start: float, end: float, scale: float) -> Callable[[int], float]:
    return lambda step: end + (start - end) * math.exp(-step / scale)


MADE: dict[str, Callable[[], Records]] = {
    # healthy: none of these may ever be stopped or lose its rate for good
    "power law": lambda: made(1, 5000, power(9, 2, 60)),
    "power law with evaluations": lambda: made(2, 5000, power(9, 2, 60), evals=100),
    "very slow": lambda: made(3, 6000, lambda s: 2.5 - 0.03 * s / 1000, noise=0.03),
    "very slow with evaluations": lambda: made(4, 6000, lambda s: 2.5 - 0.01 * s / 1000, noise=0.05, evals=100),
    "very slow and noisy": lambda: made(5, 4000, lambda s: 2.5 - 0.03 * s / 1000, noise=0.2),
    "fast": lambda: made(6, 600, falls(9, 1, 80)),
    "noise of single rows": lambda: made(8, 3000, power(9, 2, 60), noise=0.4),
    "periods of epochs": lambda: made(9, 4000, lambda s: power(9, 2, 60)(s) + 0.05 * math.sin(s / 60), evals=100),
    # comes to a level and falls on from there: stopped there
    "two descents": lambda: made(7, 3000, lambda s: falls(9, 4, 100)(s) if s < 900 else falls(4, 2, 200)(s - 900), evals=100),
    # faults
    "one spike": lambda: made(20, 2000, lambda s: power(9, 2, 60)(s) + (4 if s == 1200 else 0)),
    "spikes in a row": lambda: made(21, 1500, lambda s: power(9, 2, 60)(s) + (3 if s > 800 and s % 30 < 2 else 0)),
    "gradient explodes": lambda: made(22, 1000, power(9, 2, 60), norm=lambda s: 50.0 if s in (500, 530, 560) else 1.0),
    "level jumps": lambda: made(23, 1500, lambda s: power(9, 2, 60)(s) + (3 if s > 700 else 0)),
    "flat from the start": lambda: made(24, 4000, lambda s: 5.5, noise=0.01),
    "flat after learning": lambda: made(25, 4000, lambda s: max(2.0, 9 - s / 60), noise=0.02, evals=100),
    "flat after learning, without evaluations": lambda: made(26, 4000, lambda s: max(2.0, 9 - s / 60), noise=0.02),
    "rises slowly": lambda: made(27, 2500, lambda s: power(9, 2, 60)(s) + max(0, s - 800) / 300),
    "oscillates": lambda: made(28, 1500, lambda s: falls(9, 3, 80)(s) + (0.8 * math.sin(s) if s > 600 else 0)),
    "gradients vanish": lambda: made(29, 1500, lambda s: max(3.0, 9 - s / 50), noise=0.01, norm=lambda s: 1.0 if s < 400 else 1e-5),
    "gradients grow": lambda: made(30, 800, power(9, 2, 60), norm=lambda s: 2.0 ** (s / 30)),
    "overfits": lambda: made(31, 4000, falls(5, 0.2, 600), evals=100, eval_level=lambda s: 3 + 2 * math.exp(-s / 300) + s / 8000),
    # a mixture of experts: eight experts, one for each token
    "experts specialise": lambda: made(33, 1500, power(9, 2, 60), load=lambda s: 3.2 - 2 * math.exp(-s / 300)),
    "few tokens for many experts": lambda: made(34, 600, power(9, 2, 60), load=lambda s: 5.5, used=lambda s: 0.4, tokens=60),
    "experts fall away": lambda: made(35, 1200, power(9, 2, 60), load=lambda s: 2.5, used=lambda s: max(0.25, 1 - s / 1000)),
    "experts collapse": lambda: made(36, 1200, power(9, 2, 60), load=lambda s: 1.3 + 6 / (1 + math.exp((600 - s) / 50))),
    "experts waver": lambda: made(37, 1200, power(9, 2, 60), load=lambda s: 7.0 if s % 200 < 15 else 1.5),
    "diverges and comes back": lambda: made(32, 2000, lambda s: power(9, 2, 60)(s) + (1.5 if 800 < s < 920 else 0)),
}
