"""The commands `tokenize` and `cache`, packing of real data, and the data that are left after a resume."""

from __future__ import annotations

import os
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from surogate_pipeline_packed.batches import Batches
from surogate_pipeline_packed.cache import directory
from surogate_pipeline_packed.commands.cache import age, cache, size
from surogate_pipeline_packed.commands.tokenize import tokenize
from surogate_pipeline_packed.plugin import Options
from surogate_pipeline_packed.prepare import Prepared, Work, prepare
from surogate_pipeline_packed.progress import lines
from surogate_pipeline_packed.summary import histogram
from transformers import AutoTokenizer

from surogate_core.cli.main import main
from surogate_core.config.options import CoreOptions, DatasetOptions
from surogate_core.host import load_host

HOST = load_host()


def real(shared_data: Path, tokenizer: str = "tokenizers/minimind", template: str | None = None) -> Prepared:
    """gsm8k, instructions and dialogues with tools together."""
    tables = [
        ("instruct/gsm8k-train-2000.jsonl", "instruction", {"instruction_field": "question", "output_field": "answer"}),
        (
            "instruct/instruction-data.jsonl",
            "instruction",
            {"instruction_field": "instruction", "input_field": "input", "output_field": "output"},
        ),
        ("chat/sgd-tools.jsonl", "conversation", {"tools_field": "tools"}),
    ]
    data = [
        DatasetOptions(path=str(shared_data / path), type=kind, format_options=HOST.offer("datasets", kind).options(**given))  # type: ignore[misc]
        for path, kind, given in tables
    ]
    core = CoreOptions(model="m", sequence_len=2048, datasets=data)
    own = Options(validation_split_ratio=0.0, template=template)
    loaded = AutoTokenizer.from_pretrained(shared_data / tokenizer)
    return prepare(Work(core, own, partial(HOST.offer, "datasets"), loaded, lambda text: None))


