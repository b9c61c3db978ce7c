"""What can be told from losses and gradient norms alone. Everything here is plain numbers, so that it survives JSON bit for bit.

Losses are nats per token. Each ``see`` takes one optimizer step, in order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import fmean
from typing import Any

from attrs import Factory, define

from surogate_observer_diagnostics.options import Options

HORIZON = 500
"""Improvement is told as what the loss would fall in this many steps."""


TOKENS = 8
"""Tokens that an expert gets of a step, with an even load, for the step to say something about the router."""


def deviation(values: Sequence[float]) -> float:
    """Standard deviation of a sample; 0 for fewer than two values."""
    if len(values) < 2:
        return 0.0
    mean = fmean(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))


def jumps(values: Sequence[float]) -> float:
    """Standard deviation from step to step (von Neumann): what is left when a trend, even a bent one, is taken away."""
    if len(values) < 2:
        return 0.0
    return math.sqrt(fmean([(two - one) ** 2 for one, two in pairwise(values)]) / 2)


def push(values: list[float], value: float, size: int) -> None:
    values.append(value)
    if len(values) > size:
        del values[0]


@define
class Spikes:
    """Losses and norms that are far above those just before. ``recent``: steps of the spikes of the last two windows."""

    losses: list[float] = Factory(list)
    norms: list[float] = Factory(list)
    recent: list[int] = Factory(list)

    def see(self, step: int, loss: float, norm: float | None, options: Options) -> str | None:
        """Says what is wrong with this step, with the figures. A spike enters the window no higher than its bound, so that one
        does not hide the next, and a lasting change of level is one in the end."""
        said = []
        if not math.isfinite(loss) or (norm is not None and not math.isfinite(norm)):
            said.append(f"loss {loss}, gradient norm {norm}")
            loss, norm = (loss if math.isfinite(loss) else None), None  # type: ignore[assignment]
        if loss is not None:
            bound = math.inf
            if len(self.losses) >= 20:
                mean, sigma = fmean(self.losses), deviation(self.losses)
                bound = max(mean + options.spike_sigma * sigma, mean + options.spike_rise * abs(mean))
                if loss > bound:
                    said.append(
                        f"loss {loss:.4f} above {bound:.4f} (mean {mean:.4f}, deviation {sigma:.4f} of {len(self.losses)} steps)"
                    )
            push(self.losses, min(loss, bound), options.diagnostics_window)
        if norm is not None:
            bound = math.inf
            if len(self.norms) >= 20:
                mean = fmean(self.norms)
                bound = options.grad_explosion * mean
                if norm > bound > 0:
                    said.append(f"gradient norm {norm:.4g} above {options.grad_explosion:g} x {mean:.4g}")
            push(self.norms, min(norm, bound), options.diagnostics_window)
        self.recent = [old for old in self.recent if old > step - 2 * options.diagnostics_window]
        if said:
            self.recent.append(step)
        return "; ".join(said) or None


@define
class Stretch:
    """A straight line through the losses since ``start``, from running sums. It starts anew whenever the run is seen to improve,
    so its length is that of a plateau, once it is one."""

    start: int = 0
    n: int = 0
    base: float = 0.0
    x: float = 0.0
    y: float = 0.0
    xx: float = 0.0
    xy: float = 0.0
    yy: float = 0.0
    last: list[float] = Factory(list)

    def see(self, step: int, loss: float, options: Options) -> None:
        if self.n == 0:
            self.start, self.base = step, loss
        dx, dy = float(step - self.start), loss - self.base
        self.n, self.x, self.y = self.n + 1, self.x + dx, self.y + dy
        self.xx, self.xy, self.yy = self.xx + dx * dx, self.xy + dx * dy, self.yy + dy * dy
        push(self.last, loss, options.diagnostics_window)
        if self.n >= options.diagnostics_window and self._improves(options):
            self.restart()

    def restart(self) -> None:
        self.n = 0
        self.x = self.y = self.xx = self.xy = self.yy = 0.0
        self.last = []

    def rate(self, errors: float) -> tuple[float, float]:
        """Least and greatest fall in HORIZON steps that the line allows, as shares of the loss, with so many standard errors."""
        if self.n < 3:
            return -math.inf, math.inf
        spread = self.xx - self.x * self.x / self.n
        slope = (self.xy - self.x * self.y / self.n) / spread
        left = max(0.0, self.yy - self.y * self.y / self.n - slope * (self.xy - self.x * self.y / self.n))
        error = math.sqrt(left / (self.n - 2) / spread)
        level = max(abs(self.base + self.y / self.n), 1e-12)
        return (-slope - errors * error) * HORIZON / level, (-slope + errors * error) * HORIZON / level

    def flat(self, improvement: float, errors: float, options: Options) -> bool:
        """Long enough, and surely slower than ``improvement``: not merely that no improvement can be seen. The line must be known
        that well, too: noise that happens to rise is no proof."""
        least, greatest = self.rate(errors)
        known = greatest - least < 2 * improvement
        return self.n >= options.plateau_steps and known and greatest < improvement and least <= 0

    def _improves(self, options: Options) -> bool:
        if self.rate(3.0)[0] > 0:
            return True
        if self.n < 2 * len(self.last):
            return False
        mean = self.base + self.y / self.n
        error = deviation(self.last) / math.sqrt(len(self.last))
        return mean - fmean(self.last) > max(4 * error, options.plateau_improvement * abs(mean) / 10)


@define
class Level:
    """How high the loss is, how far it jumps, and where the norm goes. ``diverging`` counts consecutive steps."""

    losses: list[float] = Factory(list)
    norms: list[float] = Factory(list)
    best: float | None = None
    best_step: int = 0
    calm: float | None = None
    noise: float = 0.0
    diverging: int = 0

    def see(self, step: int, loss: float, norm: float | None, options: Options) -> None:
        push(self.losses, loss, options.diagnostics_window)
        if norm is not None and norm > 0:
            push(self.norms, norm, 2 * options.diagnostics_window)
        if len(self.losses) < options.diagnostics_window:
            return
        mean = fmean(self.losses)
        if self.best is None or mean < self.best:
            self.best, self.best_step = mean, step
        error = 3 * deviation(self.losses) / math.sqrt(len(self.losses))
        above = mean - self.best > max(options.divergence_rise * abs(self.best), error)
        self.diverging = self.diverging + 1 if above else 0
        self.noise = jumps(self.losses)
        if step % options.diagnostics_window == 0 and self.noise > 0 and not above:
            self.calm = self.noise if self.calm is None else min(self.calm, self.noise)

    def jumpy(self, options: Options) -> bool:
        """Jumps much farther than in the calmest window, and by more than a twentieth of the loss."""
        return self.calm is not None and self.noise > max(options.unstable_noise * self.calm, 0.05 * abs(fmean(self.losses)))

    def trend(self) -> float:
        """Times the gradient norm grew from the first to the last quarter of its window (geometric means); 1 if unknown."""
        quarter = len(self.norms) // 4
        if quarter < 5:
            return 1.0
        logs = [math.log(norm) for norm in self.norms]
        return math.exp(fmean(logs[-quarter:]) - fmean(logs[:quarter]))


@define
class Experts:
    """How a mixture of experts spreads its tokens, in the last steps: ``load`` is the tokens of the busiest expert over the mean,
    ``used`` the share of experts that get any, both means over layers. ``collapsed`` counts consecutive steps."""

    load: list[float] = Factory(list)
    used: list[float] = Factory(list)
    collapsed: int = 0

    def see(self, record: Mapping[str, Any], crowd: float, options: Options) -> None:
        """``crowd``: experts over experts a token. A step in which an even router gives an expert fewer than ``TOKENS`` tokens says
        nothing."""
        load, used = record.get("moe_load_imbalance"), record.get("moe_expert_utilisation")
        if load is None or used is None or record.get("tokens", 0) < TOKENS * crowd:
            return
        push(self.load, float(load), options.diagnostics_window)
        push(self.used, float(used), options.diagnostics_window)
        if len(self.load) == options.diagnostics_window and crowd > 1:  # the load of an expert that all tokens go to
            uneven = fmean(self.load) > 1 + options.moe_collapse * (crowd - 1)
            self.collapsed = self.collapsed + 1 if uneven or fmean(self.used) < options.moe_collapse else 0

    def said(self, crowd: float, options: Options) -> str:
        """The figures, once the collapse has lasted; else empty."""
        if self.collapsed < options.moe_collapse_steps:
            return ""
        load, used = fmean(self.load), fmean(self.used)
        return (
            f"{self.collapsed} steps so far; the busiest expert of a layer has {load:.1f} times its share, {crowd:.3g} is all,"
            f" and {used:.0%} of the experts get tokens"
        )
