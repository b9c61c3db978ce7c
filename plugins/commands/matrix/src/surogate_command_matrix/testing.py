"""For tests: a cell of the matrix trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from surogate_command_matrix.matrix import Cell
from surogate_core.config import load

if TYPE_CHECKING:
    from surogate_core.host import Host

TEXT = "The cat sat on the mat and looked at the moon. " * 20


def train(cell: Cell, host: Host, model: Path, directory: Path, steps: int = 2) -> list[float]:
    """Train so many steps, in ``directory``; returns the losses. Raises what a run raises."""
    from surogate_core.train.run import execute

    directory.mkdir(parents=True, exist_ok=True)
    text, output = directory / "text.txt", directory / "output"
    text.write_text(TEXT)
    more = {
        "output_dir": str(output),
        "cache_dir": str(directory / "cache"),
        "max_steps": steps,
        "save_steps": 1000,
        "gradient_accumulation_steps": 1,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "dataloader_num_workers": 0,
        "validation_split_ratio": 0.0,
        "report_to": [],
        "datasets": [{"path": str(text), "type": "text"}],
    }
    execute(load({**cell.config(host, model), **more}, host), host, quiet=True)
    records = map(json.loads, (output / "metrics.jsonl").read_text().splitlines())
    return [record["loss"] for record in records if record["kind"] == "step"]