def batches(prepared: Prepared, **changes: int) -> Batches:
    settings = {"sequence_len": 2048, "batch_size": 2, "accumulation": 4, "seed": 1234, "pad_id": 0} | changes
    return Batches(prepared.train, packing=True, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(("tokenizer", "template"), [("tokenizers/minimind", None), ("tokenizers/gpt2", "chatml")])
def test_rows_of_real_data_are_99_percent_full(shared_data: Path, tokenizer: str, template: str | None) -> None:
    prepared = real(shared_data, tokenizer, template)
    made = batches(prepared, pad_id=-1)  # which no token has
    used = sum(int((batch.input_ids[:, 0] >= 0).sum()) * 2048 - int((batch.input_ids == -1).sum()) for batch in made.all_rows())
    used += 2048 * (-made.rows % 2)  # the last micro-batch is filled up with an empty row
    assert made.fill >= 0.99
    assert used == prepared.train.lengths.sum() == round(made.fill * made.rows * 2048)


def test_after_a_resume_the_remaining_samples_are_exactly_the_rest(shared_data: Path) -> None:
    prepared = real(shared_data)
    whole = batches(prepared)
    epochs, total = 2, batches(prepared).steps(2)
    seen = [whole.step(i, epochs).sources for i in range(total)]
    for at in (1, total // 3, total - 1):
        resumed = batches(real(shared_data)) if at == 1 else batches(prepared)
        rest = [resumed.step(i, epochs).sources for i in range(at, total)]
        assert seen[:at] + rest == seen
        counts = np.unique([name for step in seen[:at] + rest for name in step], return_counts=True)
        assert (len(counts[0]), set(counts[1].tolist())) == (len(prepared.train), {epochs})
        assert set(counts[0].tolist()) == set(prepared.train.sources)


# ---------------------------------------------------------------- commands
@pytest.fixture
def config(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from surogate_model_transformers.testing import byte_tokenizer

    monkeypatch.setenv("SUROGATE_CACHE", str(tmp_path / "cache"))
    model = byte_tokenizer(tmp_path / "only-a-tokenizer")
    assert not (model / "config.json").exists()
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"text": "Once upon a time number {i}."}}\n' for i in range(200)) + "{\n")
    file = tmp_path / "c.toml"
    file.write_text(
        f'model = "{model}"\nsequence_len = 128\noutput_dir = "{tmp_path / "out"}"\n[[datasets]]\npath = "{rows}"\ntype = "text"\n'
    )
    return file


def test_tokenize_needs_a_tokenizer_alone_and_a_run_finds_its_shards(config: Path, tiny: Path) -> None:
    runner = CliRunner()
    done = runner.invoke(tokenize, [str(config)], catch_exceptions=False)
    assert done.exit_code == 0
    assert "rows: 201 read = 200 kept + 1 dropped (not JSON)" in done.stdout
    assert "17 to      32 tokens" in done.stdout
    assert "training: 180 pieces" in done.stdout
    assert "% full" in done.stdout
    assert "cache miss" in done.stderr
    again = runner.invoke(tokenize, [str(config), "--sequence-len", "128"], catch_exceptions=False)
    assert again.stdout == done.stdout
    assert "cache hit: 201 rows" in again.stderr
    assert not (config.parent / "out").exists()
    quiet = runner.invoke(tokenize, [str(config), "--quiet"], catch_exceptions=False)
    assert (quiet.stdout, quiet.stderr) == ("", "")


def test_tokenize_refuses_other_pipelines_and_bad_data(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["tokenize", str(config), "--max-bad-rows", "0.001"])
    assert left.value.code == 2
    assert "more than max_bad_rows = 0.001: rows.jsonl:201: not JSON" in capsys.readouterr().err


def test_cache_lists_and_cleans(config: Path) -> None:
    runner = CliRunner()
    runner.invoke(tokenize, [str(config)], catch_exceptions=False)
    runner.invoke(tokenize, [str(config), "--system", "S"], catch_exceptions=False)
    root = directory(None)
    assert root == config.parent / "cache"
    entries = sorted((root / "tokenised").iterdir(), key=lambda path: path.stat().st_mtime)
    old = time.time() - 3 * 86400
    os.utime(entries[0] / "about.json", (old, old))
    shown = runner.invoke(cache, [], catch_exceptions=False).stdout.splitlines()
    assert shown[0].split() == ["key", "size", "used", "rows", "tokens", "type", "path", "tokenizer"]
    assert [line.split()[0] for line in shown[1:3]] == [entries[1].name[:12], entries[0].name[:12]]
    assert "3d ago" in shown[2]
    assert "201" in shown[2]
    assert str(config.parent / "rows.jsonl") in shown[2]
    assert shown[3].startswith(f"{root}: 2 data sets, ")
    assert "removed 1 data sets" in runner.invoke(cache, ["--clean", "--older-than", "2d"], catch_exceptions=False).stdout
    assert list((root / "tokenised").iterdir()) == [entries[1]]
    assert "removed 1 data sets" in runner.invoke(cache, ["--clean", "--cache-dir", str(root)], catch_exceptions=False).stdout
    assert not list((root / "tokenised").iterdir())
    assert "0 data sets, 0 B" in runner.invoke(cache, [], catch_exceptions=False).stdout
    wrong = runner.invoke(cache, ["--clean", "--older-than", "soon"])
    assert wrong.exit_code == 2
    assert "'soon' is no age" in wrong.stderr


def test_an_entry_that_is_being_written_is_not_removed(config: Path) -> None:
    from filelock import FileLock

    runner = CliRunner()
    runner.invoke(tokenize, [str(config)], catch_exceptions=False)
    (entry,) = (directory(None) / "tokenised").iterdir()
    with FileLock(directory(None) / "locks" / entry.name):
        done = runner.invoke(cache, ["--clean"], catch_exceptions=False)
    assert "removed 0 data sets" in done.stdout
    assert "a process is writing it" in done.stderr
    assert entry.is_dir()


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SUROGATE_CACHE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert directory(None) == tmp_path / ".cache/surogate"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert directory(None) == tmp_path / "x/surogate"
    monkeypatch.setenv("SUROGATE_CACHE", "~/mine")
    assert directory(None) == tmp_path / "mine"
    assert directory("/there") == Path("/there")


def test_words_for_sizes_ages_and_lengths() -> None:
    assert [size(count) for count in (0, 999, 1000, 2_500_000, 3e9, 4e12)] == [
        "0 B",
        "999 B",
        "1.0 KB",
        "2.5 MB",
        "3.0 GB",
        "4.0 TB",
    ]
    assert [age(seconds) for seconds in (5, 90, 7200, 86400, 15 * 86400)] == ["5s", "2m", "2h", "1d", "2w"]
    counted = {line.split(" tokens")[0].strip(): line.split()[4] for line in histogram(np.array([1, 2, 3, 4, 5, 8, 9]))}
    assert counted == {"1 to       1": "1", "2 to       2": "1", "3 to       4": "2", "5 to       8": "2", "9 to      16": "1"}


def test_progress_lines_say_rate_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    said: list[str] = []
    tell = lines("rows", 50, 250, said.append)
    for seconds, rows in ((5, 90), (10, 150), (12, 200), (20, 250)):
        now[0] = 100.0 + seconds
        tell(rows)
    assert said == ["rows: 150 of 250 rows, 10 rows/s, 10 s left", "rows: 250 of 250 rows, 10 rows/s, 0 s left"]
    now[0], said[:] = 100.0, []
    tell = lines("stream", 0, None, said.append)
    now[0] = 110.0
    tell(100)
    assert said == ["stream: 100 rows, 10 rows/s"]
