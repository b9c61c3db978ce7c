"""The parallelism ``single``, and the options of sharding. With one process a shard is the whole tensor, so that they change no
number of a run; they say what offloading may take off the device."""

from __future__ import annotations

from attrs import field, frozen

from surogate_core.hookspecs import hookimpl
from surogate_core.offers import Offer, between, doc


@frozen(kw_only=True)
class Sharding:
    """What is divided among the processes: one setting, which the flags raise. For plugins whose options depend on it."""

    zero_level: int = field(
        default=1,
        validator=between(1, 3),
        metadata=doc(
            "What is sharded: 1 the optimizer's state, 2 gradients besides, 3 weights besides. With one process a shard is the "
            "whole tensor and no number changes; `offload_grads` needs 2, `persistent_quants` 3."
        ),
    )
    shard_gradients: bool = field(default=False, metadata=doc("`zero_level` is 2 at least."))
    shard_weights: bool = field(
        default=False,
        metadata=doc(
            "`zero_level` is 3: what a recipe makes of a weight is not kept for its next use, unless `persistent_quants` is set."
        ),
    )

    @property
    def level(self) -> int:
        """The level in force, 1 to 3."""
        return max(self.zero_level, 2 if self.shard_gradients else 1, 3 if self.shard_weights else 1)

    @property
    def gradients(self) -> bool:
        return self.level >= 2

    @property
    def weights(self) -> bool:
        return self.level >= 3


@hookimpl
def register_parallelisms() -> list[Offer]:
    return [
        Offer("single", Sharding, build="surogate_distributed_single.single:build", summary="One process, one device."),
    ]
