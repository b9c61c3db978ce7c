"""Loggers that misbehave, in a real run: it does not wait for them, ends as without them, and names each once."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from surogate_loop_standard import session
from surogate_loop_standard.fanout import Fanout

import surogate_core
from surogate_core import testing
from surogate_core.offers import Offer, Owner


class Hangs:
    """Stays in its first record until the test is over: a run that waited for it would not end."""

    def __init__(self) -> None:
        self.go = threading.Event()

    def log(self, record: Mapping[str, Any]) -> None:
        self.go.wait()

    def close(self) -> None:
        return


class Raises(Hangs):
    def log(self, record: Mapping[str, Any]) -> None:
        raise RuntimeError("broken")


def test_a_hanging_a_raising_and_a_full_logger(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("/dev/full, a device that is always full, is not there: run this on Linux")
    rows = testing.write_rows(tmp_path / "rows.jsonl", [{"text": f"{n} and {n + 1}"} for n in range(40)])
    config = {
        "model": str(tiny),
        "sequence_len": 32,
        "max_steps": 8,
        "save_steps": 4,
        "dataloader_num_workers": 0,
        "datasets": [{"path": str(rows), "type": "text"}],
    }

    def losses(name: str) -> list[float]:
        lines = map(json.loads, (tmp_path / name / "metrics.jsonl").read_text().splitlines())
        return [record["loss"] for record in lines if record["kind"] == "step"]

    surogate_core.run({**config, "output_dir": str(tmp_path / "alone")})
    assert capfd.readouterr().err == ""

    hangs = Hangs()
    bad = [(Offer(name, None, build="", owner=Owner(name, "1")), one) for name, one in (("hangs", hangs), ("raises", Raises()))]
    monkeypatch.setattr(session, "Fanout", lambda loggers, notice: Fanout([*loggers, *bad], notice, patience=0.5))
    summary = surogate_core.run({**config, "output_dir": str(tmp_path / "bad"), "log_file": "/dev/full"})
    hangs.go.set()
    assert (summary.steps, summary.stopped) == (8, None)
    assert len(losses("bad")) == 8
    assert losses("bad") == losses("alone")
    said = capfd.readouterr().err
    named = {name: said.count(name) for name in ("hangs 1: Hangs has not finished", "raises 1: Raises raised", "JsonLines raised")}
    assert set(named.values()) == {1}, said
    assert "No space left on device" in said
    assert said.count("surogate-logger-jsonl") == 1
