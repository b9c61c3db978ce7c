"""For tests: checkpoints with made-up files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from surogate_checkpoint_local.store import Checkpoints
from surogate_core.train import durable


def filler(content: str) -> Callable[[Path], None]:
    """What writes the files of a checkpoint: weights that are ``content`` a hundred times, and a file in a directory."""

    def fill(directory: Path) -> None:
        durable.write(directory / "model.safetensors", content.encode() * 100)
        durable.make_directory(directory / "deep")
        durable.write(directory / "deep" / "config.json", b"{}")

    return fill


def names(root: Path) -> set[str]:
    return {path.name for path in root.iterdir()}


def save(root: Path, *steps: int, limit: int = 9) -> Checkpoints:
    """The store below ``root``, in which these steps were saved one after the other."""
    checkpoints = Checkpoints(root, limit)
    for step in steps:
        checkpoints.save(step, filler(f"first {step}"), {"step": step, "content": f"first {step}"})
    return checkpoints
