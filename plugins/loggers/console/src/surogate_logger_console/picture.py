"""The loss curve as a PNG. matplotlib is imported here and nowhere else, through its Agg canvas: no display, no global state."""

from __future__ import annotations

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from surogate_logger_console.curve import Curve

PLACE = 0.08, 0.11, 0.9, 0.86
"""Left, bottom, width, height of the axes, as shares of the picture: a layout that is computed draws everything twice."""


def write_picture(curve: Curve, path: Path) -> None:
    figure = Figure(figsize=(8, 4.5))
    FigureCanvasAgg(figure)
    axes = figure.add_axes(PLACE)
    axes.plot(*zip(*curve.train, strict=True), linewidth=1, color="tab:blue", label="training")
    if curve.evals:
        axes.plot(*zip(*curve.evals, strict=True), marker="o", markersize=4, color="tab:orange", label="evaluation")
    for index, step in enumerate(curve.checkpoints):
        axes.axvline(step, linewidth=0.5, linestyle=":", color="gray", label="checkpoint" if index == 0 else None)
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats per token)")
    axes.grid(alpha=0.3)
    axes.legend(loc="upper right")  # where a falling loss leaves room: looking for the best place takes long with many steps
    aside = path.with_name(path.name + ".new")
    figure.savefig(aside, format="png", dpi=120)
    aside.replace(path)
