"""The names under which loggers show the figures of a record: one table for all of them, in ``docs/metrics.md``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

GROUPS = {"step": "train"}
"""Kinds whose curves are not called after the kind itself."""
NO_CURVES = ("run", "ledger", "checkpoint", "notice", "decision", "end")
"""Kinds that are told once each: settings and events."""
NO_FIGURES = ("kind", "step", "total_steps")


def curves(record: Mapping[str, Any]) -> dict[str, Any]:
    """``{"train/loss": 5.3, ...}`` of a ``step`` record, ``{"eval/loss": ...}`` of an ``eval`` record; fields of an object become
    ``train/object/field``. Numbers and texts only. Empty for settings and events."""
    kind = str(record.get("kind"))
    figures = {key: value for key, value in record.items() if key not in NO_FIGURES}
    return {} if kind in NO_CURVES else _flat(GROUPS.get(kind, kind), figures)


def _flat(prefix: str, value: Any) -> dict[str, Any]:
    if isinstance(value, Mapping):
        return {name: one for key, inner in value.items() for name, one in _flat(f"{prefix}/{key}", inner).items()}
    return {prefix: value} if isinstance(value, int | float | str) else {}
