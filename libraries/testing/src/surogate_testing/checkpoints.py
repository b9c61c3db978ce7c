"""Where the state of a run is kept."""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from surogate_core.contracts import Checkpoints, CheckpointStore, Saved
from surogate_core.errors import Refused, ResumeError, SaveFailed, SurogateError

STATE = {"loss": 0.1 + 0.2, "best": None, "names": ["ä", "\u2028"], "progress": {"step": 3}}


def check_checkpoints(store: CheckpointStore, directory: Path) -> None:
    """``directory`` is empty, on a file system with less than 10¹⁸ bytes free.

    What was saved is found again by another object, with its files and its state; the highest step wins. A save that fails, or
    whose process dies in the middle of a file, leaves the earlier checkpoints, that of the same step too. One that is torn
    afterwards is passed over and named; when all are, that is an error. A changed byte is found. The newest ``limit`` are kept, the
    best among them, and no pickle. A rehearsal leaves nothing. All errors are those of
    :class:`~surogate_core.contracts.Checkpoints`."""
    root = directory / "found"
    checkpoints = store(root, 9)
    assert checkpoints.newest() is None, "there is a checkpoint in an empty directory"
    for step in (1, 3, 2):
        path = checkpoints.save(step, _filler(step), {**STATE, "step": step})
        assert path.exists(), f"save gave {path}, which is not there"
    saved = _newest(store(root, 9))
    assert saved.step == 3, f"steps 1, 3 and 2 were saved, the newest is {saved.step}"
    assert dict(saved.state) == {**STATE, "step": 3}, f"the state came back as {saved.state}"
    assert _content(saved) == _text(3), "a file came back with other bytes"
    assert (saved.path / "deep" / "config.json").is_file(), "a file in a directory did not come back"
    saved.verify()
    _failures_leave_the_last_one(store, root)
    _torn(store, directory / "torn")
    _kept(store, directory / "kept")
    _others(store, directory / "others")


def _failures_leave_the_last_one(store: CheckpointStore, root: Path) -> None:
    def full(path: Path) -> None:
        _filler(4)(path)
        raise OSError(28, os.strerror(28), str(path))

    def pickled(path: Path) -> None:
        (path / "model.pkl").write_bytes(b"\x80\x04.")

    def killed(path: Path) -> None:
        (path / "model.safetensors").write_bytes(_text(4)[:99])
        os.kill(os.getpid(), signal.SIGKILL)

    _raises(SaveFailed, lambda: store(root, 9).save(4, full, STATE), "a save on a full disk")
    _raises(SaveFailed, lambda: store(root, 9).save(4, pickled, STATE), "a pickle in a checkpoint")
    for step in (4, 3):
        _in_a_process_that_dies(lambda step=step: store(root, 9).save(step, killed, STATE))  # type: ignore[misc]
        saved = _newest(store(root, 9))
        assert saved.step == 3, f"after saves of step {step} that failed the newest is {saved.step}, not 3"
        assert _content(saved) == _text(3), f"after saves of step {step} that failed step 3 has other files"
        saved.verify()
    checkpoints = store(root, 9)
    checkpoints.save(4, _filler(4), STATE)
    assert _newest(store(root, 9)).step == 4, "after saves that failed the next one is not found"


def _torn(store: CheckpointStore, root: Path) -> None:
    checkpoints = store(root, 9)
    paths = [checkpoints.save(step, _filler(step), STATE) for step in (1, 2)]
    model = paths[1] / "model.safetensors"
    model.write_bytes(b"?" + model.read_bytes()[1:])
    saved = _newest(store(root, 9))
    if saved.step == 2:  # found by its size alone: then verify has to tell
        _raises(ResumeError, saved.verify, "a byte that was changed, in verify")
    model.write_bytes(model.read_bytes()[:50])
    again = store(root, 9)
    saved = _newest(again)
    assert saved.step == 1, "a checkpoint whose file was cut in half is taken for complete"
    assert [name for name, reason in again.skipped if name == paths[1].name and reason], (
        f"the torn one, {paths[1].name}, is not named in skipped: {again.skipped}"
    )
    (paths[0] / "model.safetensors").unlink()
    _raises(ResumeError, store(root, 9).newest, "newest, where all checkpoints are torn,")


def _kept(store: CheckpointStore, root: Path) -> None:
    checkpoints = store(root, 2)
    paths = [checkpoints.save(1, _filler(1), STATE)]
    checkpoints.mark_best(paths[0])
    paths += [checkpoints.save(step, _filler(step), STATE) for step in (2, 3, 4)]
    left = [path for path in paths if path.exists()]
    assert paths[0] in left, "the best checkpoint was removed"
    assert paths[-1] in left, "the last checkpoint was removed"
    assert len(left) == 2, f"{len(left)} checkpoints are kept, the limit is 2: {[path.name for path in left]}"


def _others(store: CheckpointStore, root: Path) -> None:
    checkpoints = store(root, 2)
    checkpoints.save(1, _filler(1), STATE)
    seen: list[bytes] = []
    checkpoints.rehearse(_filler(5), lambda path: seen.append((path / "model.safetensors").read_bytes()))
    assert seen == [_text(5)], "a rehearsal does not show what was written"
    assert _newest(store(root, 2)).step == 1, "a rehearsal left a checkpoint"
    checkpoints.room(1)
    _raises(Refused, lambda: checkpoints.room(10**18), "room for 10^18 bytes")
    aside = checkpoints.set_aside(root)
    assert store(root, 2).newest() is None, "there is still a checkpoint after set_aside"
    assert [path for path in Path(aside).rglob("model.safetensors") if path.read_bytes() == _text(1)], (
        f"set_aside says {aside!r}, and the checkpoint is not there"
    )


def _text(step: int) -> bytes:
    return f"the weights of step {step}. ".encode() * 10


def _filler(step: int) -> Callable[[Path], None]:
    def fill(path: Path) -> None:
        (path / "model.safetensors").write_bytes(_text(step))
        (path / "deep").mkdir()
        (path / "deep" / "config.json").write_text("{}")

    return fill


def _content(saved: Saved) -> bytes:
    return (saved.path / "model.safetensors").read_bytes()


def _newest(checkpoints: Checkpoints) -> Saved:
    try:
        saved = checkpoints.newest()
    except SurogateError as error:
        raise AssertionError(f"no checkpoint is found: {error}") from error
    assert saved is not None, "a checkpoint that was saved is not found"
    return saved


def _raises(kind: type[SurogateError], work: Callable[[], Any], what: str) -> None:
    try:
        work()
    except kind as error:
        if not error.problems[0].how:
            raise AssertionError(f"{what} raises {kind.__name__} without saying how to mend it") from error
    except Exception as error:
        raise AssertionError(f"{what} raises {type(error).__name__}, wanted {kind.__name__}: {error}") from error
    else:
        raise AssertionError(f"{what} raises nothing, wanted {kind.__name__}")


def _in_a_process_that_dies(work: Callable[[], Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of threads; the child only writes files and dies
        child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "a save did not come to its files in a forked process"
