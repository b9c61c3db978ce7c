"""Stores of checkpoints that break one promise each, and what the check says of them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from attrs import frozen
from surogate_testing import check_checkpoints

from surogate_core.errors import Refused, ResumeError, SaveFailed


@frozen
class Saved:
    path: Path
    step: int
    state: dict[str, Any]
    sums: dict[str, int]
    fault: str

    def verify(self) -> None:
        if self.fault != "blind" and any(sum((self.path / name).read_bytes()) != total for name, total in self.sums.items()):
            raise ResumeError("another file", "here", "delete it")


class Store:
    """Steps as directories: written aside, renamed, with a list of files."""

    def __init__(self, root: Path, limit: int, fault: str):
        self.root, self.limit, self.fault = root, limit, fault
        self.skipped: list[tuple[str, str]] = []
        root.mkdir(parents=True, exist_ok=True)
        if fault == "eager":
            self.save(0, lambda path: None, {})

    def save(self, step: int, fill: Callable[[Path], None], state: dict[str, Any]) -> Path:
        path = self.root / f"step-{step}"
        aside = path if self.fault == "in place" else self.root / "aside"
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        try:
            fill(aside)
        except OSError as error:
            if self.fault == "raw":
                raise
            raise SaveFailed("the disk is full", str(path), "free some") from error
        if self.fault != "pickles" and list(aside.glob("*.pkl")):
            raise SaveFailed("a pickle", str(path), "" if self.fault == "helpless" else "save with safetensors")
        if self.fault == "flat":
            shutil.rmtree(aside / "deep")
        if self.fault == "rewrites":
            (aside / "model.safetensors").write_bytes(b"")
        self._seal(aside, step, state)
        os.rename(aside, path)
        kept = sorted(self.root.glob("step-*"), key=lambda path: path.stat().st_ctime_ns)
        best = (self.root / "best").read_text() if (self.root / "best").exists() and self.fault != "forgets best" else ""
        for old in [one for one in kept[:-1] if one.name != best][: max(0, len(kept) - self.limit)]:
            if self.fault != "hoards":
                shutil.rmtree(old)
        return self.root / "elsewhere" if self.fault == "elsewhere" else path

    def _seal(self, aside: Path, step: int, state: dict[str, Any]) -> None:
        files = {path.relative_to(aside).as_posix(): path.read_bytes() for path in aside.rglob("*") if path.is_file()}
        kept = {**state, "loss": round(state.get("loss", 0.0), 3)} if self.fault == "rounds" else state
        sums = {name: sum(content) for name, content in files.items()}
        sizes = {name: len(content) for name, content in files.items()}
        (aside / "list.json").write_text(json.dumps({"step": step, "state": kept, "sums": sums, "sizes": sizes}))

    def rehearse(self, fill: Callable[[Path], None], check: Callable[[Path], None]) -> None:
        path = self.save(9, fill, {}) if self.fault == "rehearses aloud" else self.root / "rehearsal"
        path.mkdir(exist_ok=True)
        if self.fault not in ("rehearses aloud", "mimes"):
            fill(path)
        if self.fault != "mimes":
            check(path)
        if self.fault != "rehearses aloud":
            shutil.rmtree(path)

    def mark_best(self, path: Path) -> None:
        (self.root / "best").write_text(path.name)

    def newest(self) -> Saved | None:
        self.skipped = []
        order = (lambda path: path.stat().st_ctime_ns) if self.fault == "by time" else (lambda path: int(path.name[5:]))
        for path in sorted(self.root.glob("step-*"), key=order, reverse=True):
            try:
                told = json.loads((path / "list.json").read_text())
                whole = all((path / name).stat().st_size == size for name, size in told["sizes"].items())
            except OSError:
                whole = False
            if whole or self.fault == "trusts":
                return Saved(path, told["step"], told["state"], told["sums"], self.fault)
            if self.fault != "silent":
                self.skipped.append((path.name, "a file is cut"))
        if self.skipped and self.fault != "starts over":
            raise ResumeError("all are torn", str(self.root), "start over")
        return None

    def room(self, need: int) -> None:
        if need > 10**15 and self.fault != "roomy":
            raise Refused("too little room", str(self.root), "free some")

    def set_aside(self, output_dir: Path) -> str:
        target = self.root / "earlier"
        target.mkdir()
        for path in self.root.glob("step-*"):
            if self.fault == "deletes":
                shutil.rmtree(path)
            elif self.fault != "stays":
                path.rename(target / path.name)
        return str(target)


STORES = {
    "eager": "there is a checkpoint in an empty directory",
    "elsewhere": "which is not there",
    "by time": "steps 1, 3 and 2 were saved, the newest is 2",
    "rounds": "the state came back as",
    "rewrites": "a file came back with other bytes",
    "flat": "a file in a directory did not come back",
    "raw": "a save on a full disk raises OSError, wanted SaveFailed",
    "pickles": "a pickle in a checkpoint raises nothing, wanted SaveFailed",
    "helpless": "a pickle in a checkpoint raises SaveFailed without saying how to mend it",
    "in place": "after saves of step 3 that failed the newest is 2, not 3",
    "blind": "a byte that was changed, in verify raises nothing, wanted ResumeError",
    "trusts": "a checkpoint whose file was cut in half is taken for complete",
    "silent": "the torn one, step-2, is not named in skipped",
    "starts over": "newest, where all checkpoints are torn, raises nothing",
    "forgets best": "the best checkpoint was removed",
    "hoards": "4 checkpoints are kept, the limit is 2",
    "mimes": "a rehearsal does not show what was written",
    "rehearses aloud": "a rehearsal left a checkpoint",
    "roomy": "room for 10.18 bytes raises nothing, wanted Refused",
    "stays": "there is still a checkpoint after set_aside",
    "deletes": "and the checkpoint is not there",
}


def check(fault: str, directory: Path) -> None:
    store: Any = lambda root, limit: Store(root, limit, fault)  # noqa: E731
    check_checkpoints(store, directory)


def test_a_good_one(tmp_path: Path) -> None:
    check("", tmp_path)


@pytest.mark.parametrize("fault", STORES)
def test_checkpoints(fault: str, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=STORES[fault]):
        check(fault, tmp_path)
