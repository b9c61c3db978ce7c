"""``early_stop``: four criteria. A run that still improves, however slowly, is never stopped by three of them.

What "does not improve" means is said once, in ``Evals.still`` and ``Stops.stands_still``: evaluations, whose texts are the same
each time, tell it best; where there are none, the training loss must be shown to fall by less than ``early_stop_improvement``.
"""

from __future__ import annotations

import math

from attrs import Factory, define

from surogate_observer_diagnostics.options import Options
from surogate_observer_diagnostics.signals import Level, Stretch

FLOPS = 6
"""Floating-point operations per parameter and token, forward and backward (Kaplan et al. 2020, arXiv:2001.08361, table 1)."""
BLOCK = 100
"""Steps over which the fall of the loss per FLOP is measured."""
BLOCKS = 3
"""Blocks that must have stopped paying, together."""


@define
class Evals:
    """Evaluation losses so far, and for how many in a row the convergence score was above its threshold."""

    steps: list[int] = Factory(list)
    losses: list[float] = Factory(list)
    converged: int = 0

    def see(self, step: int, loss: float, options: Options) -> str | None:
        """Takes one evaluation; says so when the criterion of convergence is met."""
        self.steps.append(step)
        self.losses.append(loss)
        score = self.score(options)
        still = self.still(options.early_stop_evals)
        self.converged = self.converged + 1 if score > options.early_stop_score and still else 0
        if self.converged < options.early_stop_evals:
            return None
        last = self.losses[-options.early_stop_evals :]
        return (
            f"early_stop, convergence: score {score:.3f} above {options.early_stop_score:g} for {self.converged} evaluations, "
            f"the last ones between {min(last):.4f} and {max(last):.4f}, the best {min(self.losses):.4f} at step "
            f"{self.steps[self.losses.index(min(self.losses))]}"
        )

    def score(self, options: Options) -> float:
        """1 minus the share of the whole fall of the loss that the last evaluations brought. In [0, 1]."""
        if len(self.losses) <= options.early_stop_evals:
            return 0.0
        before, whole = min(self.losses[: -options.early_stop_evals]), self.losses[0] - min(self.losses)
        recent = max(0.0, before - min(self.losses[-options.early_stop_evals :]))
        return 1.0 - min(1.0, recent / whole) if whole > 0 else 1.0

    def noise(self) -> float:
        """Standard deviation of an evaluation, from second differences: a trend, however slow, is no noise."""
        if len(self.losses) < 4:
            return math.inf
        triples = zip(self.losses, self.losses[1:], self.losses[2:], strict=False)
        squares = sorted((a - 2 * b + c) ** 2 / 6 for a, b, c in triples)
        return math.sqrt(squares[len(squares) // 2] / 0.455)

    def still(self, count: int) -> bool:
        """Whether the last ``count`` evaluations brought no improvement on what was before them beyond noise."""
        if len(self.losses) <= count:
            return False
        return min(self.losses[:-count]) - min(self.losses[-count:]) <= 2 * self.noise()

    def since(self, step: int) -> int:
        return sum(one > step for one in self.steps)


@define
class Stops:
    """The criteria that are looked at after each step."""

    sums: float = 0.0
    count: int = 0
    tokens: int = 0
    blocks: list[float] = Factory(list)
    best: float = 0.0
    falls: list[float] = Factory(list)

    def see(
        self, step: int, loss: float, tokens: int, parameters: int, stretch: Stretch, level: Level, evals: Evals, options: Options
    ) -> str | None:
        self._pay(loss, tokens, parameters)
        if level.diverging >= options.early_stop_divergence:
            mean = sum(level.losses) / len(level.losses)
            return (
                f"early_stop, divergence: the mean loss is {mean:.4f}, {mean / (level.best or math.nan) - 1:.0%} above the best "
                f"{level.best:.4f} of step {level.best_step}, for {level.diverging} steps"
            )
        if level.diverging or not self.stands_still(stretch, evals, options):
            return None
        figures = "the loss falls by {:.3%} to {:.3%} in 500 steps".format(*(max(-9.99, one) for one in stretch.rate(2.0)))
        if stretch.n >= options.early_stop_plateau:
            return f"early_stop, plateau: {stretch.n} steps since step {stretch.start}, {figures}"
        now = sum(self.falls[-BLOCKS:]) / BLOCKS
        if (
            stretch.n >= BLOCK * BLOCKS
            and self.best > 0
            and len(self.falls) > BLOCKS
            and now < options.early_stop_efficiency * self.best
        ):
            share = f"{now / self.best:.0%} of the best, {self.best:.3g}"
            return f"early_stop, efficiency: {now:.3g} nats per FLOP in {BLOCK * BLOCKS} steps, {share}; {figures}"
        return None

    def stands_still(self, stretch: Stretch, evals: Evals, options: Options) -> bool:
        """A plateau, and more than the look of one: ``early_stop_evals`` evaluations in it brought nothing, or, where there are
        none at all, the training loss surely falls by less than ``early_stop_improvement``."""
        if not stretch.flat(options.plateau_improvement, 2.0, options):
            return False
        if evals.losses:
            count = evals.since(stretch.start)
            return count >= options.early_stop_evals and evals.still(count)
        return stretch.flat(options.early_stop_improvement, 3.0, options)

    def _pay(self, loss: float, tokens: int, parameters: int) -> None:
        """Fall of the mean loss from block to block, per FLOP."""
        self.sums, self.count, self.tokens = self.sums + loss, self.count + 1, self.tokens + tokens
        if self.count < BLOCK:
            return
        mean = self.sums / self.count
        if self.blocks:
            self.falls.append((self.blocks[-1] - mean) / (FLOPS * parameters * max(1, self.tokens)))
            self.best = max(self.best, self.falls[-1])
            del self.falls[:-8]
        self.blocks = [mean]
        self.sums, self.count, self.tokens = 0.0, 0, 0
