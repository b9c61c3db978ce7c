from __future__ import annotations

import ast
import errno
import json
import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from surogate_checkpoint_local import store
from surogate_checkpoint_local.store import Checkpoints
from surogate_checkpoint_local.testing import filler, names, save

from surogate_core.errors import Refused, ResumeError, SaveFailed
from surogate_core.train import durable


# ---------------------------------------------------------------- saving and finding
def test_saves_finds_and_verifies(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "not" / "there", 3)
    assert checkpoints.newest() is None
    state = {"loss": 0.1 + 0.2, "best": None, "names": ["ä", "\u2028"]}
    path = checkpoints.save(50, filler("x"), state)
    assert path.name == "checkpoint-00000050"
    saved = checkpoints.newest()
    assert saved is not None
    assert (saved.path, saved.step, saved.state) == (path, 50, state)
    saved.verify()
    assert os.readlink(path.parent / "last") == "checkpoint-00000050"
    manifest = json.loads((path / "manifest.json").read_text())
    assert set(manifest["files"]) == {"model.safetensors", "deep/config.json", "state.json"}
    # published: SHA-256 of "{}"
    assert manifest["files"]["deep/config.json"] == {
        "size": 2,
        "sha256": "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",
    }
    assert names(path.parent) == {"checkpoint-00000050", "last"}


def test_steps_are_ordered_as_numbers(tmp_path: Path) -> None:
    checkpoints = save(tmp_path, 99_999_999, 100_000_000, limit=1)
    assert names(tmp_path) == {"checkpoint-100000000", "last"}
    saved = checkpoints.newest()
    assert saved is not None
    assert saved.step == 100_000_000


def _drop(path: Path) -> None:
    (path / "model.safetensors").unlink()


def _shorten(path: Path) -> None:
    os.truncate(path / "model.safetensors", 5)


def _garble_state(path: Path) -> None:
    size = (path / "state.json").stat().st_size
    (path / "state.json").write_bytes(b"\0" * size)


def _drop_manifest(path: Path) -> None:
    (path / "manifest.json").unlink()


def _half_manifest(path: Path) -> None:
    os.truncate(path / "manifest.json", 30)


def _empty(path: Path) -> None:
    shutil.rmtree(path)
    path.mkdir()


@pytest.mark.parametrize(
    ("tear", "why"),
    [
        (_drop, "model.safetensors: No such file or directory"),
        (_shorten, "model.safetensors has 5 bytes, 700 were saved"),
        (_garble_state, "state.json cannot be read"),
        (_drop_manifest, "manifest.json: No such file"),
        (_half_manifest, "manifest.json or state.json cannot be read"),
        (_empty, "manifest.json: No such file"),
    ],
)
def test_newest_passes_over_torn_ones(tmp_path: Path, tear: Callable[[Path], None], why: str) -> None:
    checkpoints = save(tmp_path, 1, 2)
    tear(tmp_path / "checkpoint-00000002")
    saved = checkpoints.newest()
    assert saved is not None
    assert saved.step == 1
    [(name, reason)] = checkpoints.skipped
    assert name == "checkpoint-00000002"
    assert why in reason
    tear(tmp_path / "checkpoint-00000001")
    with pytest.raises(ResumeError, match="checkpoint-00000002 is not complete") as caught:
        checkpoints.newest()
    assert len(caught.value.problems) == 2
    checkpoints.save(2, filler("again"), {})
    saved = checkpoints.newest()
    assert saved is not None
    assert saved.step == 2


def test_verify_names_the_changed_file(tmp_path: Path) -> None:
    saved = save(tmp_path, 1).newest()
    assert saved is not None
    with (saved.path / "model.safetensors").open("r+b") as file:
        file.seek(350)
        file.write(b"#")
    with pytest.raises(ResumeError, match=r"model\.safetensors is not what was saved: its SHA-256 differs"):
        saved.verify()


