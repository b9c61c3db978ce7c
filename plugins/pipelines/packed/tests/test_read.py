"""Reading: every kind of file gives the same rows, and what cannot be read is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from surogate_pipeline_packed.read import Source, open_source

from surogate_core.config.options import DatasetOptions
from surogate_core.errors import DataError

ROWS = [{"text": f"row {i}\u2028 with a line separator, {i * 'ü'}", "more": str(i)} for i in range(12)]


def opened(path: Path | str, **options: object) -> Source:
    return open_source(DatasetOptions(path=str(path), type="text", **options), "datasets[0]", seed=3)  # type: ignore[arg-type]


def columns(source: Source) -> list:
    return [row.columns for row in source.rows()]


def write(path: Path, rows: list = ROWS) -> Path:
    if path.suffix == ".jsonl":
        path.write_bytes(b"\xef\xbb\xbf" + b"\n\n".join(json.dumps(row, ensure_ascii=False).encode() for row in rows))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".csv":
        import csv

        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    else:
        from datasets import Dataset

        dataset = Dataset.from_list(rows)
        if path.suffix == ".parquet":
            dataset.to_parquet(path)
        else:
            dataset.save_to_disk(path)
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.parquet", "saved"])
def test_kinds(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name)
    source = opened(path)
    assert columns(source) == ROWS
    assert columns(source) == ROWS  # again, from the start
    drawn = columns(opened(path, samples=5))
    assert len(drawn) == 5
    assert drawn == [row for row in ROWS if row in drawn]
    assert drawn == columns(opened(path, samples=5))
    assert columns(opened(path, samples=100)) == ROWS


def test_arrow_file_of_a_saved_data_set(tmp_path: Path) -> None:
    (file,) = write(tmp_path / "saved").glob("*.arrow")
    assert columns(opened(file)) == ROWS


def test_json_lines_under_the_wrong_name(tmp_path: Path) -> None:
    path = tmp_path / "lines.json"
    path.write_bytes(write(tmp_path / "a.jsonl").read_bytes())
    assert columns(opened(path)) == ROWS


def test_samples_depend_on_the_seed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl")
    options = DatasetOptions(path=str(path), type="text", samples=6)
    drawn = [[row.number for row in open_source(options, "datasets[0]", seed).rows()] for seed in range(8)]
    assert len({tuple(numbers) for numbers in drawn}) > 4


def test_directory_of_one_kind(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "deep/c.txt", ".hidden/d.txt", "README.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"{name}\r\nsecond line")
    source = opened(tmp_path)
    assert source.files == ("a.txt", "b.txt", "deep/c.txt")
    assert [row["text"] for row in columns(source)] == ["a.txt\r\nsecond line", "b.txt\r\nsecond line", "deep/c.txt\r\nsecond line"]
    (tmp_path / "e.jsonl").write_text("{}")
    with pytest.raises(DataError, match=r"several kinds: \.jsonl, \.txt"):
        opened(tmp_path)


def test_damaged_rows_are_named_and_the_rest_is_read(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b'{"text": "a"}\n{"text": \n\n[1]\n{"text": "\xff"}\n{"text": "b"}\n' + b"[" * 100000)
    found = [(row.number, row.columns, row.reason) for row in opened(path).rows()]
    assert found == [
        (1, {"text": "a"}, ""),
        (2, None, "not JSON"),
        (4, None, "not a JSON object but list"),
        (5, None, "not UTF-8"),
        (6, {"text": "b"}, ""),
        (7, None, "not JSON"),
    ]
    table = tmp_path / "bad.csv"
    table.write_bytes(b"text,more\na,1\nb\nc,2,3\n\xff,4\n")
    reasons = [row.reason for row in opened(table).rows()]
    assert reasons == ["", *["another number of columns than the first line"] * 2, "not UTF-8"]
    text = tmp_path / "bad.txt"
    text.write_bytes(b"ab\xff")
    assert [row.reason for row in opened(text).rows()] == ["not UTF-8 (byte 2)"]


@pytest.mark.parametrize(
    ("path", "what"),
    [
        ("missing.jsonl", "no such file"),
        ("./missing", "no such file"),
        ("/nowhere/at/all", "no such file"),
        ("ftp://host/data", "addresses of kind ftp:// cannot be read"),
        ("{tmp}/table.xlsx", r'kind "\.xlsx" cannot be read'),
        ("{tmp}/nothing", "holds no data"),
        ("{tmp}/broken.json", "not JSON"),
        ("{tmp}/broken.parquet", "not a parquet file"),
        ("{tmp}/saved", 'no split "train"'),
    ],
)
def test_what_cannot_be_read(tmp_path: Path, path: str, what: str) -> None:
    from datasets import Dataset, DatasetDict

    (tmp_path / "table.xlsx").write_text("")
    (tmp_path / "nothing").mkdir()
    (tmp_path / "broken.json").write_text("[{")
    (tmp_path / "broken.parquet").write_text("PAR1")
    DatasetDict({"test": Dataset.from_list(ROWS)}).save_to_disk(tmp_path / "saved")
    with pytest.raises(DataError, match=what) as caught:
        columns(opened(path.format(tmp=tmp_path)))
    assert caught.value.problems[0].where
    assert caught.value.problems[0].how


def test_hub_data_set_that_cannot_be_read() -> None:
    with pytest.raises(DataError, match="neither a local path nor a data set of the Hub") as caught:
        opened("nobody/has-this", subset="main", split="test")
    assert "subset 'main', split 'test'" in caught.value.problems[0].where
