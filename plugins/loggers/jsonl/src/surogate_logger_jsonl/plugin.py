"""What this plugin offers: the logger ``jsonl``, in force when ``log_file`` is set."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import field, frozen

from surogate_core.errors import Problem
from surogate_core.hookspecs import hookimpl
from surogate_core.offers import Offer, doc

if TYPE_CHECKING:
    from surogate_core.config import Config


@frozen(kw_only=True)
class Options:
    """Options of the logger `jsonl`."""

    log_file: str | None = field(default=None, metadata=doc("JSON Lines file for the run's records. Unset: no such file."))


@hookimpl
def register_loggers() -> list[Offer]:
    build = "surogate_logger_jsonl.logger:build"
    return [Offer("jsonl", Options, build=build, summary="The run's records, one JSON object a line (`log_file`).")]


@hookimpl
def check_config(config: Config) -> list[Problem]:
    """``report_to`` asks for a file that has no name."""
    asked = "jsonl" in (config.core.report_to or ())
    if not asked or config.of(Options).log_file:
        return []
    return [Problem('report_to names "jsonl", but log_file is not set', where="report_to", how='set log_file = "train.jsonl"')]
