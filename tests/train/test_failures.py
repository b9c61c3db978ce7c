"""Runs that fail: whose fault it is, and that they fail before hours are lost."""

from __future__ import annotations

import errno
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from surogate_loop_standard import session

import surogate_core
from surogate_core import testing
from surogate_core.config import load
from surogate_core.errors import Refused, SaveFailed
from surogate_core.hookspecs import hookimpl
from surogate_core.host import load_host
from surogate_core.offers import Offer, Owner
from surogate_core.train.run import execute

RECIPE = """
import torch
import torch.nn.functional as F

class Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return x @ weight.mT

    @staticmethod
    def backward(ctx, dy):
        return torch.empty(2) @ torch.empty(3), None

class Raises:
    def claim(self, site):
        return int("not a number") if PLACE == "claim" else None

    def linear(self, site):
        if PLACE == "linear":
            raise KeyError(site.role)
        return self.compute

    def compute(self, x, weight, bias):
        return F.linear(x[..., :3], weight, bias) if PLACE == "forward" else Product.apply(x, weight)

def build(options, context):
    return Raises()
"""


@pytest.fixture
def config(tiny: Path, tmp_path: Path) -> dict[str, Any]:
    rows = [{"text": f"Number {number} is followed by {number + 1}."} for number in range(40)]
    return {
        "model": str(tiny),
        "output_dir": str(tmp_path / "out"),
        "model_dtype": "fp32",
        "sequence_len": 64,
        "max_steps": 4,
        "save_steps": 2,
        "recompute": False,
        "dataloader_num_workers": 0,
        "datasets": [{"path": str(testing.write_rows(tmp_path / "text.jsonl", rows)), "type": "text"}],
    }


def steps(config: dict[str, Any]) -> list[int]:
    path = Path(config["output_dir"]) / "metrics.jsonl"
    records = map(json.loads, path.read_text().splitlines() if path.exists() else ())
    return [record["step"] for record in records if record["kind"] == "step"]


@pytest.mark.parametrize(
    ("place", "error", "where"),
    [
        ("claim", ValueError, "hook Recipe.claim"),
        ("linear", KeyError, "hook Recipe.linear"),
        ("forward", RuntimeError, "acme_raises.Raises.compute"),
        ("backward", RuntimeError, "acme_raises.Product.backward"),
    ],
)
def test_a_recipe_that_raises_is_named_wherever_it_does(
    place: str, error: type[Exception], where: str, config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a product, the error comes from torch, which the recipe called."""
    (tmp_path / "acme_raises.py").write_text(f"PLACE = {place!r}\n{RECIPE}")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "acme_raises", raising=False)
    theirs = SimpleNamespace(register_recipes=hookimpl(lambda: [Offer("raises", None, build="acme_raises:build")]))
    host = load_host([("theirs", theirs, Owner("acme", "2.0"))])
    with pytest.raises(error) as caught:
        execute(load({**config, "recipe": "raises"}, host), host)
    assert caught.value.__notes__ == [f"raised by plugin acme 2.0 in {where}"]
    assert steps(config) == []


def test_a_save_is_rehearsed_after_the_first_step(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(session, "write_files", full)
    with pytest.raises(SaveFailed, match="the rehearsal of a checkpoint could not be saved: No space left on device"):
        surogate_core.run({**config, "save_steps": 4})
    assert steps(config) == [1]


def test_too_little_disk_is_refused_before_the_first_step(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda path: whole(path)._replace(free=1 << 20))
    with pytest.raises(Refused, match=r"too little disk: the checkpoints need .* GB, 0.0 GB are free"):
        surogate_core.run(config)
    assert steps(config) == []
