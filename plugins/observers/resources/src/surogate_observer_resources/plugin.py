"""What this plugin offers: the observer ``resources``."""

from __future__ import annotations

from attrs import field, frozen

from surogate_core.hookspecs import hookimpl
from surogate_core.offers import Offer, doc, ge


@frozen(kw_only=True)
class Options:
    """Options of the observer ``resources``. None of them can change the result of a run."""

    log_gpu_util: int = field(
        default=100, validator=ge(0), metadata=doc("Steps between readings of the GPU through NVML; 0 is never.", passive=True)
    )
    debug_time_breakdown: bool = field(
        default=False,
        metadata=doc(
            "Record the milliseconds of each part of a step. On a GPU every part is waited for, so steps get slower.", passive=True
        ),
    )


@hookimpl
def register_observers() -> list[Offer]:
    build = "surogate_observer_resources.observer:build"
    return [Offer("resources", Options, build=build, summary="Peak memory, GPU utilisation, milliseconds by part of a step.")]
