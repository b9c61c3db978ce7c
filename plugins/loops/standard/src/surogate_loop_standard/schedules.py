"""Learning rates: pure functions of the step.

Step t of n (t from 0) has the rate ``final + (base - final) · shape(progress)``. Warmup is linear from 0: step t has
``base · (t + 1) / warmup``, so that no step is spent at rate 0. The shape then runs over what remains, from progress 0 at the first
step after the warmup towards 1 at the end of the run, which no step reaches. With ``cooldown_steps`` the tail of any shape goes
linearly from *the rate reached there* to the final rate, without a jump.
"""

from __future__ import annotations

import math

from surogate_core.config.options import CoreOptions
from surogate_core.contracts import Schedule
from surogate_core.errors import PlanError


def warmup_steps(core: CoreOptions, total: int) -> int:
    return core.warmup_steps or round(core.warmup_ratio * total)


def cooldown_steps(core: CoreOptions, total: int) -> int:
    """Steps of the linear tail; `wsd` has one of a tenth of the run where none is set."""
    return core.cooldown_steps or (math.ceil(0.1 * total) if core.lr_scheduler_type == "wsd" else 0)


def check_length(core: CoreOptions, total: int) -> None:
    """Raises PlanError where warmup and cooldown do not fit into a run whose length the data decide; ``max_steps`` was checked with
    the configuration."""
    warmup = warmup_steps(core, total)
    if core.max_steps < 0 and warmup + core.cooldown_steps > total:
        raise PlanError(
            f"warmup ({warmup} steps) and cooldown_steps ({core.cooldown_steps}) are longer than the run: "
            f"the data give {total} steps",
            where="warmup_steps, warmup_ratio, cooldown_steps",
            how="lower them, raise num_epochs, or set max_steps",
        )


def learning_rate(core: CoreOptions, shape: Schedule, step: int, total: int) -> float:
    """Rate of optimizer step ``step`` (0 to ``total`` - 1)."""
    warmup, cooldown = warmup_steps(core, total), cooldown_steps(core, total)
    base, final = core.learning_rate, core.learning_rate * core.final_lr_fraction

    def before_cooldown(at: int) -> float:
        if at < warmup:
            return base * (at + 1) / warmup
        return final + (base - final) * shape(min(1.0, (at - warmup) / max(1, total - warmup)))

    start = total - cooldown
    if cooldown and step >= start:
        reached = before_cooldown(start)
        return reached + (final - reached) * (step - start) / cooldown
    return before_cooldown(step)
