"""Shards, their cache and what may never come out of it: a wrong key, a damaged file, half a data set."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
from safetensors.numpy import load_file
from surogate_pipeline_packed import cache, keys, shard, tokenise
from surogate_pipeline_packed.part import Part, join, part_of
from surogate_pipeline_packed.plugin import Options
from surogate_pipeline_packed.prepare import Prepared, Work, prepare
from surogate_pipeline_packed.read import open_source
from transformers import AutoTokenizer

from surogate_core.config.options import CoreOptions, DatasetOptions
from surogate_core.contracts import Sample
from surogate_core.errors import BadRow, DataError
from surogate_core.host import load_host

HOST = load_host()
COLUMNS = {"instruction_field": "q", "output_field": "a"}


@pytest.fixture
def place(tmp_path: Path, tiny: Path) -> Place:
    return Place(tmp_path, tiny)


class Place:
    """A data set of instructions, a cache, and a way to prepare the one with the other."""

    def __init__(self, directory: Path, tokenizer: Path):
        self.directory, self.tokenizer, self.cache = directory, tokenizer, directory / "cache"
        self.file = directory / "rows.jsonl"
        self.lines: list[str] = []

    def fill(self, count: int, bad: int = 0) -> None:
        rows = [json.dumps({"q": f"What is {i}?", "a": "x" * (i % 70 + 1) + str(i)}) for i in range(count)]
        self.file.write_text("\n".join(["{"] * bad + rows) + "\n")

    def prepare(self, tokenizer: Any = None, cached: bool = True, **options: Any) -> Prepared:
        own = {name: options.pop(name) for name in list(options) if name in attrs.fields_dict(Options)}
        core = {name: options.pop(name) for name in list(options) if name in attrs.fields_dict(CoreOptions)}
        table = {name: options.pop(name) for name in list(options) if name in attrs.fields_dict(DatasetOptions)}
        kind = table.pop("type", "instruction")
        form = HOST.offer("datasets", kind).options
        assert form is not None
        given = form(**{**(COLUMNS if kind == "instruction" else {}), **options})
        data = DatasetOptions(**{"path": str(self.file), "type": kind, "format_options": given} | table)
        core = CoreOptions(**{"model": "m", "sequence_len": 256, "datasets": [data]} | core)
        tokenizer = tokenizer or AutoTokenizer.from_pretrained(self.tokenizer)
        self.lines = []
        where = self.cache if cached else None
        own_options = Options(**{"validation_split_ratio": 0.0, "max_bad_rows": 0.5} | own)
        return prepare(Work(core, own_options, partial(HOST.offer, "datasets"), tokenizer, self.lines.append, where))

    @property
    def said(self) -> str:
        return "\n".join(self.lines)

    def shards(self) -> list[Path]:
        return sorted(self.cache.glob("tokenised/*/rows-*"))


def same(one: Prepared, other: Prepared) -> None:
    assert one.fingerprint == other.fingerprint
    assert one.ledger.record() == other.ledger.record()
    assert one.ledger.lines() == other.ledger.lines()
    assert list(one.train.sources) == list(other.train.sources)
    for name in ("tokens", "weights"):
        for start, stop, _ in one.train.pieces.tolist():
            assert np.array_equal(getattr(one.train, name)[start:stop], getattr(other.train, name)[start:stop])


# ---------------------------------------------------------------- hits and misses
@pytest.mark.parametrize("strategy", ["delete", "split", "left"])
def test_what_comes_from_the_cache_is_what_was_encoded(place: Place, strategy: str) -> None:
    place.fill(300, bad=20)
    settings = {"sequence_len": 64, "truncation_strategy": strategy}
    plain = place.prepare(cached=False, **settings)
    first = place.prepare(**settings)
    assert "cache miss (these data were never tokenised)" in place.said
    again = place.prepare(**settings)
    assert "cache hit: 320 rows" in place.said
    assert len(place.shards()) > 1
    same(plain, first)
    same(first, again)


def test_a_hit_encodes_nothing(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.fill(100)
    place.prepare()
    monkeypatch.setattr(tokenise, "encode_rows", lambda *_: pytest.fail("encoded again"))
    place.prepare(max_length=100, truncation_strategy="right", sample_packing=False, validation_split_ratio=0.5, max_bad_rows=0.1)
    assert "cache hit" in place.said


def test_errors_are_the_same_from_the_cache(place: Place) -> None:
    place.fill(90, bad=12)
    texts = []
    for cached in (False, True, True):
        with pytest.raises(DataError, match="12 of 102 rows cannot be used, more than max_bad_rows = 0.1") as caught:
            place.prepare(cached=cached, max_bad_rows=0.1)
        texts.append(str(caught.value))
    assert "cache hit" in place.said
    assert texts[0] == texts[1] == texts[2]
    place.fill(5)
    for cached in (False, True, True):
        with pytest.raises(DataError, match="no sample is left to train on"):
            place.prepare(cached=cached, max_length=2)


FORMAT = {
    "input_field": "i",
    "output_field": "q",
    "system_prompt_type": "fixed",
    "prompt_format": "{instruction}!",
    "prompt_format_no_input": "{instruction}?",
}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"system": "Be brief."}, "system"),
        ({"loss_scale": "all"}, "loss_scale"),
        ({"template": "qwen"}, "template"),
        ({"sequence_len": 128}, "sequence_len"),
        ({"samples": 50}, "samples"),
        ({"split": "test"}, "split"),
        ({"subset": "main"}, "subset"),
        ({"system_prompt_type": "fixed", "system_prompt": "Hm."}, "system_prompt"),
        *(({name: value, "system_prompt": "S"}, name) for name, value in FORMAT.items()),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_each_option_that_changes_tokens_makes_another_key(place: Place, change: dict[str, Any], named: str) -> None:
    place.fill(80)
    place.prepare()
    before = {path.parent for path in place.shards()}
    made = place.prepare(**change)
    assert named in place.said.partition("cache miss (changed: ")[2].partition(")")[0].split(", ")
    assert len({path.parent for path in place.shards()} - before) == 1
    same(made, place.prepare(cached=False, **change))
    place.prepare()
    assert "cache hit" in place.said


def test_every_option_is_a_part_of_the_key_or_comes_after_encoding() -> None:
    """An option that is added and not listed makes a key of its own: a miss too many, never a wrong hit."""
    names = {item.name for item in attrs.fields(Options)}
    assert names > keys.LATER
    fixed = {"system", "loss_scale"}
    assert names - keys.LATER >= fixed


def test_the_seed_counts_only_where_rows_are_drawn(place: Place) -> None:
    place.fill(80)
    place.prepare()
    place.prepare(train_seed=7)
    assert "cache hit" in place.said
    one = place.prepare(samples=40)
    other = place.prepare(samples=40, train_seed=7)
    assert "changed: seed" in place.said
    assert one.fingerprint != other.fingerprint


@pytest.mark.parametrize("restore", [False, True])
def test_changed_data_are_another_key_even_with_the_old_time(place: Place, restore: bool) -> None:
    place.fill(80)
    old = time.time() - 3600
    os.utime(place.file, (old, old))
    first = place.prepare()
    place.file.write_text(place.file.read_text().replace("What is 7?", "What is 8?"))
    if restore:
        os.utime(place.file, (old, old))
    second = place.prepare()
    assert "changed: data" in place.said
    assert first.fingerprint != second.fingerprint


def test_digests_of_files_are_remembered_and_never_trusted_too_early(tmp_path: Path) -> None:
    file, memory = tmp_path / "f", tmp_path / "memory"
    file.write_bytes(b"one")
    first = keys.of_file(file, memory)
    assert not memory.exists(), "changed a moment ago: the next change could leave no trace in the times"
    time.sleep(2.1)
    assert keys.of_file(file, memory) == first
    (note,) = memory.iterdir()
    content = json.loads(note.read_bytes())
    note.write_text(json.dumps(content | {"digest": "kept"}))
    assert keys.of_file(file, memory) == "kept"
    file.write_bytes(b"two")
    assert keys.of_file(file, memory) not in ("kept", first)


def test_tokenizer_and_template_text_are_parts(place: Place) -> None:
    place.fill(80)
    place.prepare()
    changed = AutoTokenizer.from_pretrained(place.tokenizer)
    changed.add_tokens(["What"])
    place.prepare(changed)
    assert "changed: tokenizer" in place.said
    changed = AutoTokenizer.from_pretrained(place.tokenizer)
    changed.chat_template += "\n"
    place.prepare(changed)
    assert "changed: template" in place.said
    place.prepare(AutoTokenizer.from_pretrained(place.tokenizer))
    assert "cache hit" in place.said


def test_a_template_that_asks_for_the_day_is_made_again_every_day(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.fill(80)
    for day, wanted in (("2026-01-01", "never"), ("2026-01-01", "cache hit"), ("2026-01-02", "changed: template")):
        monkeypatch.setattr(keys.time, "strftime", lambda _, day=day: day)
        tokenizer = AutoTokenizer.from_pretrained(place.tokenizer)
        tokenizer.chat_template = "{% if false %}{{ strftime_now('%Y') }}{% endif %}" + tokenizer.chat_template
        place.prepare(tokenizer)
        assert wanted in place.said


def test_code_is_a_part(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.fill(80)
    place.prepare()
    sources, version = keys._sources, keys.metadata.version
    monkeypatch.setattr(keys, "_sources", lambda package: "edited" if "dataset" in package else sources(package))
    place.prepare()
    assert "changed: format instruction" in place.said
    monkeypatch.setattr(keys, "_sources", sources)
    monkeypatch.setattr(keys.metadata, "version", lambda name: "9" if name == "tokenizers" else version(name))
    place.prepare()
    assert "changed: tokenizers" in place.said


def test_files_that_options_name_count_with_their_content(tmp_path: Path) -> None:
    file = tmp_path / "weights.json"
    file.write_text("{}")
    one = keys.plain(str(file)), keys.plain([str(file)])
    file.write_text("[]")
    assert keys.plain(str(file)) != one[0]
    assert keys.plain([str(file)]) != one[1]
    assert keys.plain("word") == '"word"'


# ---------------------------------------------------------------- damage, kills, races
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
def test_damaged_shards_are_found_and_made_again(place: Place, monkeypatch: pytest.MonkeyPatch, how: str, which: int) -> None:
    place.fill(400, bad=3)
    whole = place.prepare()
    files = {path: path.read_bytes() for path in place.shards()}
    assert len(files) > 3
    damage(list(files)[which], how)
    encoded = []
    encode = tokenise.encode_rows
    monkeypatch.setattr(tokenise, "encode_rows", lambda form, rows: encoded.append(len(rows)) or encode(form, rows))
    same(whole, place.prepare())
    assert sum(encoded) == len(load_file(list(files)[which])["rows"])
    assert {path: path.read_bytes() for path in place.shards()} == files
    place.prepare()
    assert "cache hit" in place.said


CHILD = """
import sys, test_shards, time
from pathlib import Path
from surogate_pipeline_packed import tokenise
if __name__ == "__main__":
    place = test_shards.Place(Path(sys.argv[1]), Path(sys.argv[2]))
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


