"""The optimizer ``normuon``. The rates and decays of its AdamW part are options of the core (``adamw_beta1`` ...)."""

from __future__ import annotations

from attrs import field, frozen

from surogate_core.hookspecs import hookimpl
from surogate_core.offers import Offer, between, doc


@frozen(kw_only=True)
class Options:
    """Options of the optimizer `normuon`."""

    normuon_momentum: float = field(
        default=0.95, validator=between(0, 0.999999), metadata=doc("Decay of the momentum of hidden matrices.")
    )
    normuon_beta2: float = field(
        default=0.95, validator=between(0, 0.999999), metadata=doc("Decay of the mean square of each row's update.")
    )
    normuon_cautious_wd: bool = field(
        default=True, metadata=doc("Decay only those weights that the update also makes smaller. False: decay all of them.")
    )


@hookimpl
def register_optimizers() -> list[Offer]:
    return [
        Offer(
            "normuon",
            Options,
            build="surogate_optimizer_normuon.update:build",
            summary="Orthogonalised momentum with a rate for each row on hidden matrices, adamw_8bit on the rest.",
        )
    ]
