from __future__ import annotations

import math
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from surogate_logger_aim import logger
from surogate_logger_aim.plugin import Options

from surogate_core import testing
from surogate_core.contracts import LoggerContext
from surogate_core.testing import check_logger


def context(notices: list[str] | None = None, *, report_to: Any = ("aim",), **more: Any) -> LoggerContext:
    core = testing.context(report_to=list(report_to)).config
    told = {"notice": (notices if notices is not None else []).append, "run_name": "mine", "resumed": 0, "quiet": True, **more}
    return LoggerContext(config=core, output_dir=Path("out"), terminal=False, **told)


def write(options: Options, *records: dict[str, Any], notices: list[str] | None = None, **more: Any) -> dict[str, Any]:
    """Log these records after a ``run`` record; returns the logger's state."""
    made = logger.build(options, context(notices, **more))
    assert made is not None
    for record in ({"kind": "run", "step": 0, "config": {"learning_rate": 0.1, "datasets.0.path": "x", "empty": None}}, *records):
        made.log(record)
    made.close()
    return made.state()


def test_only_when_asked_for() -> None:
    notices: list[str] = []
    assert logger.build(Options(), context(notices, report_to=("wandb",))) is None
    assert notices == []
    assert logger.build(Options(aim_repo="p"), context(notices, report_to=())) is None
    assert notices == ['aim_experiment, aim_repo and aim_name have no effect: report_to does not name "aim"']


def test_one_repository_over_its_life(tmp_path: Path, read_aim: Callable[[Path], list[dict[str, Any]]]) -> None:
    """Several checks on one repository: making one takes seconds."""
    options = Options(aim_repo=str(tmp_path), aim_experiment="tea", aim_name="green")
    check_logger(logger.build(options, context()))  # type: ignore[arg-type]
    figures = {"loss": 0.1 + 0.2, "lr": 5e-324, "phase": "warm-up", "ms": {"aim": 0.5}}
    infinite = {"kind": "eval", "step": 3, "perplexity": math.inf}
    state = write(options, {"kind": "step", "step": 3, **figures}, {"kind": "step", "step": 4, "loss": 9.0}, infinite)
    kept = next(run for run in read_aim(tmp_path) if run["hash"] == state["run_hash"])
    assert (kept["name"], kept["experiment"], kept["ended"]) == ("green", "tea", True)
    assert kept["settings"]["hparams"] == {"learning_rate": 0.1, "datasets.0.path": "x", "empty": None}
    third = {
        "train/loss": 0.1 + 0.2,
        "train/lr": 5e-324,
        "train/phase": "warm-up",
        "train/ms/aim": 0.5,
        "eval/perplexity": math.inf,
    }
    assert kept["rows"] == {3: third, 4: {"train/loss": 9.0}}

    again = write(options, {"kind": "step", "step": 4, "loss": 1.5}, {"kind": "notice", "text": "on"}, state=state, resumed=3)
    assert again == state
    runs = read_aim(tmp_path)
    kept = next(run for run in runs if run["hash"] == state["run_hash"])
    assert kept["rows"] == {3: third, 4: {"train/loss": 1.5}}, "the replayed step replaces the old one"
    assert kept["lines"] == [{"kind": "notice", "text": "on"}]
    assert len(runs) == 2

    notices: list[str] = []
    other = write(options, state={"run_hash": "0" * 24}, notices=notices)
    assert other["run_hash"] != "0" * 24
    assert notices[1:] == [f"aim: {tmp_path} has no run {'0' * 24}; what is left of the run becomes a new one there"]


def test_the_command_that_shows_the_run_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notices: list[str] = []

    def told(repo: str | None) -> str:
        logger.build(Options(aim_repo=repo), context(notices))
        return notices.pop()

    place = tmp_path / "a b"
    (place / "deep").mkdir(parents=True)
    monkeypatch.chdir(place / "deep")
    assert told(None) == f"aim: the run goes to {place}/deep; see it with: aim up --repo '{place}/deep'"
    (place / ".aim").mkdir()
    assert told(None) == f"aim: the run goes to {place}; see it with: aim up --repo '{place}'"
    assert told("x/.aim").endswith(f"aim up --repo '{place}/deep/x'")
    assert told("aim://host:53800") == "aim: the run goes to aim://host:53800"


def test_the_default_repository_is_aims_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from aim.sdk.repo import Repo

    (tmp_path / ".aim").mkdir()
    (tmp_path / "one" / "two").mkdir(parents=True)
    for directory in (tmp_path, tmp_path / "one" / "two"):
        monkeypatch.chdir(directory)
        made = logger.build(Options(), context())
        assert made is not None
        assert made.repo == Repo.default_repo_path()


def test_a_repository_that_cannot_be_made_is_an_error_and_holds_up_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    made = logger.build(Options(aim_repo=str(tmp_path / "file")), context())
    assert made is not None
    with pytest.raises(RuntimeError, match=r"Error: .*file"):
        made.log({"kind": "run", "config": {}})
    assert made.state() == {}


def test_a_run_that_cannot_be_opened_keeps_its_hash_for_the_next_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    made = logger.build(Options(aim_repo=str(tmp_path / "file")), context(state={"run_hash": "abc"}))
    assert made is not None
    with pytest.raises(RuntimeError, match=r"Error: .*file"):
        made.log({"kind": "run", "config": {}})
    assert made.state() == {"run_hash": "abc"}


def step(number: int) -> dict[str, Any]:
    return {"kind": "step", "step": number, "loss": float(number)}


def started(tmp_path: Path) -> logger.AimRun:
    made = logger.build(Options(aim_repo=str(tmp_path)), context())
    assert made is not None
    made.log({"kind": "run", "step": 0, "config": {}})
    return made


def test_what_fails_in_aims_process_is_an_error_here(tmp_path: Path) -> None:
    made = started(tmp_path)
    made._send({"curves": [1], "step": 1})
    with pytest.raises(RuntimeError, match=r"AttributeError: .*list"):
        made.close()
    made.close()

    killed = started(tmp_path)
    assert killed._worker is not None
    killed._worker.kill()
    killed._worker.wait()
    with pytest.raises(RuntimeError, match="ended with exit status -9"):
        killed.log(step(1))


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[2])
from test_logger import Path, started, step
made = started(Path(sys.argv[1]))
for stop in (signal.SIGINT, signal.SIGTERM):
    made._worker.send_signal(stop)
for number in range(1, 51):
    made.log(step(number))
print(made.hash, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_run_that_is_interrupted_and_killed_has_all_that_was_logged(
    tmp_path: Path, read_aim: Callable[[Path], list[dict[str, Any]]]
) -> None:
    words = [sys.executable, "-c", KILLED, str(tmp_path), str(Path(__file__).parent)]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=False)
    assert done.returncode == -signal.SIGKILL
    end = time.monotonic() + 60
    while not (runs := [run for run in read_aim(tmp_path) if run["hash"] == done.stdout.strip()]) or not runs[0]["ended"]:
        assert time.monotonic() < end, "the run is not closed"
        time.sleep(0.5)
    assert runs[0]["rows"] == {number: {"train/loss": float(number)} for number in range(1, 51)}