# ---------------------------------------------------------------- links and pruning
def test_prunes_the_oldest_never_best_nor_last(tmp_path: Path) -> None:
    checkpoints = save(tmp_path, 1, limit=3)
    checkpoints.mark_best(tmp_path / "checkpoint-00000001")
    for step in (2, 3, 4, 5):
        checkpoints.save(step, filler("x"), {})
    assert names(tmp_path) == {"best", "last", *(f"checkpoint-0000000{step}" for step in (1, 4, 5))}
    checkpoints.mark_best(tmp_path / "checkpoint-00000004")
    checkpoints.save(6, filler("x"), {})
    assert names(tmp_path) == {"best", "last", *(f"checkpoint-0000000{step}" for step in (4, 5, 6))}
    assert os.readlink(tmp_path / "best") == "checkpoint-00000004"
    Checkpoints(tmp_path, 1).save(7, filler("x"), {})
    assert names(tmp_path) == {"best", "last", "checkpoint-00000004", "checkpoint-00000007"}


def test_torn_ones_take_no_place_and_go_when_older(tmp_path: Path) -> None:
    save(tmp_path, 1, 2, 3, 9)
    for step in (2, 9):
        _drop(tmp_path / f"checkpoint-0000000{step}")
    save(tmp_path, 4, limit=3)
    assert names(tmp_path) == {"last", *(f"checkpoint-0000000{step}" for step in (1, 3, 4, 9))}


def test_nothing_is_deleted_before_the_new_one_is_complete(tmp_path: Path) -> None:
    checkpoints = save(tmp_path, 1, 2, limit=2)
    seen: list[set[str]] = []

    def fill(directory: Path) -> None:
        filler("x")(directory)
        seen.append(names(tmp_path))

    checkpoints.save(3, fill, {})
    assert {"checkpoint-00000001", "checkpoint-00000002"} <= seen[0]
    assert names(tmp_path) == {"last", "checkpoint-00000002", "checkpoint-00000003"}


def test_all_is_flushed_before_the_rename_and_the_root_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[tuple[str, ...]] = []
    for name in ("flush", "rename"):
        real = getattr(durable, name)

        def logged(*paths: Any, name: str = name, real: Callable[..., None] = real) -> None:
            log.append((name, *(str(path.relative_to(tmp_path)) for path in paths)))
            real(*paths)

        monkeypatch.setattr(durable, name, logged)

    def fill(directory: Path) -> None:  # written by a library that flushes nothing
        (directory / "deep").mkdir()
        (directory / "deep" / "model.safetensors").write_bytes(b"x")

    save_one = Checkpoints(tmp_path, 2).save
    save_one(1, fill, {})
    partial = ".checkpoint-00000001.partial"
    rename = log.index(("rename", partial, "checkpoint-00000001"))
    files = ("", "/deep", "/deep/model.safetensors", "/state.json", "/manifest.json")
    assert {("flush", partial + file) for file in files} <= set(log[:rename])
    assert log[rename + 1] == ("flush", ".")


