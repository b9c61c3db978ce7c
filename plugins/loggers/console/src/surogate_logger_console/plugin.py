"""What this plugin offers: the logger ``console``, and an observer that draws the loss curve when the run ends.

The observer's functions keep one :class:`~surogate_logger_console.curve.Curve` for each output directory between the start and
the end of a run; an output directory belongs to one run at a time.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surogate_core.hookspecs import hookimpl
from surogate_core.offers import Offer
from surogate_logger_console.curve import Curve, read_curve

if TYPE_CHECKING:
    from surogate_core.contracts import RunInfo

_curves: dict[Path, Curve] = {}


@hookimpl
def register_loggers() -> list[Offer]:
    return [
        Offer("console", None, build="surogate_logger_console.console:build", summary="Lines and a progress line on the terminal.")
    ]


@hookimpl
def run_started(run: RunInfo) -> None:
    _curves[run.output_dir] = read_curve(run.output_dir / "metrics.jsonl", run.resumed) if run.resumed else Curve()


@hookimpl
def step_finished(run: RunInfo, record: dict[str, Any]) -> None:
    _curves[run.output_dir].add(record)


@hookimpl
def evaluated(run: RunInfo, record: dict[str, Any]) -> None:
    _curves[run.output_dir].add(record)


@hookimpl
def checkpoint_saved(run: RunInfo, step: int) -> None:
    _curves[run.output_dir].checkpoints.append(step)


@hookimpl
def run_finished(run: RunInfo) -> None:
    curve = _curves.pop(run.output_dir)
    if len(curve.train) < 2:
        return
    if not run.quiet:
        from surogate_logger_console.curve import draw

        room = {"columns": shutil.get_terminal_size().columns} if run.terminal else {}
        print("\n" + draw(curve, **room), flush=True)
    from surogate_logger_console.picture import write_picture

    path = run.output_dir / "loss.png"
    write_picture(curve, path)
    if not run.quiet:
        print(f"picture: {path}", flush=True)
