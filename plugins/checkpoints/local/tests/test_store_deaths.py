"""A save that is killed, or refused by the file system, at each of its operations."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from surogate_checkpoint_local.store import Checkpoints
from surogate_checkpoint_local.testing import filler, names, save

from surogate_core.errors import SaveFailed
from surogate_core.train import durable

SINGLE = ("make_directory", "write", "flush", "rename", "link", "unlink", "remove_directory")


def _at(call: int, act: Callable[[str, tuple[Any, ...]], None]) -> Iterator[int]:
    """Replace the single operations so that ``act`` runs in place of number ``call``. Yields once; counts in between."""
    count = 0
    originals = {name: getattr(durable, name) for name in SINGLE}

    def wrap(name: str) -> Callable[..., None]:
        def counted(*arguments: Any) -> None:
            nonlocal count
            count += 1
            if count == call:
                act(name, arguments)
            originals[name](*arguments)

        return counted

    for name in SINGLE:
        setattr(durable, name, wrap(name))
    try:
        yield count
    finally:
        for name, original in originals.items():
            setattr(durable, name, original)


def _die(name: str, arguments: tuple[Any, ...]) -> None:
    if name == "write":  # in the middle of it
        arguments[0].write_bytes(arguments[1][: len(arguments[1]) // 2])
    os.kill(os.getpid(), signal.SIGKILL)


def _killed_at(call: int, work: Callable[[], None]) -> bool:
    """Run ``work`` in a forked child that is killed at its operation number ``call``; whether it came that far."""
    child = os.fork()
    if child == 0:
        try:
            for _ in _at(call, _die):
                work()
        except BaseException as error:
            print(repr(error), file=sys.__stderr__, flush=True)
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


@pytest.mark.filterwarnings("ignore:This process.*multi-threaded:DeprecationWarning")
@pytest.mark.parametrize(("step", "limit"), [(4, 2), (3, 1), (3, 2)], ids=["new", "replaced, limit 1", "replaced"])
def test_killed_at_every_operation(tmp_path: Path, step: int, limit: int) -> None:
    """A save of a new step that prunes, and saves of a step that exists, killed at each operation and in mid-write."""
    template = tmp_path / "template"
    start = save(template, 1, 2, 3)
    start.mark_best(template / "checkpoint-00000002")
    call, results = 0, set()
    while True:
        call += 1
        root = tmp_path / f"run-{call}"
        shutil.copytree(template, root, symlinks=True)
        checkpoints = Checkpoints(root, limit)

        def work(checkpoints: Checkpoints = checkpoints) -> None:
            checkpoints.mark_best(checkpoints.save(step, filler("second"), {"step": step, "content": "second"}))

        killed = _killed_at(call, work)
        saved = checkpoints.newest()
        assert saved is not None
        saved.verify()
        assert checkpoints.skipped == [], f"torn checkpoint after a kill at operation {call}"
        assert saved.step >= 3
        assert (saved.path / "model.safetensors").read_bytes() == saved.state["content"].encode() * 100
        assert os.path.exists(root / "best")
        for path in root.glob("checkpoint-*"):  # not even an old one is torn
            manifest = json.loads((path / "manifest.json").read_text())
            assert all((path / name).is_file() for name in manifest["files"])
        results.add((saved.step, saved.state["content"]))
        checkpoints.save(5, filler("third"), {"content": "third"})
        again = checkpoints.newest()
        assert again is not None
        assert again.step == 5
        assert not [name for name in names(root) if name.startswith(".")], "the next save cleans up"
        assert len([name for name in names(root) if name.startswith("checkpoint")]) <= max(limit, 2)
        shutil.rmtree(root)
        if not killed:
            break
    assert call > 25
    assert results == {(3, "first 3"), (step, "second")}


@pytest.mark.parametrize("step", [3, 4])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_the_file_system_refuses_at_every_operation(tmp_path: Path, step: int, number: int) -> None:
    def refuse(name: str, arguments: tuple[Any, ...]) -> None:
        if name == "write":
            arguments[0].write_bytes(arguments[1][:3])
        raise OSError(number, os.strerror(number), str(arguments[0]))

    call, failures = 0, 0
    while True:
        call += 1
        root = tmp_path / str(call)
        checkpoints = save(root, 1, 2, 3)
        checkpoints.limit = 2
        try:
            for _ in _at(call, refuse):
                checkpoints.save(step, filler("second"), {"content": "second"})
        except SaveFailed as error:
            failures += 1
            saved = checkpoints.newest()
            assert saved is not None
            saved.verify()
            [problem] = error.problems
            assert problem.what == f"the checkpoint of step {step} could not be saved: {os.strerror(number)}"
            assert str(root) in problem.where
            assert f"the last good checkpoint is intact: {saved.path}" in problem.where
            assert ("save_total_limit" if number == errno.ENOSPC else "writable") in problem.how
            assert not [name for name in names(root) if name.endswith(".partial") and "checkpoint" in name]
            checkpoints.save(step, filler("third"), {"content": "third"})
            saved = checkpoints.newest()
            assert saved is not None
            assert saved.state["content"] == "third"
        else:
            break
    assert failures == call - 1 > 20
