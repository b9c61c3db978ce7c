"""What this plugin offers: the observer ``diagnostics``, and its answer to how many epochs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from surogate_core.contracts import Decision
from surogate_core.errors import Problem
from surogate_core.hookspecs import hookimpl
from surogate_core.offers import Offer
from surogate_observer_diagnostics.options import Options

if TYPE_CHECKING:
    from surogate_core.config import Config
    from surogate_core.contracts import Batches
    from surogate_core.plan import Plan

TOKENS_PER_PARAMETER = 20
"""Hoffmann et al. 2022 (arXiv:2203.15556), table 3."""


@hookimpl
def register_observers() -> list[Offer]:
    build = "surogate_observer_diagnostics.observer:build"
    return [Offer("diagnostics", Options, build=build, summary="Phases, advice, early stopping, cuts of the learning rate.")]


@hookimpl
def check_config(config: Config) -> list[Problem]:
    if not (config.of(Options).epoch_adjustment and config.core.lora):
        return []
    what = "epoch_adjustment counts 20 tokens for each parameter of a model that is trained whole; this run trains an adapter"
    return [Problem(what, where="epoch_adjustment = true, lora = true", how="remove epoch_adjustment, or set lora = false")]


@hookimpl
def data_ready(plan: Plan, training: Batches) -> Decision | None:
    core = plan.config.core
    if not plan.config.of(Options).epoch_adjustment or core.max_steps >= 0:
        return None
    tokens = training.rows * core.sequence_len * training.fill
    budget = TOKENS_PER_PARAMETER * plan.figures.parameters
    epochs = max(1, round(budget / max(1.0, tokens)))
    reason = f"20 x {plan.figures.parameters:,} parameters = {budget:,} tokens, and an epoch has {tokens:,.0f}"
    return Decision(reason=f"epoch_adjustment: {reason}", epochs=epochs)
