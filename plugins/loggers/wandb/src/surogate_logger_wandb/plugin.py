"""What this plugin offers: the logger ``wandb``, in force when ``report_to`` names it."""

from __future__ import annotations

from attrs import field, frozen

from surogate_core.hookspecs import hookimpl
from surogate_core.offers import Offer, doc


@frozen(kw_only=True)
class Options:
    """Options of the logger `wandb`."""

    wandb_project: str | None = field(
        default=None, metadata=doc("Weights & Biases project. Unset: `WANDB_PROJECT`, or what wandb makes of it.")
    )
    wandb_name: str | None = field(
        default=None, metadata=doc("Name of the run in Weights & Biases. Unset: `WANDB_NAME`, or `run_name`.")
    )


@hookimpl
def register_loggers() -> list[Offer]:
    build = "surogate_logger_wandb.logger:build"
    return [Offer("wandb", Options, build=build, summary='Weights & Biases, offline without a key (`report_to = ["wandb"]`).')]
