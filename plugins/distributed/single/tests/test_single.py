"""One process, one device; the level of sharding that the options ask for together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from surogate_distributed_single.plugin import Sharding
from surogate_distributed_single.single import build
from surogate_model_transformers.testing import tiny_model

import surogate_core
from surogate_core import testing
from surogate_core.config import load
from surogate_core.errors import ConfigError
from surogate_core.host import load_host

MINIMAL: dict[str, Any] = {"model": "owner/model", "datasets": [{"path": "owner/rows", "type": "text"}]}


@pytest.mark.parametrize(
    ("given", "level"),
    [
        ({}, 1),
        ({"zero_level": 1}, 1),
        ({"shard_gradients": True}, 2),
        ({"zero_level": 2}, 2),
        ({"zero_level": 1, "shard_weights": True}, 3),
        ({"zero_level": 2, "shard_weights": True}, 3),
        ({"zero_level": 3, "shard_gradients": True}, 3),
        ({"zero_level": 3, "shard_weights": False}, 3),
    ],
    ids=str,
)
def test_the_flags_raise_the_level(given: dict[str, Any], level: int) -> None:
    """One setting: what asks for more is in force."""
    own = load({**MINIMAL, **given}, load_host()).of(Sharding)
    assert (own.level, own.gradients, own.weights) == (level, level >= 2, level >= 3)


@pytest.mark.parametrize("value", [0, 4])
def test_there_are_three_levels(value: int) -> None:
    with pytest.raises(ConfigError, match=f"zero_level = {value}: wanted a whole number >= 1 and <= 3"):
        load({**MINIMAL, "zero_level": value}, load_host())


@pytest.mark.parametrize("key", ["gpus", "sequence_parallel_size", "distributed.num_nodes"])
def test_several_processes_are_refused(key: str) -> None:
    with pytest.raises(ConfigError, match=f"{key} = 2 is not available in this version"):
        load(MINIMAL, load_host(), [(key, "2")])


def test_it_changes_nothing() -> None:
    single = build(Sharding(zero_level=3), testing.context())
    model, value, rows = torch.nn.Linear(2, 2), torch.ones(3), [1, 2, 3]
    assert single.wrap(model) is model
    assert single.sum(value) is value
    assert list(single.rows(rows)) == rows
    assert single.device() == torch.device("cpu")
    assert (single.rank, single.world_size) == (0, 1)


def test_a_run_has_the_same_loss_at_every_level(tmp_path: Path) -> None:
    rows = [{"text": f"Number {number} is followed by {number + 1}."} for number in range(20)]
    config: dict[str, Any] = {
        "model": str(tiny_model(tmp_path / "model")),
        "lora": False,
        "sequence_len": 32,
        "max_steps": 2,
        "dataloader_num_workers": 0,
        "datasets": [{"path": str(testing.write_rows(tmp_path / "text.jsonl", rows)), "type": "text"}],
    }
    losses = {
        surogate_core.run({**config, "zero_level": level, "output_dir": str(tmp_path / str(level))}).loss for level in (1, 2, 3)
    }
    assert len(losses) == 1
