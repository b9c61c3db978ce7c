"""Shards: damaged, half written, written twice, and what they hold."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from surogate_pipeline_packed import cache, shard, tokenise
from surogate_pipeline_packed.part import Part, join, part_of
from surogate_pipeline_packed.pipeline import build
from surogate_pipeline_packed.plugin import Options
from surogate_pipeline_packed.read import open_source
from transformers import AutoTokenizer

from surogate_core.config.options import CoreOptions, DatasetOptions
from surogate_core.contracts import PipelineContext, Sample
from surogate_core.errors import BadRow, DataError
from surogate_core.host import load_host


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "flipped":
        content[len(content) // 2] ^= 1
    elif how == "words":
        at = content.index(b"instruction")  # the kind of the samples
        content[at] ^= 1
    path.unlink()  # what is mapped stays as it was
    if how != "gone":
        path.write_bytes(bytes(content[: {"cut": len(content) // 2, "empty": 0, "header": 4}.get(how, len(content))]))


@pytest.mark.parametrize("how", ["flipped", "words", "cut", "empty", "header", "gone"])
@pytest.mark.parametrize("which", [0, 2, -1])
def test_damaged_shards_are_found_and_made_again(place: Any, monkeypatch: pytest.MonkeyPatch, how: str, which: int) -> None:
    place.fill(400, bad=3)
    whole = place.prepare()
    files = {path: path.read_bytes() for path in place.shards()}
    assert len(files) > 3
    damage(list(files)[which], how)
    encoded = []
    encode = tokenise.encode_rows
    monkeypatch.setattr(tokenise, "encode_rows", lambda form, rows: encoded.append(len(rows)) or encode(form, rows))
    place.same(whole, place.prepare())
    assert sum(encoded) == len(load_file(list(files)[which])["rows"])
    assert {path: path.read_bytes() for path in place.shards()} == files
    place.prepare()
    assert "cache hit" in place.said


CHILD = """
import sys, time
sys.path.insert(0, sys.argv[4])  # before the directory that this was started in
import conftest
from pathlib import Path
from surogate_pipeline_packed import tokenise
if __name__ == "__main__":
    place = conftest.Place(Path(sys.argv[1]), Path(sys.argv[2]))
    stop, encode, done = int(sys.argv[3]), tokenise.encode_rows, 0
    def counted(form, rows):
        global done
        if stop and done >= stop:
            print("half", flush=True)
            time.sleep(60)
        done += len(rows)
        return encode(form, rows)
    tokenise.encode_rows = counted
    print(place.prepare().fingerprint, done, flush=True)
"""


def child(place: Any, stop: int = 0) -> subprocess.Popen[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", CHILD, str(place.directory), str(place.tokenizer), str(stop), str(Path(__file__).parent)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("count", [2000, 8000])
def test_killed_at_half_it_goes_on_from_45_percent(place: Any, count: int) -> None:
    place.fill(count)
    process = child(place, stop=count // 2)
    assert process.stdout is not None
    assert process.stdout.readline() == "half\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    encoded: list[int] = []
    encode = tokenise.encode_rows
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenise, "encode_rows", lambda form, rows: encoded.append(len(rows)) or encode(form, rows))
        made = place.prepare()
    assert "it goes on from there" in place.said
    assert count - sum(encoded) >= 0.45 * count
    place.same(made, place.prepare(cached=False))


def test_two_processes_that_race_both_win(place: Any) -> None:
    place.fill(1500)
    wanted = place.prepare(cached=False).fingerprint
    processes = [child(place) for _ in range(2)]
    answers = [process.communicate()[0].split() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert [answer[0] for answer in answers] == [wanted, wanted]
    place.prepare()
    assert "cache hit" in place.said


def test_writers_without_locks_write_the_same_files(place: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a file system has no locks, a second writer replaces files by equal ones."""
    place.fill(700)
    first = place.prepare()
    files = {path.name: path.read_bytes() for path in place.shards()}
    for path in place.cache.glob("tokenised/*/*"):
        path.unlink()
    monkeypatch.setattr(cache.FileLock, "acquire", lambda *_, **__: (_ for _ in ()).throw(NotImplementedError()))
    place.same(first, place.prepare())
    assert {path.name: path.read_bytes() for path in place.shards()} == files


def test_a_cache_that_cannot_be_written_is_no_obstacle(place: Any) -> None:
    place.fill(100)
    wanted = place.prepare(cached=False)
    place.cache.write_text("a file, not a directory")
    place.same(wanted, place.prepare())
    assert "cannot be written" in place.said
    assert "is not kept" in place.said


