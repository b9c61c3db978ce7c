"""Checkpoints: written aside, flushed, renamed; found again past torn ones; pruned without ever being torn.

    checkpoint-00000050/             complete: every file that manifest.json lists is there
    last, best                       relative links
    .checkpoint-00000050.partial     being written; from a dead process when found at the next save, which removes it
    .checkpoint-00000050.replaced    complete, while a new one takes its name; still good until that one is there
    .checkpoint-00000050.deleted     on its way out

Only the first and the fourth are ever read. A process may die between any two operations (``tests/test_store_deaths.py`` kills it
at each): one complete checkpoint, the old or the new, is found afterwards, and the next save cleans up.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from attrs import field, frozen

from surogate_core.contracts import Context
from surogate_core.errors import Problem, Refused, ResumeError, SaveFailed
from surogate_core.train import durable

COMPLETE = re.compile(r"checkpoint-(\d{8,})")
REPLACED = re.compile(r"\.checkpoint-(\d{8,})\.replaced")
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
GIGABYTE = 10**9


@frozen
class Saved:
    """A complete checkpoint. ``state`` is what was given to ``save``."""

    path: Path
    step: int
    state: dict[str, Any]
    digests: Mapping[str, str] = field(repr=False)

    def verify(self) -> None:
        """Read every file again and compare its SHA-256. Raises ResumeError naming the first file that differs."""
        for name, digest in self.digests.items():
            try:
                why = "" if _sha256(self.path / name) == digest else "its SHA-256 differs from manifest.json"
            except OSError as error:
                why = str(error.strerror)
            if why:
                how = "delete this checkpoint, so that an earlier one is used, or start over with --fresh"
                raise ResumeError(f"{self.path.name}: {name} is not what was saved: {why}", where=str(self.path / name), how=how)


def build(options: None, context: Context) -> Callable[[Path, int], Checkpoints]:
    return Checkpoints


class Checkpoints:
    """The checkpoints of one directory, a :class:`~surogate_core.contracts.Checkpoints`."""

    def __init__(self, root: Path, limit: int):
        self.root = root
        self.limit = limit
        self.skipped: list[tuple[str, str]] = []

    def save(self, step: int, fill: Callable[[Path], None], state: dict[str, Any]) -> Path:
        """Save one checkpoint. ``fill(directory)`` writes its files (safetensors, JSON, text); ``state`` becomes state.json.

        Raises SaveFailed, with the earlier checkpoints intact, when the file system refuses or a file is a pickle.
        """
        path = self.root / f"checkpoint-{step:08d}"
        partial, replaced = path.with_name(f".{path.name}.partial"), path.with_name(f".{path.name}.replaced")
        with self._saving(f"the checkpoint of step {step}", partial):
            fill(partial)
            durable.write_json(partial / "state.json", state)
            _seal(partial, step)
            if path.exists():
                durable.rename(path, replaced)
            durable.rename(partial, path)
            durable.flush(self.root)
            durable.replace_link(self.root / "last", path.name)
            if replaced.exists():
                self._delete(replaced)
            self._prune()
        return path

    def rehearse(self, fill: Callable[[Path], None], check: Callable[[Path], None]) -> None:
        """Save what will be no checkpoint: ``check(directory)`` may read it back, then it is removed. SaveFailed as in ``save``."""
        partial = self.root / ".checkpoint-rehearsal.partial"
        with self._saving("the rehearsal of a checkpoint", partial):
            fill(partial)
            _seal(partial, 0)
            check(partial)
            durable.remove_tree(partial)

    @contextmanager
    def _saving(self, name: str, partial: Path) -> Iterator[None]:
        """An empty directory to fill, which is removed when anything fails; the file system's errors become SaveFailed."""
        try:
            self._clean()
            durable.make_directory(partial)
            yield
        except Exception as error:
            shutil.rmtree(partial, ignore_errors=True)
            number = _error_number(error)
            if number is None:
                raise
            raise SaveFailed(
                f"{name} could not be saved: {os.strerror(number)}",
                where=f"{getattr(error, 'filename', None) or partial}; {self._last_good()}",
                how=_remedy(number),
            ) from error

    def mark_best(self, path: Path) -> None:
        """Point ``best`` at a checkpoint of this directory, which is then not pruned."""
        durable.replace_link(self.root / "best", path.name)

    def newest(self) -> Saved | None:
        """The complete checkpoint with the highest step, None if there is none at all. Changes nothing on disk.

        Raises ResumeError if there are checkpoints and all are torn: to start over silently would hide the damage.
        """
        self.skipped = []
        for path in self._candidates():
            try:
                return _read(path)
            except ValueError as error:
                self.skipped.append((path.name, str(error)))
        if self.skipped:
            how = "restore them, or start over with --fresh, which keeps them aside"
            raise ResumeError(
                [Problem(f"{name} is not complete: {why}", where=str(self.root / name), how=how) for name, why in self.skipped]
            )
        return None

    def room(self, need: int) -> None:
        """Raise Refused if the disk that will hold the checkpoints has fewer than ``need`` bytes free."""
        there = next(path for path in (self.root.absolute(), *self.root.absolute().parents) if path.exists())
        free = shutil.disk_usage(there).free
        if free < need:
            raise Refused(
                f"too little disk: the checkpoints need {need / GIGABYTE:.1f} GB, {free / GIGABYTE:.1f} GB are free",
                where=str(self.root),
                how="free space, lower save_total_limit or set checkpoint_dir to another disk",
            )

    def set_aside(self, output_dir: Path) -> str:
        """For a fresh start without deleting: move checkpoints and metrics of earlier runs into ``earlier-N`` of each directory.

        Returns where they are, "" if there was nothing. The newest checkpoint goes first, the metrics last.
        """
        made = []
        for directory in dict.fromkeys(path.resolve() for path in (output_dir, self.root)):
            names = ("checkpoint-*", ".checkpoint-*.replaced", "last", "best", "generations.jsonl", "metrics.jsonl")
            found = [path for name in names for path in sorted(directory.glob(name), reverse=True)]
            if found:
                target = next(path for n in range(1, 10**6) if not (path := directory / f"earlier-{n}").exists())
                durable.make_directory(target)
                for path in found:
                    durable.rename(path, target / path.name)
                durable.flush(directory)
                made.append(str(target))
        return ", ".join(made)

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
        for path in (self.root / ".last.partial", self.root / ".best.partial"):
            if path.is_symlink():
                durable.unlink(path)

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


