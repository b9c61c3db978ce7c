"""From runs to one file: the data as JSON inside the page, beside its style and its script."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import surogate_core
from surogate_command_report.read import Run
from surogate_command_report.thin import short, thin

CURVES = (
    ("loss", "Loss", "nats per token"),
    ("lr", "Learning rate", ""),
    ("grad_norm", "Gradient norm", "before clipping"),
    ("tokens_per_s", "Speed", "tokens per second"),
    ("memory", "Peak memory", "bytes"),
    ("gpu/util", "GPU utilisation", "%"),
    ("moe_load_imbalance", "Busiest expert", "times its share"),
    ("moe_expert_utilisation", "Experts used", "share"),
    ("moe_aux_loss", "Load-balancing loss", ""),
)
MOST_EVENTS = 400
"""Events of a run that are listed; the rest is counted."""
MOST_GENERATIONS = 40
"""Texts of a run that are shown, the newest."""


def write_page(runs: Sequence[Run], path: Path) -> Path:
    """Write the page aside, then rename it."""
    aside = path.with_name(f".{path.name}.partial")
    aside.write_text(render(runs), encoding="utf-8")
    aside.replace(path)
    return path


def render(runs: Sequence[Run]) -> str:
    files = resources.files(__package__)
    data = {
        "curves": [curve for curve in CURVES if any(any(v is not None for v in run.columns.get(curve[0], ())) for run in runs)],
        "runs": [_run(run) for run in runs],
        "version": surogate_core.__version__,
    }
    parts = {
        "@title@": html.escape(" · ".join(run.name for run in runs)),
        "/*style*/": (files / "page.css").read_text(encoding="utf-8"),
        "/*script*/": (files / "page.js").read_text(encoding="utf-8"),
        # "<" cannot end the element, and no line separator ends a literal
        "/*data*/": json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"),
    }
    page = (files / "page.html").read_text(encoding="utf-8")
    for mark, text in parts.items():
        page = page.replace(mark, text)
    return page


def _run(run: Run) -> dict[str, Any]:
    steps = run.columns["step"]
    listed = [event for event in run.events if event["kind"] != "checkpoint"]
    return {
        "name": run.name,
        "directory": str(run.directory),
        "curves": {name: thin(steps, run.columns[name]) for name, *_ in CURVES if name in run.columns},
        "evals": [[step, short(loss)] for step, loss in run.evals if loss is not None],
        "phases": [*run.phases, (steps[-1], "")] if run.phases else [],
        "events": listed[:MOST_EVENTS],
        "more_events": max(0, len(listed) - MOST_EVENTS),
        "checkpoints": [event["step"] for event in run.events if event["kind"] == "checkpoint"][-MOST_EVENTS:],
        "figures": _figures(run),
        "plan": _plan(run),
        "memory_plan": [[name, size] for name, size in (run.run.get("memory") or {}).items() if size],
        "ledger": {side: run.ledger[side] for side in ("rows", "tokens") if side in run.ledger},
        "pieces": [[length, count] for length, count in run.ledger.get("pieces", {}).items() if count],
        "time": _seconds(run),
        "parts": _parts(run),
        "observers": _observers(run),
        "config": _config(run),
        "plugins": run.run.get("plugins") or {},
        "notices": run.notices[:60],
        "generations": [_generation(made) for made in run.generations[-MOST_GENERATIONS:]],
        "next": run.end.get("next") or [],
    }


def _last(values: Sequence[Any]) -> Any:
    return next((value for value in reversed(values) if value is not None), None)


def _highest(values: Sequence[Any]) -> Any:
    return max((value for value in values if value is not None), default=None)


def _figures(run: Run) -> list[list[Any]]:
    """What stands at the top: (label, value, unit)."""
    losses = [loss for _, loss in run.evals if loss is not None]
    tokens = sum(value or 0 for value in run.columns["tokens"])
    seconds = sum(value or 0 for value in run.columns["seconds"])
    rows = [
        ["steps", run.columns["step"][-1], f"of {run.run.get('steps', '?')}"],
        ["loss", short(_last(run.columns["loss"])), "nats per token"],
        ["best evaluation", short(min(losses)) if losses else None, "nats per token"],
        ["tokens", tokens or None, ""],
        ["speed", short(tokens / seconds) if seconds else None, "tokens/s"],
        ["peak memory", _highest(run.columns["memory"]), "bytes"],
    ]
    state = run.end.get("stopped") or run.end.get("failed") or ("finished" if run.end else "no end recorded")
    return [["ended", state, ""], *(row for row in rows if row[1] is not None)]


def _plan(run: Run) -> list[list[Any]]:
    """Plan against measured: (what, planned, measured)."""
    told = run.run
    planned = sum((told.get("memory") or {}).values()) or None
    tokens = [value for value in run.columns["tokens"] if value]
    rows = [
        ["memory, bytes", planned, _highest(run.columns["memory"])],
        ["tokens a step", told.get("tokens_per_step"), short(sum(tokens) / len(tokens)) if tokens else None],
        ["steps", told.get("steps"), run.columns["step"][-1]],
    ]
    return [row for row in rows if row[1] is not None and row[2] is not None]


def _seconds(run: Run) -> list[list[Any]]:
    return [[name, round(value, 3)] for name, value in (run.end.get("seconds") or {}).items() if value]


def _parts(run: Run) -> list[list[Any]]:
    """Mean milliseconds a step by part, of ``debug_time_breakdown``."""
    timed = {name.removeprefix("ms/"): values for name, values in run.columns.items() if name.startswith("ms/")}
    steps = sum(any(value is not None for value in row) for row in zip(*timed.values(), strict=True))
    means = [[name, short(sum(value or 0.0 for value in values) / steps)] for name, values in timed.items()] if steps else []
    return means


def _observers(run: Run) -> list[list[Any]]:
    count = max(1, len(run.columns["step"]))
    return [[name, short(1000 * seconds / count)] for name, seconds in (run.end.get("plugins_s") or {}).items()]


def _generation(made: Mapping[str, Any]) -> list[str]:
    """Checkpoint and temperature, prompt, text."""
    warm = f", temperature {made['temperature']}, seed {made.get('seed')}" if made.get("temperature") else ""
    return [f"{made.get('checkpoint', '')}{warm}", str(made.get("prompt", "")), str(made.get("text", ""))]


def _config(run: Run) -> list[list[Any]]:
    origins = run.run.get("origins") or {}
    return [[key, json.dumps(value), origins.get(key, "")] for key, value in sorted((run.run.get("config") or {}).items())]