def child(place: Place, stop: int = 0) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", CHILD, str(place.directory), str(place.tokenizer), str(stop)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("count", [2000, 8000])
def test_killed_at_half_it_goes_on_from_45_percent(place: Place, count: int) -> None:
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
    same(made, place.prepare(cached=False))


def test_two_processes_that_race_both_win(place: Place) -> None:
    place.fill(1500)
    wanted = place.prepare(cached=False).fingerprint
    processes = [child(place) for _ in range(2)]
    answers = [process.communicate()[0].split() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert [answer[0] for answer in answers] == [wanted, wanted]
    place.prepare()
    assert "cache hit" in place.said


def test_writers_without_locks_write_the_same_files(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a file system has no locks, a second writer replaces files by equal ones."""
    place.fill(700)
    first = place.prepare()
    files = {path.name: path.read_bytes() for path in place.shards()}
    for path in place.cache.glob("tokenised/*/*"):
        path.unlink()
    monkeypatch.setattr(cache.FileLock, "acquire", lambda *_, **__: (_ for _ in ()).throw(NotImplementedError()))
    same(first, place.prepare())
    assert {path.name: path.read_bytes() for path in place.shards()} == files


def test_a_cache_that_cannot_be_written_is_no_obstacle(place: Place) -> None:
    place.fill(100)
    wanted = place.prepare(cached=False)
    place.cache.write_text("a file, not a directory")
    same(wanted, place.prepare())
    assert "cannot be written" in place.said
    assert "is not kept" in place.said


def test_a_full_disk_is_no_obstacle(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.fill(400)
    wanted = place.prepare(cached=False)
    write = shard.write

    def full(path: Path, part: Part) -> None:
        if shard.start_of(path) > 100:
            raise OSError(28, "No space left on device")
        write(path, part)

    monkeypatch.setattr(shard, "write", full)
    same(wanted, place.prepare())
    assert "No space left on device" in place.said
    monkeypatch.undo()
    same(wanted, place.prepare())
    assert "it goes on from there" in place.said


def test_a_file_that_changes_meanwhile_is_noticed(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_every_number_of_workers_gives_the_same_shards(place: Place, workers: int) -> None:
    place.fill(1500, bad=5)
    one = place.prepare(dataloader_num_workers=0)
    files = {path.name: path.read_bytes() for path in place.shards()}
    place.cache = place.directory / "other"
    same(one, place.prepare(dataloader_num_workers=workers))
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
