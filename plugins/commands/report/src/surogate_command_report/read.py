"""The records of one output directory, sorted for a page."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from attrs import Factory, define

from surogate_core.errors import Refused

EXPERTS = ("moe_load_imbalance", "moe_expert_utilisation", "moe_aux_loss")
FIELDS = ("step", "loss", "lr", "grad_norm", "tokens_per_s", "memory", "tokens", "seconds", *EXPERTS)
"""Fields of a ``step`` record that become columns, beside those of its objects ``gpu`` and ``ms``."""


class ReportError(Refused):
    """There is nothing to report on."""


@define
class Run:
    """``columns``: a value a step for each field, None where it has none. ``phases``: (first step, phase). ``events``: what was
    said or done at a step. ``generations``: what ``surogate generate`` kept. The other fields are the records of their kinds, the
    last of each."""

    directory: Path
    columns: dict[str, list[Any]] = Factory(lambda: {name: [] for name in FIELDS})
    evals: list[tuple[int, float | None]] = Factory(list)
    phases: list[tuple[int, str]] = Factory(list)
    events: list[dict[str, Any]] = Factory(list)
    notices: list[str] = Factory(list)
    run: dict[str, Any] = Factory(dict)
    ledger: dict[str, Any] = Factory(dict)
    end: dict[str, Any] = Factory(dict)
    generations: list[dict[str, Any]] = Factory(list)

    @property
    def name(self) -> str:
        return str(self.run.get("run_name") or self.directory.name)


def number(value: Any) -> float | None:
    """A finite number; records have "nan" and "inf" as texts."""
    return value if isinstance(value, int | float) and math.isfinite(value) else None


def read_run(directory: Path) -> Run:
    """Raises ReportError for a directory without a ``metrics.jsonl`` or with no step in it. Torn lines are passed over."""
    path = directory / "metrics.jsonl"
    run = Run(directory)
    try:
        for record in _records(path):
            _take(run, record)
    except OSError as error:
        how = "give the output_dir of a run"
        raise ReportError(f"{path.name} cannot be read: {error.strerror}", where=str(directory), how=how) from error
    if not run.columns["step"]:
        raise ReportError("no step is recorded", where=str(path), how="wait for the first step, or give another output_dir")
    generated = directory / "generations.jsonl"
    run.generations.extend(_records(generated) if generated.is_file() else ())
    return run


def _records(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as lines:
        for line in lines:
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict):
                yield record


def _take(run: Run, record: Mapping[str, Any]) -> None:
    kind = record.get("kind")
    if kind == "step":
        _step(run, record)
    elif kind == "eval":
        run.evals.append((record["step"], number(record.get("loss"))))
    elif kind in ("run", "ledger", "end"):
        setattr(run, kind, dict(record))
    elif kind in ("decision", "checkpoint") or (kind == "notice" and "step" in record):
        text = {"decision": "reason", "checkpoint": "path", "notice": "text"}[kind]
        event = {"step": record["step"], "kind": kind, "text": str(record.get(text, ""))}
        run.events.append(
            {**event, **{key: record[key] for key in ("owner", "stop", "scale_lr", "advice", "phase") if key in record}}
        )
    elif kind == "notice":
        run.notices.append(str(record.get("text", "")))


def _step(run: Run, record: Mapping[str, Any]) -> None:
    nested = {f"{group}/{key}": value for group in ("gpu", "ms") for key, value in (record.get(group) or {}).items()}
    before = len(run.columns["step"])
    for name in nested:
        run.columns.setdefault(name, [None] * before)
    for name, values in run.columns.items():
        values.append(number(nested[name] if name in nested else record.get(name)))
    phase = record.get("phase")
    if phase and (not run.phases or run.phases[-1][1] != phase):
        run.phases.append((record["step"], phase))
