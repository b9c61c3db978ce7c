"""Records as text. Every field is optional: what a record does not have is not printed."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

WHOLE = ("next", "output", "checkpoint", "checkpoints")
"""Labels of lines that are never folded."""


def duration(seconds: float) -> str:
    """``7s``, ``3m05s``, ``2h04m``."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def count(number: float) -> str:
    """``812``, ``10.6k``, ``1.23M``, ``4.5B``."""
    for limit, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= limit:
            return f"{number / limit:.3g}{unit}"
    return f"{number:g}"


def _fields(record: Mapping[str, Any], *formats: tuple[str, str]) -> list[str]:
    return [text.format(record[key]) for key, text in formats if record.get(key) is not None]


def size(number: float) -> str:
    """Bytes: ``812 B``, ``10.6 kB``, ``1.23 GB``."""
    text = count(number)
    return f"{text[:-1]} {text[-1].replace('B', 'G')}B" if text[-1].isalpha() else f"{text} B"


def banner(run: Mapping[str, Any]) -> list[str]:
    """The ``run`` record: what is about to happen."""
    lines = []

    def line(label: str, *parts: str) -> None:
        text = ", ".join(part for part in parts if part)
        if text:
            lines.append(f"{label:<13}{text}")

    line("run", *_fields(run, ("run_name", "{}")))
    line("task", " ".join(_fields(run, ("task", "{}"), ("why", "({})"))))
    line("model", " ".join(_fields(run, ("model", "{}"), ("model_type", "({})"))))
    if _has(run, "trainable", "parameters"):
        line("parameters", f"{count(run['trainable'])} trainable of {count(run['parameters'])}")
    line("computation", *_fields(run, ("recipe", "recipe {}"), ("dtype", "{}"), ("device", "on {}"), ("adapter", "adapter {}")))
    line("kernels", *run.get("kernels") or ())
    for text in run.get("slots") or ():
        line("layers", text)
    line("optimizer", *_fields(run, ("optimizer", "{}"), ("seed", "seed {}")))
    if _has(run, "micro_batch", "accumulation", "ranks"):
        micro, accumulation, ranks = run["micro_batch"], run["accumulation"], run["ranks"]
        sizes = f"{micro * accumulation * ranks} rows = micro-batch {micro} × accumulation {accumulation} × ranks {ranks}"
        line("batch", sizes, *_fields(run, ("tokens_per_step", "{:,} tokens a step")))
    line("data", *_fields(run, ("rows", "{:,} rows"), ("fill", "{:.1%} full"), ("validation_rows", "{:,} rows for validation")))
    line(
        "steps",
        *_fields(run, ("steps", "{:,}"), ("epochs", "{:g} epochs")),
        f"from step {run['resumed']}" if run.get("resumed") else "",
    )
    if memory := run.get("memory"):
        buffers = ", ".join(f"{name} {size(bytes_)}" for name, bytes_ in memory.items())
        line("memory", f"{size(sum(memory.values()))} are kept in tensors: {buffers}")
    line("output", *_fields(run, ("output_dir", "{}")))
    if run.get("checkpoint_dir") != run.get("output_dir"):
        line("checkpoints", *_fields(run, ("checkpoint_dir", "{}")))
    return lines


STEP = (
    ("epoch", "epoch {:.2f}", 6),
    ("loss", "loss {:.4f}", 1),
    ("lr", "lr {:.3g}", 4),
    ("grad_norm", "norm {:.3g}", 5),
    ("tokens_per_s", "{:,.0f} tokens/s", 3),
    ("memory", "{}", 8),
    ("gpu", "gpu {:.0f}%", 7),
    ("waits", "waits {:.0%}", 10),
    ("phase", "{}", 9),
    ("left", "left {}", 2),
)
"""Figures of the step line, in its order: field, how it is written, and its place among those that stay where there is no room."""


def step_line(record: Mapping[str, Any], total: int | None, eta: float | None, width: int | None = None) -> str:
    """In at most ``width`` columns, if at least the step fits: the least important figures are left out."""
    shown = {**record, "left": None if eta is None else duration(eta), "gpu": (record.get("gpu") or {}).get("util")}
    shown["memory"] = None if record.get("memory") is None else size(record["memory"])
    if record.get("seconds") and "data_seconds" in record:
        shown["waits"] = record["data_seconds"] / record["seconds"]
    figures = [(text.format(shown[key]), rank) for key, text, rank in STEP if shown.get(key) is not None]
    parts = [(f"step {record['step']}" + (f"/{total}" if total else ""), 0), *figures]
    while width and len(parts) > 1 and len("  ".join(text for text, _ in parts)) > width:
        parts.remove(max(parts, key=lambda part: part[1]))
    return "  ".join(text for text, _ in parts)


