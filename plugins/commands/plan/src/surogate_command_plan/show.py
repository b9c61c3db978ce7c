"""How memory is printed."""

from __future__ import annotations

from collections.abc import Mapping

from surogate_command_plan.tally import HOST, Peak

ORDER = (
    "weights",
    "quantised weights",
    "adapter",
    "masters",
    "gradients",
    "optimizer",
    "activations",
    "head",
    "scratch",
    "batch",
    "framework",
)
"""The buffers, as they are printed."""


def bytes_of(size: float) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.2f} {unit}"
    return f"{size:.0f} B"


def memory_lines(columns: Mapping[str, Peak], layers: int = 0) -> list[str]:
    """One line a buffer, one column a peak, and the sums. ``layers``: those that the activations are of."""
    titles = [title.replace("backward, ", "back, ") for title in columns]
    names = [name for name in ORDER if any(peak.parts.get(name) for peak in columns.values())]
    lines = [f"{'memory':<18}" + "".join(f"{title:>18}" for title in titles)]
    for name in names:
        sizes = [peak.parts.get(name, 0) for peak in columns.values()]
        each = sizes[0] / layers if name == "activations" and layers else 0
        note = f"   {layers} blocks of {bytes_of(each)}" if each >= 1000 else ""
        lines.append(_line(name, sizes) + note)
    lines.append(_line("together", [peak.total for peak in columns.values()]))
    away = [peak.parts.get(HOST, 0) for peak in columns.values()]
    return [*lines, *([_line(HOST, away)] if any(away) else [])]


def _line(name: str, sizes: list[int]) -> str:
    return f"  {name:<18}" + "".join(f"{bytes_of(size):>{16 if not at else 18}}" for at, size in enumerate(sizes))
