"""Checkpoints: where the state of a run is kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol


class Saved(Protocol):
    """A complete checkpoint: a directory with its files. ``state`` is what was given to ``save``."""

    @property
    def path(self) -> Path: ...
    @property
    def step(self) -> int: ...
    @property
    def state(self) -> Mapping[str, Any]: ...

    def verify(self) -> None:
        """Compare every file with what was saved. Raises ResumeError naming the first file that differs."""


class Checkpoints(Protocol):
    """The checkpoints of one run. At most one process at a time has them (``lock.py``); it may die at any moment, and a complete
    checkpoint, the old one or the new one, must be found afterwards."""

    root: Path
    skipped: list[tuple[str, str]]
    """The torn ones that the last ``newest`` passed over: name and reason."""

    def save(self, step: int, fill: Callable[[Path], None], state: dict[str, Any]) -> Path:
        """Save one checkpoint. ``fill(directory)`` writes its files (safetensors, JSON, text); ``state`` is plain JSON.

        Raises SaveFailed, with the earlier checkpoints intact, when it cannot be written or a file is a pickle.
        """

    def rehearse(self, fill: Callable[[Path], None], check: Callable[[Path], None]) -> None:
        """Save what will be no checkpoint: ``check(directory)`` may read it back, then it is removed. SaveFailed as in ``save``."""

    def mark_best(self, path: Path) -> None:
        """Name this one the best: from now on it is not pruned."""

    def newest(self) -> Saved | None:
        """The complete checkpoint with the highest step, None if there is none at all. Changes nothing.

        Raises ResumeError if there are checkpoints and all are torn: to start over silently would hide the damage.
        """

    def room(self, need: int) -> None:
        """Raises Refused where there is no room for ``need`` bytes."""

    def set_aside(self, output_dir: Path) -> str:
        """For a fresh start: move these checkpoints, and the metrics in ``output_dir``, out of the way. Returns where they are."""


CheckpointStore = Callable[[Path, int], Checkpoints]
"""``open(root, limit)``: the checkpoints below ``root``, of which the newest ``limit``, the best among them, are kept."""
