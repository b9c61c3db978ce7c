"""A report as a table, as JSON and as a picture."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

import attrs
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from surogate_command_recipe.figures import Report


def rows(report: Report) -> tuple[Sequence[str], list[Sequence[str]]]:
    """Headers, and a line for each layer and operand."""
    headers = ("layer", "operand", "error", "clipped", "zeroed", "y", "dx", "dW", "gradient cosine")
    found: list[Sequence[str]] = []
    for name, layer in report.layers.items():
        products = [f"{layer.products[one]:.4f}" for one in ("y", "dx", "dW")]
        whole = [*products, "" if layer.gradient is None else f"{layer.gradient:.5f}"]
        for number, (operand, made) in enumerate(layer.operands.items()):
            own = [operand, f"{made.error:.4f}", f"{made.clipped:.3%}", f"{made.zeroed:.3%}"]
            found.append([name if number == 0 else "", *own, *(whole if number == 0 else [""] * 4)])
        if not layer.operands:
            found.append([name, "", "", "", "", *whole])
    return headers, found


def summary(report: Report) -> list[str]:
    """What the whole comes to, a line each."""
    one, other = report.with_recipe, report.plain
    how = (
        "emulated, which says nothing about the speed or memory of a GPU that has the format" if report.emulated else report.device
    )
    bounds = ", ".join(f"{name} {bound:g}" for name, bound in report.bounds.items())
    return [
        f"gradient cosine of the whole model against plain products: {report.gradient:.6f}",
        f"loss over the later half of {len(one.losses)} steps: {report.loss_gap:+.3%} against plain products",
        f"step: {one.seconds:.3f} s, {one.seconds / other.seconds:.2f} x plain; tensors: {one.memory / 1e6:.1f} MB, "
        f"{one.memory / other.memory:.2f} x plain ({how})",
        f"bounds that {report.recipe} declares: {bounds or 'none'}",
    ]


def write(report: Report, directory: Path) -> None:
    """``report.json`` and ``report.png``."""
    directory.mkdir(parents=True, exist_ok=True)
    worst = {name: {"value": value, "where": where} for name, (value, where) in report.worst().items()}
    content = {**attrs.asdict(report), "loss_gap": report.loss_gap, "worst": worst, "past": report.past()}
    (directory / "report.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    picture(report, directory / "report.png")


def picture(report: Report, path: Path) -> None:
    """Errors by layer on the left, losses by step on the right."""
    figure = Figure(figsize=(12, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(2, 1))
    places = range(len(report.layers))
    series: dict[str, list[float]] = {}
    for layer in report.layers.values():
        for name, made in layer.operands.items():
            series.setdefault(name, []).append(made.error)
        for name, error in layer.products.items():
            series.setdefault(f"{name} (product)", []).append(error)
    for name, errors in series.items():
        dashed = "--" if name.endswith("(product)") else "-"
        left.plot(places, errors, dashed, marker="o", markersize=3, linewidth=1, label=name)
    left.set_xticks(list(places), _short(report.layers), rotation=90, fontsize=6)
    left.set_ylabel("relative error")
    left.set_ylim(bottom=0)
    left.grid(alpha=0.3)
    left.legend(fontsize=7)
    for name, run in ((report.recipe, report.with_recipe), ("plain products", report.plain)):
        right.plot(range(1, len(run.losses) + 1), run.losses, linewidth=1, label=f"{name}: {statistics.fmean(run.losses):.4f}")
    right.set_xlabel("step")
    right.set_ylabel("loss (nats per token)")
    right.grid(alpha=0.3)
    right.legend(fontsize=7)
    figure.savefig(path, format="png", dpi=120)


def _short(names: Iterable[str]) -> list[str]:
    """Without what says nothing: ``model.layers.3.mlp.up_proj`` → ``3.mlp.up_proj``."""
    return [name.split("layers.", 1)[-1] for name in names]