# ---------------------------------------------------------------- what fill may do
def test_a_limit_on_file_size_met_inside_a_rust_library(tmp_path: Path) -> None:
    import numpy as np
    from safetensors import numpy

    checkpoints = save(tmp_path, 1)
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, old[1]))
    try:
        with pytest.raises(SaveFailed, match=f"step 2 could not be saved: {os.strerror(errno.EFBIG)}"):
            checkpoints.save(2, lambda path: numpy.save_file({"x": np.zeros(100_000)}, path / "model.safetensors"), {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert names(tmp_path) == {"last", "checkpoint-00000001"}


@pytest.mark.parametrize(
    "text", ["IoError(Os { code: 28, kind: StorageFull })", "I/O error: No space left on device (os error 28)"]
)
def test_an_error_of_the_file_system_told_as_text(tmp_path: Path, text: str) -> None:
    def fill(directory: Path) -> None:
        raise Exception(f"Error while serializing: {text}")

    with pytest.raises(SaveFailed, match=f"step 1 could not be saved: {os.strerror(errno.ENOSPC)}") as caught:
        Checkpoints(tmp_path, 1).save(1, fill, {})
    assert "there is no earlier checkpoint" in caught.value.problems[0].where


def test_other_errors_pass_and_leave_nothing(tmp_path: Path) -> None:
    def fill(directory: Path) -> None:
        filler("x")(directory)
        raise ZeroDivisionError

    checkpoints = save(tmp_path, 1)
    with pytest.raises(ZeroDivisionError):
        checkpoints.save(2, fill, {})
    assert names(tmp_path) == {"last", "checkpoint-00000001"}


@pytest.mark.parametrize("name", ["optimizer.pt", "pytorch_model.bin", "a.pth", "b.pkl", "c.ckpt", "deep/training_args.BIN"])
def test_refuses_pickles(tmp_path: Path, name: str) -> None:
    def fill(directory: Path) -> None:
        filler("x")(directory)
        (directory / name).write_bytes(b"")

    with pytest.raises(SaveFailed, match=f"{name}: a checkpoint holds safetensors, JSON and text only"):
        Checkpoints(tmp_path, 2).save(1, fill, {})
    assert names(tmp_path) == set()


# ---------------------------------------------------------------- around it
def test_rehearsal_reads_back_and_leaves_nothing(tmp_path: Path) -> None:
    seen: list[bytes] = []
    checkpoints = save(tmp_path, 1)
    checkpoints.rehearse(filler("x"), lambda path: seen.append((path / "model.safetensors").read_bytes()))
    assert seen == [b"x" * 100]
    assert names(tmp_path) == {"last", "checkpoint-00000001"}

    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    with pytest.raises(SaveFailed, match="rehearsal of a checkpoint could not be saved: No space"):
        checkpoints.rehearse(full, lambda path: None)


def test_room_says_what_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=3_000_000_000)
    asked: list[Path] = []

    def disk_usage(path: Path) -> Any:
        asked.append(path)
        return usage

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    Checkpoints(tmp_path / "not" / "there", 1).room(3_000_000_000)
    with pytest.raises(Refused, match=r"too little disk: the checkpoints need 3\.1 GB, 3\.0 GB are free") as caught:
        Checkpoints(tmp_path / "not" / "there", 1).room(3_100_000_000)
    assert caught.value.exit_code == 2
    assert asked == [tmp_path, tmp_path]


def test_set_aside_keeps_everything(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path, 1).set_aside(tmp_path) == ""
    for number in (1, 2):
        checkpoints = save(tmp_path / "checkpoints", 1, 2)
        for name in ("metrics.jsonl", "generations.jsonl"):
            (tmp_path / name).write_text("{}\n")
        where = Checkpoints(tmp_path / "checkpoints", 1).set_aside(tmp_path)
        assert where == f"{tmp_path}/earlier-{number}, {tmp_path}/checkpoints/earlier-{number}"
        assert checkpoints.newest() is None
        assert not list(tmp_path.glob("*.jsonl"))
        earlier = Checkpoints(tmp_path / "checkpoints" / f"earlier-{number}", 1).newest()
        assert earlier is not None
        assert earlier.step == 2
        assert (earlier.path.parent / "last").resolve() == earlier.path


def test_a_save_changes_the_disk_through_this_layer_alone() -> None:
    """Otherwise the tests that die at every operation would miss one. ``shutil.rmtree`` clears up after a failure."""
    changing = {"write_text", "write_bytes", "mkdir", "replace", "rename", "unlink", "rmdir", "symlink_to", "fsync", "touch"}
    tree = ast.parse(Path(store.__file__).read_text())
    found = {
        f"{ast.unparse(node.func.value)}.{node.func.attr}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in changing
    }
    assert {name for name in found if not name.startswith("durable.")} == set()
