from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from surogate_core.train import durable


def test_links_are_replaced_and_relative(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        durable.replace_link(tmp_path / "last", name)
        assert os.readlink(tmp_path / "last") == name
    durable.link(tmp_path / ".last.partial", "left by a dead process")
    durable.replace_link(tmp_path / "last", "one")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last", "one", "two"]


def test_a_reader_sees_the_old_file_or_the_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.jsonl"
    durable.replace_file(path, b"old")
    seen: list[bytes] = []
    for name in ("write", "flush", "rename"):
        real = getattr(durable, name)

        def watched(*arguments: Any, real: Callable[..., None] = real) -> None:
            seen.append(path.read_bytes())
            real(*arguments)

        monkeypatch.setattr(durable, name, watched)
    durable.replace_file(path, b"new")
    assert seen == [b"old", b"old", b"old", b"new"]
    assert path.read_bytes() == b"new"
    assert [one.name for one in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_flush_tree_reaches_every_file_and_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "c").write_text("x")
    (tmp_path / "d").write_text("x")
    inodes: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda handle: inodes.append(os.fstat(handle).st_ino))
    durable.flush_tree(tmp_path)
    assert set(inodes) == {path.stat().st_ino for path in (tmp_path, *tmp_path.rglob("*"))}
    assert inodes[-1] == tmp_path.stat().st_ino


def test_remove_tree_does_not_follow_links(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").write_text("x")
    (tmp_path / "tree" / "deep").mkdir(parents=True)
    (tmp_path / "tree" / "deep" / "link").symlink_to(kept)
    durable.remove_tree(tmp_path / "tree")
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert (kept / "file").read_text() == "x"


def test_json_is_strict(tmp_path: Path) -> None:
    durable.write_json(tmp_path / "x.json", {"a": [1.5, None, "ü"]})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": [1.5, None, "ü"]}
    with pytest.raises(ValueError, match="not JSON compliant"):
        durable.write_json(tmp_path / "y.json", {"a": float("nan")})
    with pytest.raises(TypeError):
        durable.write_json(tmp_path / "y.json", {"a": tmp_path})
    assert not (tmp_path / "y.json").exists()
