from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from surogate_loop_standard.lock import OutputLock

from surogate_core.errors import ResumeError

HOLD = r"""
import os, sys, time
from pathlib import Path
from surogate_loop_standard.lock import OutputLock
with OutputLock(*map(Path, sys.argv[2:])):
    if sys.argv[1] == "fork" and os.fork() == 0:
        os.write(1, f"child {os.getpid()}\n".encode())  # in one piece: two processes write here
    else:
        os.write(1, b"held\n")
    time.sleep(60)
"""


def hold(*directories: Path, how: str = "alone") -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, how, *map(str, directories)], stdout=subprocess.PIPE, text=True)
    return process


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def test_two_processes_exclude_each_other_until_kill_9(tmp_path: Path) -> None:
    output, checkpoints = tmp_path / "output", tmp_path / "checkpoints"
    process = hold(output, checkpoints)
    try:
        assert line(process) == "held\n"
        for mine in ((output,), (tmp_path / "other", checkpoints), (checkpoints / ".." / "output",)):
            with pytest.raises(
                ResumeError, match=f"another run is using this directory: process {process.pid}, started 20"
            ) as caught:
                OutputLock(*mine).__enter__()
            [problem] = caught.value.problems
            assert problem.where in (str(output), str(checkpoints))
            assert "stop it" in problem.how
            assert "output_dir" in problem.how
            assert caught.value.exit_code == 2
        with OutputLock(tmp_path / "other"):  # what the second attempt had already taken is free again
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            with OutputLock(output, checkpoints):
                pass
    finally:
        end(process)


def test_a_forked_worker_that_outlives_the_run_does_not_hold_the_lock(tmp_path: Path) -> None:
    process = hold(tmp_path, how="fork")
    try:
        said = sorted([line(process), line(process)])
        child = int(said[0].split()[1])
        process.kill()
        process.wait()
        os.kill(child, 0)
        with OutputLock(tmp_path):
            pass
        os.kill(child, signal.SIGKILL)
    finally:
        end(process)


def test_the_same_process_excludes_itself_and_one_directory_twice_is_one(tmp_path: Path) -> None:
    place = tmp_path / "new" / "deep"
    with OutputLock(place, place), pytest.raises(ResumeError, match=f"process {os.getpid()}"):
        OutputLock(place).__enter__()
    with OutputLock(place):
        pass


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResumeError, match="cannot write here: Not a directory"):
        OutputLock(tmp_path / "file" / "output").__enter__()


def test_an_owner_that_cannot_be_read(tmp_path: Path) -> None:
    with OutputLock(tmp_path):
        (tmp_path / ".surogate.lock.json").write_text("{")
        with pytest.raises(ResumeError, match="only just started"):
            OutputLock(tmp_path).__enter__()
