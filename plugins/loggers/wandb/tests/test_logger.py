from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from surogate_logger_wandb import logger
from surogate_logger_wandb.plugin import Options

from surogate_core import testing
from surogate_core.contracts import LoggerContext

KEY = "0123456789abcdef0123456789abcdef01234567"


def context(directory: Path, notices: list[str] | None = None, *, report_to: Any = ("wandb",), **more: Any) -> LoggerContext:
    core = testing.context(report_to=list(report_to)).config
    told = {"notice": (notices if notices is not None else []).append, "run_name": "mine", "resumed": 0, "terminal": False, **more}
    return LoggerContext(config=core, output_dir=directory, quiet=True, **told)


def write(directory: Path, *records: dict[str, Any], options: Options | None = None, **more: Any) -> str:
    """Log these records after a ``run`` record; returns the run's id."""
    made = logger.build(options or Options(), context(directory, **more))
    assert made is not None
    for record in ({"kind": "run", "step": 0, "config": {"learning_rate": 0.1}}, *records):
        made.log(record)
    made.close()
    return made.id


def file_of(directory: Path) -> Path:
    (found,) = directory.glob("wandb/offline-run-*/run-*.wandb")
    return found


@pytest.fixture
def read(read_wandb: Callable[[Path], list[Any]]) -> Callable[[Path], list[Any]]:
    """Records of the one run in a directory; wandb's service writes the last ones after ``finish`` has returned."""

    def records(directory: Path) -> list[Any]:
        for _ in range(600):
            found = read_wandb(file_of(directory))
            if of_kind(found, "exit"):
                return found
            time.sleep(0.1)
        raise AssertionError("the run has no end")

    return records


def of_kind(records: list[Any], kind: str) -> list[Any]:
    return [getattr(record, kind) for record in records if record.WhichOneof("record_type") == kind]


def test_only_when_asked_for(tmp_path: Path) -> None:
    notices: list[str] = []
    assert logger.build(Options(), context(tmp_path, notices, report_to=("aim",))) is None
    assert notices == []
    assert logger.build(Options(wandb_project="p"), context(tmp_path, notices, report_to=())) is None
    assert notices == ['wandb_project and wandb_name have no effect: report_to does not name "wandb"']


def test_conforms(tmp_path: Path) -> None:
    testing.check_logger(logger.build(Options(), context(tmp_path)))  # type: ignore[arg-type]


def test_a_record_before_the_run_is_kept_and_without_a_run_there_is_none(tmp_path: Path, read: Callable[..., Any]) -> None:
    made = logger.build(Options(), context(tmp_path))
    assert made is not None
    made.log({"kind": "notice", "text": "already finished"})
    made.close()
    assert not (tmp_path / "wandb").exists()
    made = logger.build(Options(), context(tmp_path))
    assert made is not None
    made.log({"kind": "notice", "text": "early"})
    made.log({"kind": "run", "config": {}})
    made.close()
    (line,) = of_kind(read(tmp_path), "output_logger")
    assert json.loads(line.line) == {"kind": "notice", "text": "early"}


def test_figures_keep_every_bit_and_what_json_lacks_is_kept(tmp_path: Path, read: Callable[..., Any]) -> None:
    figures = {"loss": 0.1 + 0.2, "lr": 5e-324, "tokens": 2**60 + 1, "phase": "warm-up", "ms": {"aim": 0.5}}
    write(tmp_path, {"kind": "step", "step": 3, **figures}, {"kind": "eval", "step": 3, "perplexity": math.inf})
    (row,) = of_kind(read(tmp_path), "history")
    found = {item.nested_key[0]: json.loads(item.value_json) for item in row.item}
    wanted = {"train/loss": 0.1 + 0.2, "train/lr": 5e-324, "train/tokens": 2**60 + 1, "train/phase": "warm-up"}
    assert {key: value for key, value in found.items() if key[0] != "_"} == {
        **wanted,
        "train/ms/aim": 0.5,
        "eval/perplexity": math.inf,
    }
    assert found["_step"] == 3


@pytest.mark.parametrize(
    ("records", "code"), [([{"kind": "end", "loss": 1.0}], 0), ([{"kind": "end", "failed": "nan"}], 1), ([], 1)]
)
def test_a_failed_run_is_marked(tmp_path: Path, read: Callable[..., Any], records: list[Any], code: int) -> None:
    write(tmp_path, *records)
    (end,) = of_kind(read(tmp_path), "exit")
    assert end.exit_code == code