def test_a_full_disk_is_no_obstacle(place: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    place.fill(400)
    wanted = place.prepare(cached=False)
    write = shard.write

    def full(path: Path, part: Part) -> None:
        if shard.start_of(path) > 100:
            raise OSError(28, "No space left on device")
        write(path, part)

    monkeypatch.setattr(shard, "write", full)
    place.same(wanted, place.prepare())
    assert "No space left on device" in place.said
    monkeypatch.undo()
    place.same(wanted, place.prepare())
    assert "it goes on from there" in place.said


def test_a_file_that_changes_meanwhile_is_noticed(place: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    place.fill(400)
    encode = tokenise.encode_rows

    def slow(form: Any, rows: Any) -> Part:
        place.file.write_text(place.file.read_text() + "\n")
        return encode(form, rows)

    monkeypatch.setattr(tokenise, "encode_rows", slow)
    with pytest.raises(DataError, match="changed while it was read"):
        place.prepare()
    assert not place.shards()


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_every_number_of_workers_gives_the_same_shards(place: Any, workers: int) -> None:
    place.fill(1500, bad=5)
    one = place.prepare(dataloader_num_workers=0)
    files = {path.name: path.read_bytes() for path in place.shards()}
    place.cache = place.directory / "other"
    place.same(one, place.prepare(dataloader_num_workers=workers))
    assert {path.name: path.read_bytes() for path in place.shards()} == files


# ---------------------------------------------------------------- parts and rows
def test_shards_are_safetensors_files_that_hold_what_was_given(tmp_path: Path) -> None:
    sample = Sample(input_ids=[5, 6, 7], weights=[1.0, 0.5, 0.0], kind="k", marker="m")
    parts = [part_of([(0, 1, [sample, sample]), (0, 2, [])]), part_of([(1, 1, BadRow("torn")), (1, 2, [sample])])]
    path = tmp_path / shard.name(64)
    shard.write(path, join(parts))
    assert (shard.start_of(path), sorted(tmp_path.iterdir())) == (64, [path])
    stored, back = load_file(path), shard.read(path)
    assert back is not None
    for name, array in stored.items():
        assert np.array_equal(array, getattr(back, name))
    assert stored["tokens"].tolist() == [5, 6, 7] * 3
    assert stored["weights"].tolist() == [0, 0.5, 0] * 3
    assert [(*row[:3], back.words[row[3]] if row[3] >= 0 else "") for row in stored["rows"].tolist()] == [
        (0, 1, 2, ""),
        (0, 2, 0, ""),
        (1, 1, 0, "torn"),
        (1, 2, 1, ""),
    ]
    assert {(length, back.words[kind], back.words[marker]) for length, kind, marker in stored["samples"].tolist()} == {
        (3, "k", "m")
    }
    assert not back.tokens.flags.owndata


@pytest.mark.parametrize("samples", [None, 37])
def test_rows_from_the_middle(tmp_path: Path, samples: int | None) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"n": f"{name}{i}"}) + "\n" for i in range(30)))
    source = open_source(DatasetOptions(path=str(tmp_path), type="text", samples=samples), "datasets[0]", 3)
    whole = list(source.rows())
    assert len(whole) == source.count() == (samples or 60)
    for start, stop in ((0, 5), (17, 33), (33, None), (36, 37)):
        assert list(source.rows(start, stop)) == whole[start:stop]


def test_the_configured_number_of_workers_is_used() -> None:
    """Whatever the size of the data; without it small data need none."""
    form = object()
    for size in (10, 10**9):
        assert tokenise.workers_for(Options(dataloader_num_workers=3), form, size) == 3  # type: ignore[arg-type]
        assert tokenise.workers_for(Options(dataloader_num_workers=0), form, size) == 0  # type: ignore[arg-type]
    assert tokenise.workers_for(Options(), form, 10) == 0  # type: ignore[arg-type]
    assert tokenise.workers_for(Options(), form, 10**9) == len(os.sched_getaffinity(0))  # type: ignore[arg-type]


def test_the_cache_is_where_it_is_told_to_be(tiny: Path, tmp_path: Path) -> None:
    rows = tmp_path / "texts.jsonl"
    rows.write_text('{"text": "once upon a time"}\n' * 9)
    host = load_host()
    form = host.offer("datasets", "text").options
    assert form is not None
    core = CoreOptions(model="m", datasets=[DatasetOptions(path=str(rows), type="text", format_options=form())])
    context = PipelineContext(config=core, format=lambda name: host.offer("datasets", name))
    pipeline = build(Options(cache_dir=str(tmp_path / "own"), validation_split_ratio=0.0), context)
    pipeline.prepare(AutoTokenizer.from_pretrained(tiny), lambda text: None)
    assert list((tmp_path / "own").glob("tokenised/*/rows-*"))
