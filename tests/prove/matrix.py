"""Every cell of ``surogate plugins --matrix`` that its plan accepts, trained for two steps; the others, run and refused.

    python tests/prove/matrix.py --results docs/proof/matrix.json

Each cell is kept when it ends; a sweep that is started again goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from attrs import evolve
from surogate_command_matrix.matrix import KINDS, Cell, cells, make_model, plan_cell
from surogate_command_matrix.testing import train

from surogate_core.errors import SurogateError
from surogate_core.host import Host, load_host


def name(cell: Cell) -> str:
    return " × ".join((cell.adapter, cell.quantizer, cell.recipe, cell.kind))


def one(cell: Cell, host: Host, model: Path, directory: Path) -> dict[str, Any]:
    """Losses, or what is refused; ``planned`` says whether the plan foresaw it."""
    planned = tuple(problem.what for problem in plan_cell(cell, host, model).problems)
    try:
        losses = train(evolve(cell, problems=()), host, model, directory)
    except SurogateError as error:
        said = tuple(problem.what for problem in error.problems)
        return {"refused": list(said), "planned": said == planned}
    return {"losses": [round(loss, 5) for loss in losses], "planned": not planned}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--results", type=Path, required=True)
    options = parser.parse_args()
    kept = json.loads(options.results.read_text()) if options.results.is_file() else {}
    host = load_host()
    with tempfile.TemporaryDirectory() as scratch:
        models = {kind: make_model(kind, Path(scratch, "models", kind)) for kind in KINDS}
        for cell in cells(host):
            if name(cell) not in kept:
                with tempfile.TemporaryDirectory(dir=scratch) as directory:
                    kept[name(cell)] = one(cell, host, models[cell.kind], Path(directory))
                print(name(cell), kept[name(cell)], flush=True)
                options.results.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