def eval_line(record: Mapping[str, Any]) -> str:
    figures = ("step", "step {}"), ("loss", "loss {:.4f}"), ("perplexity", "perplexity {:.4g}"), ("tokens", "{:,} tokens")
    return "  ".join(["eval", *_fields(record, *figures)])


def checkpoint_line(record: Mapping[str, Any]) -> str:
    best = ["best so far"] if record.get("best") else []
    return "  ".join(["checkpoint", *_fields(record, ("step", "step {}"), ("path", "{}")), *best])


def ledger_line(record: Mapping[str, Any]) -> str:
    """``data  rows: 90 kept, 10 dropped; tokens: ...``: every side of the ledger that is an object of counts."""
    sides = []
    for side, counts in record.items():
        if isinstance(counts, Mapping):
            told = [f"{number:,} {fate}" for fate, number in counts.items() if isinstance(number, (int, float)) and number]
            sides += [f"{side}: {', '.join(told)}"] if told else []
    return "data  " + "; ".join(sides)


def decision_line(record: Mapping[str, Any]) -> str:
    what = "stop" if record.get("stop") else " ".join(_fields(record, ("scale_lr", "learning rate × {:g}")))
    return "  ".join(
        part for part in ["decision", what, *_fields(record, ("step", "step {}"), ("reason", "{}"), ("owner", "by {}"))] if part
    )


def summary(end: Mapping[str, Any], first_loss: float | None, run: Mapping[str, Any] = {}, peak: int | None = None) -> list[str]:
    """The ``end`` record: what came out and where it is. ``first_loss`` is that of the first step, if this run made it; ``run`` is
    the record of the start, ``peak`` the most bytes that a step told of."""
    lines = []

    def line(label: str, *parts: str) -> None:
        if parts:
            lines.append(f"{label:<13}{', '.join(parts)}")

    line("failed", *_fields(end, ("failed", "{}")))
    line("stopped", *_fields(end, ("stopped", "{}")))
    last = end.get("loss")
    fall = [f"from {first_loss:.4f} ({(last / first_loss - 1) * 100:+.1f} %)"] if last is not None and first_loss else []
    line("loss", *_fields(end, ("loss", "{:.4f}")), *fall)
    best = " ".join(_fields(end, ("best_loss", "best {:.4f}"), ("best_step", "at step {}")))
    line("evaluation", *_fields(end, ("eval_loss", "{:.4f}")), *([best] if best else []))
    line("tokens", *_fields(end, ("tokens", "{:,}"), ("tokens_per_s", "{:,.0f} a second")))
    line("time", *(f"{phase} {duration(seconds)}" for phase, seconds in (end.get("seconds") or {}).items()))
    steps = end.get("steps") or 0
    slow = {name: 1000 * seconds / steps for name, seconds in (end.get("plugins_s") or {}).items()} if steps else {}
    line("plugins", *(f"{name} {taken:.2f} ms a step" for name, taken in slow.items() if taken >= 0.005))
    if peak:
        whole = "" if run.get("device") == "cuda" else " (the whole process)"
        line(
            "memory",
            f"peak {size(peak)}{whole}",
            *([f"{size(sum(run['memory'].values()))} of it kept in tensors"] if run.get("memory") else []),
        )
    line("first step", *_fields(end, ("first_step", "{:.1f}s after the start")))
    line("versions", *versions(run.get("plugins") or {}))
    line("output", *_fields(end, ("output_dir", "{}")))
    line("checkpoint", *_fields(end, ("checkpoint", "{}")))
    for command in end.get("next") or ():
        line("next", command)
    return lines


def versions(plugins: Mapping[str, str]) -> list[str]:
    """``surogate 0.1 and 31 plugins of this version``, then the others by name."""
    core = plugins.get("surogate")
    same = sum(version == core for version in plugins.values()) - 1
    others = [f"{name} {version}" for name, version in plugins.items() if version != core]
    return [f"surogate {core}" + (f" and {same} plugins of this version" if same else ""), *others] if core else others


def fold(text: str, width: int) -> str:
    """Lines of at most ``width`` columns, broken between words and continued under the text; what is to be copied (a command, a
    path) stays whole."""
    if len(text) <= width or text[:13].strip() in WHOLE:
        return text
    indent = " " * (13 if text[:13].endswith(" ") and width >= 60 else 2)
    return "\n".join(textwrap.wrap(text, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False))


def _has(record: Mapping[str, Any], *keys: str) -> bool:
    return all(record.get(key) is not None for key in keys)
