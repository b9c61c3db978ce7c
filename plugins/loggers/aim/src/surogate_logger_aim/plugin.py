"""What this plugin offers: the logger ``aim``, in force when ``report_to`` names it."""

from __future__ import annotations

from attrs import field, frozen

from surogate_core.hookspecs import hookimpl
from surogate_core.offers import Offer, doc


@frozen(kw_only=True)
class Options:
    """Options of the logger `aim`."""

    aim_experiment: str | None = field(default=None, metadata=doc("Aim experiment. Unset: Aim's own, `default`."))
    aim_repo: str | None = field(
        default=None,
        metadata=doc(
            "Aim repository: a directory or `aim://host:port`. Unset: the nearest one upwards from the working directory, or a new "
            "one in it."
        ),
    )
    aim_name: str | None = field(default=None, metadata=doc("Name of the run in Aim. Unset: `run_name`."))


@hookimpl
def register_loggers() -> list[Offer]:
    build = "surogate_logger_aim.logger:build"
    return [Offer("aim", Options, build=build, summary='A local or remote Aim repository (`report_to = ["aim"]`).')]
