"""The optimizer ``adamw_8bit``. Its rates and decays are options of the core (``adamw_beta1`` ...)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import field, frozen
from surogate_distributed_single.plugin import Sharding

from surogate_core.errors import Problem
from surogate_core.hookspecs import hookimpl
from surogate_core.offers import Offer, doc, normal_name

if TYPE_CHECKING:
    from surogate_core.config import Config
    from surogate_core.plan import Plan

OFFLOADED = ("offload_optimizer", "offload_master", "offload_grads")
STATES = OFFLOADED[:2]
HOW = ("use_zero_copy", "use_write_combined")


@frozen(kw_only=True)
class Options:
    """Options of `optimizer = "adamw_8bit"`."""

    offload_optimizer: bool = field(
        default=False,
        metadata=doc("Keep the moments in pinned memory of the host; each step brings them to the GPU piece by piece."),
    )
    offload_master: bool = field(
        default=False,
        metadata=doc('Keep what `master_dtype = "fp32"` adds to bfloat16 weights in pinned memory of the host.'),
    )
    offload_grads: bool = field(
        default=False,
        metadata=doc(
            "Keep gradients in pinned memory of the host: each goes there when a backward pass has completed it, and comes back "
            "for the update. Needs `shard_gradients` or `zero_level` 2."
        ),
    )
    use_zero_copy: bool = field(
        default=False, metadata=doc("Let the kernel read and write offloaded states where they are, without copies to the GPU.")
    )
    use_write_combined: bool = field(
        default=False, metadata=doc("Keep offloaded states and gradients in memory that the host's caches leave alone.")
    )


@hookimpl
def register_optimizers() -> list[Offer]:
    return [
        Offer(
            "adamw_8bit",
            Options,
            build="surogate_optimizer_adamw_8bit.update:build",
            summary="AdamW with both moments in 8 bits, 256 values a block: about 2 bytes of state per parameter.",
        )
    ]


@hookimpl
def check_config(config: Config) -> list[Problem]:
    """Options of offloading that have nothing to work on."""
    own, core = config.of(Options), config.core
    problems = []
    if own.offload_grads and not config.of(Sharding).gradients:
        what = "offload_grads = true needs gradients that are sharded, with one process as well; this run has zero_level = 1"
        how = "set shard_gradients = true or zero_level = 2, or offload_grads = false"
        problems.append(Problem(what, where=_place(config, "offload_grads"), how=how))
    if normal_name(core.optimizer) != "adamw_8bit":
        for key in (*OFFLOADED, *HOW):
            if getattr(own, key):
                what = f'{key} = true with optimizer = "{core.optimizer}": only adamw_8bit keeps something in the host\'s memory'
                how = f'set optimizer = "adamw_8bit", or {key} = false'
                problems.append(Problem(what, where=_place(config, key), how=how))
        return problems
    if own.offload_master and (core.master_dtype != "fp32" or core.model_dtype != "bf16" or core.lora):
        what = "offload_master = true: this run has no masters; they are float32 ones of bfloat16 weights that are all trained"
        how = 'set master_dtype = "fp32" with model_dtype = "bf16" and lora = false, or offload_master = false'
        problems.append(Problem(what, where=_place(config, "offload_master"), how=how))
    for key in HOW:
        if getattr(own, key) and not any(getattr(own, name) for name in (STATES if key == "use_zero_copy" else OFFLOADED)):
            offloaded = "states" if key == "use_zero_copy" else "states and gradients"
            what = f"{key} = true says how {offloaded} are offloaded, and none is"
            how = f"set offload_optimizer = true, or {key} = false"
            problems.append(Problem(what, where=_place(config, key), how=how))
    if own.use_zero_copy and core.kernels == "reference":
        what = 'use_zero_copy = true with kernels = "reference": only the native kernel reads the memory of the host'
        problems.append(Problem(what, where=_place(config, "use_zero_copy"), how='set kernels = "auto", or use_zero_copy = false'))
    return problems


@hookimpl
def check_plan(plan: Plan, device: str) -> list[Problem]:
    config = plan.config
    if device == "cuda" or normal_name(config.core.optimizer) != "adamw_8bit":
        return []
    own = config.of(Options)
    return [
        Problem(
            f"{key} = true needs a GPU: this run computes on the CPU, whose memory is the host's",
            where=_place(config, key),
            how=f"set {key} = false, or run on a GPU",
        )
        for key in OFFLOADED
        if getattr(own, key)
    ]


def _place(config: Config, key: str) -> str:
    return f"{config.origins.get(key, 'default')}, key {key}"