def _read(path: Path) -> Saved:
    """The checkpoint in a directory, checked for completeness (names and sizes, not contents). ValueError says what is torn."""
    try:
        manifest = json.loads((path / "manifest.json").read_bytes())
        step, entries = int(manifest["step"]), dict(manifest["files"])
        digests = {name: str(entry["sha256"]) for name, entry in entries.items()}
        for name, entry in entries.items():
            size = (path / name).stat().st_size
            if size != entry["size"]:
                raise ValueError(f"{name} has {size} bytes, {entry['size']} were saved")
        state = dict(json.loads((path / "state.json").read_bytes()))
    except OSError as error:
        raise ValueError(f"{Path(error.filename or path).name}: {error.strerror}") from error
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"manifest.json or state.json cannot be read: {type(error).__name__}: {error}") from error
    return Saved(path, step, state, digests)


def _complete(path: Path) -> bool:
    try:
        return _read(path).step >= 0
    except ValueError:
        return False


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _seal(partial: Path, step: int) -> None:
    """Write manifest.json, the last file, and flush everything."""
    entries = {}
    for file in durable.files(partial):
        name = file.relative_to(partial).as_posix()
        if file.suffix.lower() in PICKLES:
            raise SaveFailed(
                f"{name}: a checkpoint holds safetensors, JSON and text only, no pickle",
                where=str(partial),
                how="save with safetensors; if a plugin wrote this file, report it to its author",
            )
        entries[name] = {"size": file.stat().st_size, "sha256": _sha256(file)}
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
