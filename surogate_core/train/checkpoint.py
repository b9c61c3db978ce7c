"""Checkpoints: written aside, flushed, renamed; found again past torn ones; pruned without ever being torn.

    checkpoint-00000050/             complete: every file that manifest.json lists is there
    last, best                       relative links
    .checkpoint-00000050.partial     being written; from a dead process when found at the next save, which removes it
    .checkpoint-00000050.replaced    complete, while a new one takes its name; still good until that one is there
    .checkpoint-00000050.deleted     on its way out

Only the first and the fourth are ever read. A process may die between any two operations (``tests/train/test_checkpoint.py``
kills it at each): one complete checkpoint, the old or the new, is found afterwards, and the next save cleans up.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from attrs import field, frozen

from surogate_core.errors import Refused, ResumeError, SaveFailed
from surogate_core.train import durable

COMPLETE = re.compile(r"checkpoint-(\d{8,})")
REPLACED = re.compile(r"\.checkpoint-(\d{8,})\.replaced")
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
GIGABYTE = 10**9


@frozen
class Saved:
    """A complete checkpoint. ``state`` is what was given to ``save``; ``skipped`` names newer ones that are torn, and why."""

    path: Path
    step: int
    state: dict[str, Any]
    digests: Mapping[str, str] = field(repr=False)
    skipped: tuple[str, ...] = ()

    def verify(self) -> None:
        """Read every file again and compare its SHA-256. Raises ResumeError naming the first file that differs."""
        for name, digest in self.digests.items():
            try:
                same = sha256(self.path / name) == digest
            except OSError as error:
                raise _torn(self.path, f"{name} cannot be read: {error.strerror}") from error
            if not same:
                raise _torn(self.path, f"{name} is not what was saved: its SHA-256 differs from manifest.json")


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read(path: Path) -> Saved:
    """The checkpoint in a directory, checked for completeness (names and sizes, not contents). Raises ResumeError if torn."""
    path = path.resolve()
    try:
        manifest = json.loads((path / "manifest.json").read_bytes())
        step, entries = int(manifest["step"]), dict(manifest["files"])
        for name, entry in entries.items():
            size = (path / name).stat().st_size
            if size != entry["size"]:
                raise _torn(path, f"{name} has {size} bytes, {entry['size']} were saved")
        state = json.loads((path / "state.json").read_bytes())
        digests = {name: str(entry["sha256"]) for name, entry in entries.items()}
    except OSError as error:
        raise _torn(path, f"{Path(error.filename or path).name}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise _torn(path, f"manifest.json or state.json cannot be read ({type(error).__name__}: {error})") from error
    name = COMPLETE.fullmatch(path.name) or REPLACED.fullmatch(path.name)
    if name and int(name[1]) != step:
        raise _torn(path, f"it was saved as step {step}")
    if not isinstance(state, dict):
        raise _torn(path, "state.json holds no object")
    return Saved(path, step, state, digests)


def _torn(path: Path, why: str) -> ResumeError:
    return ResumeError(f"incomplete checkpoint {path.name}: {why}", where=str(path), how="use an earlier one, or delete it")


class Checkpoints:
    """The checkpoints of one directory. ``limit`` of them are kept."""

    def __init__(self, root: Path, limit: int):
        self.root = root
        self.limit = limit

    def save(self, step: int, fill: Callable[[Path], None], state: dict[str, Any]) -> Path:
        """Save one checkpoint. ``fill(directory)`` writes its files (safetensors, JSON, text); ``state`` becomes state.json.

        Raises SaveFailed, with the earlier checkpoints intact, when the file system refuses or a file is a pickle.
        """
        path = self.root / f"checkpoint-{step:08d}"
        partial = path.with_name(f".{path.name}.partial")
        try:
            self._clean()
            durable.make_directory(partial)
            fill(partial)
            durable.write_json(partial / "state.json", state)
            _seal(partial, step)
            replaced = path.with_name(f".{path.name}.replaced")
            if path.exists():
                durable.rename(path, replaced)
            durable.rename(partial, path)
            durable.flush(self.root)
            durable.replace_link(self.root / "last", path.name)
            if replaced.exists():
                self._delete(replaced)
            self._prune()
        except Exception as error:
            shutil.rmtree(partial, ignore_errors=True)
            number = _error_number(error)
            if number is None:
                raise
            raise SaveFailed(
                f"the checkpoint of step {step} could not be saved: {os.strerror(number)}",
                where=f"{getattr(error, 'filename', None) or partial}; {self._last_good()}",
                how=_remedy(number),
            ) from error
        return path

    def mark_best(self, path: Path) -> None:
        """Point ``best`` at a checkpoint of this directory, which is then not pruned."""
        durable.replace_link(self.root / "best", path.name)

    def newest(self) -> Saved | None:
        """The complete checkpoint with the highest step, None if there is none at all. Changes nothing on disk.

        Raises ResumeError if there are checkpoints and all are torn: to start over silently would hide the damage.
        """
        skipped: list[str] = []
        for path in self._candidates():
            try:
                saved = read(path)
            except ResumeError as error:
                skipped.append(error.problems[0].what)
            else:
                return Saved(saved.path, saved.step, saved.state, saved.digests, tuple(skipped))
        if skipped:
            raise ResumeError("; ".join(skipped), where=str(self.root), how="delete them, or start over with --fresh")
        return None

    def _last_good(self) -> str:
        try:
            good = self.newest()
        except (ResumeError, OSError):
            good = None
        return f"the last good checkpoint is intact: {good.path}" if good else "there is no earlier checkpoint"

    def _candidates(self) -> list[Path]:
        """Directories that may hold a checkpoint, highest step first; a replaced one after the one that took its name."""
        found = []
        for path in self.root.iterdir() if self.root.is_dir() else ():
            for rank, pattern in ((1, COMPLETE), (0, REPLACED)):
                if match := pattern.fullmatch(path.name):
                    found.append((int(match[1]), rank, path))
        return [path for _, _, path in sorted(found, reverse=True)]

    def _clean(self) -> None:
        """Finish or undo what a process that died was doing."""
        durable.make_directory(self.root)
        for path in sorted(self.root.glob(".checkpoint-*")):
            name = path.with_name(path.name[1:].rpartition(".")[0])
            if path.suffix in (".partial", ".deleted"):
                durable.remove_tree(path)
            elif path.suffix == ".replaced" and name.exists():
                self._delete(path)
            elif path.suffix == ".replaced":
                durable.rename(path, name)

    def _prune(self) -> None:
        """Delete the oldest checkpoints above the limit, which counts the best and the last; those two are never deleted."""
        links = (self.root / "last", self.root / "best")
        kept = {link.resolve().name for link in links if link.exists()}
        candidates = self._candidates()
        for path in candidates:
            if len(kept) < self.limit and _complete(path):
                kept.add(path.name)
        newest = next(index for index, path in enumerate(candidates) if path.name in kept)
        for path in candidates[newest:]:
            if path.name not in kept:
                self._delete(path)

    def _delete(self, path: Path) -> None:
        """Rename aside first, and lastingly: what is half deleted must not look like a checkpoint."""
        aside = path.with_name(f".{path.name.strip('.').removesuffix('.replaced')}.deleted")
        durable.rename(path, aside)
        durable.flush(self.root)
        durable.remove_tree(aside)


def _complete(path: Path) -> bool:
    try:
        read(path)
    except ResumeError:
        return False
    return True


def _seal(partial: Path, step: int) -> None:
    """Write manifest.json, the last file, and flush everything."""
    entries = {}
    for file in durable.files(partial):
        name = file.relative_to(partial).as_posix()
        if file.suffix in PICKLES:
            raise SaveFailed(
                f"{name}: a checkpoint holds safetensors, JSON and text only, no pickle",
                where=str(partial),
                how="save with safetensors; if a plugin wrote this file, report it to its author",
            )
        entries[name] = {"size": file.stat().st_size, "sha256": sha256(file)}
    durable.write_json(partial / "manifest.json", {"step": step, "files": entries})
    durable.flush_tree(partial)


def _error_number(error: Exception) -> int | None:
    """errno of an error of the file system, also where a Rust library (safetensors, tokenizers) wrapped it in a text."""
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"\(os error (\d+)\)|\bOs \{ code: (\d+)", str(error))
    return int(found[1] or found[2]) if found else None


def _remedy(number: int) -> str:
    again = "then start the same command again: it continues from the last good checkpoint"
    if number in (errno.ENOSPC, errno.EDQUOT):
        return f"free space, lower save_total_limit or set checkpoint_dir to another disk, {again}"
    if number in (errno.EROFS, errno.EACCES, errno.EPERM):
        return f"make the directory writable or set checkpoint_dir to another one, {again}"
    return f"check the disk, {again}"


def room(root: Path, need: int) -> None:
    """Raise Refused if the disk that will hold ``root`` has fewer than ``need`` bytes free."""
    there = next(path for path in (root.absolute(), *root.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    if free < need:
        raise Refused(
            f"too little disk: the checkpoints need {need / GIGABYTE:.1f} GB, {free / GIGABYTE:.1f} GB are free",
            where=str(root),
            how="free space, lower save_total_limit or set checkpoint_dir to another disk",
        )


def set_aside(directory: Path) -> Path | None:
    """For a fresh start without deleting: move the checkpoints and metrics of earlier runs into ``directory/earlier-N``."""
    names = ("last", "best", "metrics.jsonl", "checkpoint-*")
    found = sorted((path for name in names for path in directory.glob(name)), key=lambda path: path.name, reverse=True)
    if not found:
        return None
    target = next(path for n in range(1, 10**6) if not (path := directory / f"earlier-{n}").exists())
    durable.make_directory(target)
    for path in found:
        durable.rename(path, target / path.name)
    durable.flush(directory)
    return target
