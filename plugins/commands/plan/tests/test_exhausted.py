from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from surogate_command_plan import exhausted
from surogate_command_plan.fit import planned

from surogate_core.config import load
from surogate_core.host import load_host
from surogate_core.plan import make_plan


def test_the_figure_of_the_part_and_what_would_fit(deep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys: dict[str, Any] = {"model": str(deep), "lora": False, "sequence_len": 256, "recompute": False, "optimizer": "adamw"}
    host = load_host()
    config = load(keys, host, need_data=False)
    whole = planned(keys, host, [], "cuda")
    run: Any = SimpleNamespace(config=config, plan=make_plan(config, host, "cuda"))
    monkeypatch.setattr(exhausted, "memory_of", lambda device: 7e8)
    monkeypatch.setattr(exhausted, "ROOM", (planned(keys, host, [("recompute", True)], "cuda").total + 1) / whole.total)
    found = exhausted.explain(run, "backward", 5)
    assert found is not None
    most = max(whole.phases[name].total for name in ("backward, upper half", "backward, lower half"))
    assert found.what == f"out of memory in step 5, backward: {most / 1e6:.2f} MB planned for it, 700.00 MB of memory"
    assert found.where == "memory of the device (cuda); checkpoints are intact"
    assert found.how.startswith("recompute = true: ")


def test_nothing_is_rehearsed_for_the_cpu(deep: Path) -> None:
    host = load_host()
    config = load({"model": str(deep), "sequence_len": 64}, host, need_data=False)
    run: Any = SimpleNamespace(config=config, plan=make_plan(config, host, "cpu"))
    assert exhausted.explain(run, "forward", 1) is None
