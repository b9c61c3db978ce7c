from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from surogate_logger_jsonl.logger import JsonLines, build
from surogate_logger_jsonl.plugin import Options, check_config

from surogate_core.contracts import LoggerContext
from surogate_core.errors import SaveFailed
from surogate_core.testing import check_logger


def context(resumed: int = 0) -> LoggerContext:
    core: Any = SimpleNamespace()
    return LoggerContext(config=core, output_dir=Path("out"), run_name="r", resumed=resumed, terminal=False, quiet=False)


def open_log(path: Path, resumed: int = 0) -> JsonLines:
    logger = build(Options(log_file=str(path)), context(resumed))
    assert logger is not None
    return logger


def write(path: Path, records: list[dict[str, Any]], resumed: int = 0) -> None:
    logger = open_log(path, resumed)
    for record in records:
        logger.log(record)
    logger.close()


def read(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").rstrip("\n").split("\n")]


def steps(*numbers: int) -> list[dict[str, Any]]:
    return [{"kind": "step", "step": number, "loss": 1 / number} for number in numbers]


def test_no_log_file_means_no_logger() -> None:
    assert build(Options(), context()) is None


def test_each_record_is_on_disk_as_soon_as_it_is_logged(tmp_path: Path) -> None:
    path = tmp_path / "new" / "train.jsonl"
    logger = open_log(path)
    for number, record in enumerate(steps(1, 2), start=1):
        logger.log(record)
        assert read(path) == steps(1, 2)[:number]
    logger.close()


def test_conforms(tmp_path: Path) -> None:
    check_logger(open_log(tmp_path / "log.jsonl"))


def test_lines_are_json_whatever_the_values(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    write(
        path, [{"kind": "notice", "text": "a\u2028b\nç"}, {"kind": "step", "loss": float("nan"), "more": {"x": (float("inf"), 1)}}]
    )
    assert read(path) == [{"kind": "notice", "text": "a\u2028b\nç"}, {"kind": "step", "loss": None, "more": {"x": [None, 1]}}]


def test_resume_drops_replayed_steps_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    first = [
        {"kind": "run"},
        *steps(1, 2),
        {"kind": "eval", "step": 2},
        {"kind": "notice", "text": "kept"},
        *steps(3),
        {"kind": "notice"},
    ]
    write(path, first)
    with path.open("ab") as file:
        file.write(b'{"kind": "step", "st')  # torn by a crash
    write(path, steps(3, 4), resumed=2)
    assert read(path) == [*first[:5], *steps(3, 4)]
    assert [entry.name for entry in tmp_path.iterdir()] == ["log.jsonl"]


def test_a_separator_within_a_string_is_no_end_of_line(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    record = {"kind": "notice", "text": "a\u2028b"}
    write(path, [record])
    write(path, steps(2), resumed=1)
    assert read(path) == [record, *steps(2)]


def test_a_new_run_keeps_the_old_file_aside(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    for number in (1, 2, 3):
        write(path, steps(number))
    assert [read(tmp_path / name) for name in ("log.jsonl.1", "log.jsonl.2", "log.jsonl")] == [steps(1), steps(2), steps(3)]


def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").mkdir()
    with pytest.raises(SaveFailed, match=r"cannot be written.*\n  where: .*log\.jsonl\n  how: "):
        open_log(tmp_path / "log.jsonl", resumed=0 if not (tmp_path / "log.jsonl").exists() else 1)


def test_a_full_disk_is_a_failed_save() -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("/dev/full, a device that is always full, is not there: run this on Linux")
    logger = JsonLines.__new__(JsonLines)
    logger.path, logger._file = full, full.open("ab")
    with pytest.raises(SaveFailed, match="No space left"):
        logger.log({"kind": "step"})
    with pytest.raises(OSError, match="No space left"):
        logger.close()


@pytest.mark.parametrize(
    ("report_to", "log_file", "problems"), [(None, None, 0), (["jsonl"], None, 1), (["jsonl"], "a.jsonl", 0), ([], None, 0)]
)
def test_report_to_needs_a_log_file(report_to: list[str] | None, log_file: str | None, problems: int) -> None:
    config: Any = SimpleNamespace(core=SimpleNamespace(report_to=report_to), of=lambda cls: cls(log_file=log_file))
    found = check_config(config)
    assert len(found) == problems
    assert all(problem.where == "report_to" and "log_file = " in problem.how for problem in found)
