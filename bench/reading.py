"""Reading rows: rate, and the peak of anonymous memory above that of a reader that has read nothing, by kind of file.

    python bench/reading.py [--megabytes 300] [--directory DIR]

Each kind is read in a process of its own; the same rows are in each file. Mapped files are not counted: the system drops them when
it needs the memory.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

KINDS = ("jsonl", "jsonl.gz", "json", "csv", "parquet", "arrow")


def anonymous() -> float:
    """Anonymous resident memory of this process, MB."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) / 1024


def measure(path: Path) -> dict[str, float]:
    from surogate_pipeline_packed.read import open_source

    from surogate_core.config.options import DatasetOptions

    def rows(file: Path) -> tuple[int, float]:
        peak, count = anonymous(), 0
        for count, row in enumerate(open_source(DatasetOptions(path=str(file), type="text"), "datasets[0]", seed=0).rows(), 1):
            assert row.columns is not None
            if count % 500 == 0:
                peak = max(peak, anonymous())
        return count, peak

    rows(path.with_name(f"few.{path.name.partition('.')[2]}"))
    before, started = anonymous(), time.monotonic()
    count, peak = rows(path)
    seconds = time.monotonic() - started
    return {"rows": count, "rows_per_s": round(count / seconds), "peak_mb": round(peak - before, 1)}


def write(directory: Path, name: str, megabytes: float) -> None:
    """The same rows as every kind of file: a text of 1,000 characters or so, from a fixed sequence of words."""
    import csv
    import gzip
    import random

    import pyarrow
    from datasets import Dataset
    from pyarrow import parquet

    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghij", k=draw.randint(2, 9))) for _ in range(5000)]
    rows = [{"id": str(i), "text": " ".join(draw.choices(words, k=150))} for i in range(int(megabytes * 1000))]
    lines = [json.dumps(row) for row in rows]
    (directory / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    (directory / f"{name}.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode(), 1))
    (directory / f"{name}.json").write_text("[" + ",\n".join(lines) + "]")
    with (directory / f"{name}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["id", "text"])
        writer.writeheader()
        writer.writerows(rows)
    parquet.write_table(pyarrow.Table.from_pylist(rows), directory / f"{name}.parquet")  # one row group of a million rows
    Dataset.from_list(rows).save_to_disk(directory / "saved", num_shards=1)
    next((directory / "saved").glob("*.arrow")).rename(directory / f"{name}.arrow")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=300)
    parser.add_argument("--directory", type=Path, default=None)
    parser.add_argument("--file", type=Path, default=None, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.file is not None:
        print(json.dumps(measure(given.file)))
        return
    with tempfile.TemporaryDirectory(dir=given.directory) as made:
        directory = Path(made)
        for name, size in (("few", 2.0), ("many", given.megabytes)):
            subprocess.run(
                [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); from pathlib import Path; "
                 f"import reading; reading.write(Path({made!r}), {name!r}, {size})"],
                check=True, stderr=subprocess.DEVNULL,
            )  # fmt: skip
        for kind in KINDS:
            path = directory / f"many.{kind}"
            done = subprocess.run([sys.executable, __file__, "--file", str(path)], check=True, stdout=subprocess.PIPE, text=True)
            print(json.dumps({"kind": kind, "file_mb": round(path.stat().st_size / 1e6), **json.loads(done.stdout)}), flush=True)


if __name__ == "__main__":
    main()