def test_the_run_of_the_checkpoint_is_continued(tmp_path: Path, read: Callable[..., Any]) -> None:
    first = logger.build(Options(), context(tmp_path))
    other = logger.build(Options(), context(tmp_path))
    assert first is not None
    assert other is not None
    assert first.id != other.id
    assert write(tmp_path, state=first.state(), resumed=7) == first.id
    (run,) = of_kind(read(tmp_path), "run")
    assert run.run_id == first.id


def test_the_environment_is_respected_where_the_configuration_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: Callable[..., Any]
) -> None:
    for name, value in {"PROJECT": "of-env", "NAME": "env-name", "RUN_ID": "env-id", "DIR": str(tmp_path / "there")}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    code = (
        "import sys, pathlib; sys.path[:0] = [sys.argv[1]]; from test_logger import write, Options;"
        "write(pathlib.Path(sys.argv[2]), options=Options(wandb_name=sys.argv[3] or None))"
    )
    for name, wanted in (("", "env-name"), ("given", "given")):
        target = tmp_path / f"there{name}"
        monkeypatch.setenv("WANDB_DIR", str(target))
        subprocess.run([sys.executable, "-c", code, str(Path(__file__).parent), str(tmp_path / "out"), name], check=True)
        (run,) = of_kind(read(target), "run")
        assert (run.project, run.display_name, run.run_id) == ("of-env", wanted, "env-id")


def test_without_a_key_the_run_is_offline_and_says_how_to_send_it(tmp_path: Path) -> None:
    notices: list[str] = []
    made = logger.build(Options(), context(tmp_path, notices))
    assert made is not None
    assert made.mode == "offline"
    place = f"{tmp_path}/wandb/offline-run-*-{made.id}"
    assert notices == [f"wandb: offline, run {made.id}; send it with: wandb sync {place}"]


@pytest.mark.parametrize("mode", ["offline", "online", "disabled"])
def test_wandb_mode_decides_if_it_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    monkeypatch.setenv("WANDB_MODE", mode)
    notices: list[str] = []
    made = logger.build(Options(), context(tmp_path, notices))
    assert made is not None
    assert made.mode is None
    assert len(notices) == (mode == "offline")


@pytest.mark.parametrize(
    ("environ", "found"),
    [
        ({}, False),
        ({"WANDB_API_KEY": KEY}, True),
        ({"NETRC": "good"}, True),
        ({"NETRC": "other"}, False),
        ({"NETRC": "broken"}, False),
        ({"NETRC": "good", "WANDB_BASE_URL": "https://own.example:8080"}, False),
        ({"NETRC": "other", "WANDB_BASE_URL": "https://own.example:8080"}, True),
    ],
)
def test_a_key_is_found_where_wandb_finds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], found: bool
) -> None:
    from wandb.sdk.lib.wbauth import read_netrc_auth

    (tmp_path / "good").write_text(f"machine api.wandb.ai\n  login user\n  password {KEY}\n")
    (tmp_path / "other").write_text(f"machine own.example:8080\n  login user\n  password {KEY}\n")
    (tmp_path / "broken").write_text("machine\n")
    for name, value in environ.items():
        monkeypatch.setenv(name, str(tmp_path / value) if name == "NETRC" else value)
    assert logger.has_key() == found
    if "WANDB_API_KEY" not in environ:
        host = environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
        assert (read_netrc_auth(host=host) is not None) == found, "what wandb itself says"


def test_building_imports_no_wandb(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; sys.path[:0] = [sys.argv[1]]; from test_logger import context, logger, Options;"
        "logger.build(Options(), context(pathlib.Path(sys.argv[2]))); print(sorted({'wandb', 'torch'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, str(Path(__file__).parent), str(tmp_path)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "[]\n"


def test_steps_are_handed_over_together_and_what_is_none_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    class Run:
        def log(self, row: dict[str, Any], step: int) -> None:
            seen.append(step)

        def write_logs(self, line: str) -> None:
            seen.append(0)

    def step(number: int) -> list[int]:
        made.log({"kind": "step", "step": number, "loss": 1.0})
        return seen

    made = logger.build(Options(), context(tmp_path))
    assert made is not None
    monkeypatch.setattr(made, "_run", Run())
    clock = [100.0]
    monkeypatch.setattr(logger.time, "monotonic", lambda: clock[0])
    assert step(1) == [1]
    assert step(2) == step(3) == [1]
    clock[0] += logger.PAUSE
    assert step(4) == [1, 2, 3, 4]
    assert step(5) == [1, 2, 3, 4]
    made.log({"kind": "checkpoint", "step": 5})
    assert seen[4:] == [5, 0]
    assert step(6)[6:] == [6], "wandb keeps row 5 until row 6 begins"
    assert step(7)[6:] == [6]
