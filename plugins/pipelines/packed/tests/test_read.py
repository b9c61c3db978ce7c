"""Reading: every kind of file gives the same rows, and what cannot be read is named."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from surogate_pipeline_packed.jsontext import Elements
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


def test_hub_data_set_that_cannot_be_read_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    def refuse(*arguments: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"OfflineModeIsEnabled|ConnectionError|DatasetNotFoundError") as caught:
        opened("nobody/has-this")
    assert caught.value.problems[0].how == "HF_HUB_OFFLINE is set: unset it, or fetch the data set into the cache first"


# ---------------------------------------------------------------- arrays, element by element
@pytest.mark.parametrize("block", [1, 2, 3, 7, 64, 1 << 20])
def test_an_array_is_decoded_alike_in_blocks_of_every_size(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr("surogate_pipeline_packed.jsontext.BLOCK", block)
    rows = [*ROWS, {"a": [1.5e-7, -12, True, None, {"b": '\\"]}'}], "c": "\U0001f600"}]
    for text in (json.dumps(rows), json.dumps(rows, ensure_ascii=False, indent=1), "[]", " [ 12345 , true , null ] "):
        found = list(Elements(BytesIO(text.encode()), "place"))
        assert [(number, element.value) for number, element in found] == list(enumerate(json.loads(text), 1))


# ---------------------------------------------------------------- directories with splits
def test_names_tell_splits_as_the_datasets_library_reads_them(tmp_path: Path) -> None:
    from datasets.data_files import DataFilesDict, get_data_patterns, sanitize_patterns

    layouts = [
        ["train.jsonl", "test.jsonl"],
        ["train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl", "validation-00000-of-00001.jsonl"],
        ["data/dev.jsonl", "data/training_set.jsonl"],
        ["train/a.jsonl", "train/b.jsonl", "eval/a.jsonl"],
        ["my-val.jsonl", "my-test.jsonl"],
        ["latest.jsonl", "retrain.jsonl", "contest1.jsonl"],
    ]
    for index, names in enumerate(layouts):
        root = tmp_path / str(index)
        for name in names:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(json.dumps({"text": name}) + "\n")
        patterns = sanitize_patterns(get_data_patterns(str(root)))
        theirs = DataFilesDict.from_patterns(patterns, base_path=str(root))
        for split, files in theirs.items():
            wanted = sorted(Path(file).relative_to(root.resolve()).as_posix() for file in files)
            assert list(opened(root, split=str(split)).files) == wanted, (names, split)


def test_splits_that_are_not_told_apart_are_refused(tmp_path: Path) -> None:
    for name in ("train.jsonl", "test.jsonl"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(DataError, match='no split "validation"') as caught:
        opened(tmp_path, split="validation")
    assert caught.value.problems[0].how == "use one of train, test"
    (tmp_path / "more.jsonl").write_text("{}")
    with pytest.raises(DataError, match=r"files of the split train and test, and more\.jsonl, which is of none"):
        opened(tmp_path)


# ---------------------------------------------------------------- the datasets library
def test_splits_and_samples_of_a_saved_data_set(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    DatasetDict({"train": Dataset.from_list(ROWS), "test": Dataset.from_list(ROWS[:3])}).save_to_disk(tmp_path / "saved")
    assert columns(opened(tmp_path / "saved")) == ROWS
    assert columns(opened(tmp_path / "saved", split="test")) == ROWS[:3]
    drawn = columns(opened(tmp_path / "saved", samples=4))
    assert drawn == [row for row in ROWS if row in drawn]
    assert len(drawn) == 4
    assert opened(tmp_path / "saved", samples=4).count() == 4
    with pytest.raises(DataError, match='no split "dev"') as caught:
        opened(tmp_path / "saved", split="dev")
    assert caught.value.problems[0].how == "use one of train, test"
    with pytest.raises(DataError, match="a saved data set has no subsets"):
        opened(tmp_path / "saved", subset="main")


CARD = """---
license: mit
configs:
- config_name: short
  default: true
  data_files:
  - split: train
    path: short/*.jsonl
- config_name: long
  data_files:
  - split: train
    path: long/one.jsonl
  - split: test
    path: long/two.jsonl
---
# A data set
"""


def test_subsets_and_splits_of_a_directory_with_a_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    root = tmp_path / "repo"
    for name, rows in {"short/a.jsonl": ROWS[:2], "long/one.jsonl": ROWS, "long/two.jsonl": ROWS[5:]}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        write(root / name, rows)
    (root / "README.md").write_text(CARD)
    assert columns(opened(root)) == ROWS[:2]
    assert columns(opened(root, subset="long")) == ROWS
    assert columns(opened(root, subset="long", split="test")) == ROWS[5:]
    drawn = columns(opened(root, subset="long", samples=4))
    assert (len(drawn), drawn) == (4, [row for row in ROWS if row in drawn])
    for options, what in (({"subset": "huge"}, "BuilderConfig 'huge' not found"), ({"split": "dev"}, 'Unknown split "dev"')):
        with pytest.raises(DataError, match=what) as caught:
            opened(root, **options)
        assert caught.value.problems[0].how.startswith("check subset and split against the card")
    (root / "README.md").write_text("# no card\nconfigs:\n")
    with pytest.raises(DataError, match="files have no subsets") as caught:
        opened(root, subset="long")
    assert "data set card" in caught.value.problems[0].how


PEAK = """
import json, sys
from pathlib import Path
from surogate_core.config.options import DatasetOptions
from surogate_pipeline_packed.read import open_source

def anonymous():
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) / 1024

peaks = []
for name in sys.argv[1:]:
    before = peak = anonymous()
    for count, row in enumerate(open_source(DatasetOptions(path=name, type="text"), "datasets[0]", seed=0).rows(), 1):
        peak = max(peak, anonymous()) if count % 500 == 0 else peak
    peaks.append(peak - before)
print(json.dumps(peaks[1:]))
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="anonymous memory is read from /proc: run this on Linux")
@pytest.mark.parametrize("kind", [".jsonl", ".json", ".csv", ".parquet"])
def test_no_reader_holds_its_file(tmp_path: Path, kind: str) -> None:
    names = [tmp_path / f"{name}{kind}" for name in ("few", "many")]
    for name, count in zip(names, (2000, 40_000), strict=True):
        write(name, [{"text": f"{i} " + "word " * 200, "more": ""} for i in range(count)])
    assert names[1].suffix == ".parquet" or names[1].stat().st_size > 40e6
    done = subprocess.run([sys.executable, "-c", PEAK, *map(str, names)], capture_output=True, text=True, check=True, env=paths())
    (peak,) = json.loads(done.stdout)
    assert peak < 12  # MB; 40 MB of rows, and twice that as Python objects


def paths() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


@pytest.fixture
def carded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, list[dict]]:
    """A directory as a data set of the Hub is, larger than what the library writes at once."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "library")
    monkeypatch.setattr("datasets.builder.config.HF_DATASETS_CACHE", tmp_path / "library")
    rows = [{"text": f"{i} " + "x" * 2000} for i in range(3000)]
    root = tmp_path / "carded"
    (root / "data").mkdir(parents=True)
    (root / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: data/a*.parquet\n---\n# About\n"
    )
    write(root / "data/a0.parquet", rows[:1500])
    write(root / "data/a1.parquet", rows[1500:])
    return root, rows


def test_streaming_makes_no_copy(tmp_path: Path, carded: tuple[Path, list[dict]]) -> None:
    root, rows = carded

    def copied() -> int:
        return sum(path.stat().st_size for path in (tmp_path / "library").rglob("*") if path.is_file())

    options = DatasetOptions(path=str(root), type="text")
    streamed = open_source(options, "datasets[0]", seed=3, streaming=True)
    assert columns(streamed) == rows
    assert columns(streamed) == rows  # again, from the start
    assert [row.columns for row in streamed.rows(7, 9)] == rows[7:9]
    assert not streamed.countable
    assert streamed.count() == len(rows)
    assert copied() < 100_000
    assert columns(open_source(options, "datasets[0]", seed=3)) == rows
    assert copied() > 6_000_000
    drawn = open_source(DatasetOptions(path=str(root), type="text", samples=5), "datasets[0]", seed=3, streaming=True)
    assert len(columns(drawn)) == 5


def test_streaming_reads_what_is_asked_for(carded: tuple[Path, list[dict]], monkeypatch: pytest.MonkeyPatch) -> None:
    root, rows = carded
    (root / "data/a1.parquet").write_bytes(b"PAR1 is not read yet")
    streamed = open_source(DatasetOptions(path=str(root), type="text"), "datasets[0]", seed=3, streaming=True)
    found = streamed.rows()
    assert [next(found).columns for _ in range(1000)] == rows[:1000]
    with pytest.raises(DataError, match="the data set cannot be read further") as caught:
        list(found)
    assert "after row 1500" in caught.value.problems[0].where


def test_a_stream_has_a_lasting_name(carded: tuple[Path, list[dict]]) -> None:
    root, rows = carded

    def origin(**options: object) -> tuple:
        table = DatasetOptions(path=str(root), type="text", **options)  # type: ignore[arg-type]
        return open_source(table, "datasets[0]", seed=3, streaming=True).origins[0]

    one = origin()
    assert {path for path in one if isinstance(path, Path)} == {(root / f"data/a{i}.parquet").resolve() for i in range(2)}
    assert origin() == one
    write(root / "data/a2.parquet", rows[:1])
    assert origin() != one
    with pytest.raises(DataError, match="the directory cannot be read as its card"):
        origin(split="test")


def test_a_run_streams_as_its_option_says(place: Any, carded: tuple[Path, list[dict]], tmp_path: Path) -> None:
    root, _ = carded
    copied = []
    for streaming in (True, False):
        prepared = place.prepare(path=str(root), type="text", samples=20, sequence_len=4096, streaming=streaming)
        assert prepared.ledger.rows_read == 20
        copied.append(sum(path.stat().st_size for path in (tmp_path / "library").rglob("*") if path.is_file()))
    assert copied[0] < 100_000
    assert copied[1] > 6_000_000
