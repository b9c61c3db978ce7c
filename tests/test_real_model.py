"""A real pretrained model on real text, through the whole program: stories260K learns Shakespeare as its published figures say."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

import surogate_core


@pytest.fixture
def config(shared_data: Path, tmp_path: Path) -> dict[str, Any]:
    text = (shared_data / "pretrain" / "tinyshakespeare.txt").read_text(encoding="utf-8")[:300_000]
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    return {
        "model": str(shared_data / "models" / "stories260K"),
        "output_dir": str(tmp_path / "out"),
        "model_dtype": "fp32",
        "sequence_len": 256,
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 1,
        "max_steps": 300,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "linear",
        "weight_decay": 0.0,
        "optimizer": "adamw",
        "recompute": False,
        "save_steps": 300,
        "validation_split_ratio": 0.0,
        "datasets": [{"path": str(tmp_path / "text.txt"), "type": "text"}],
    }


def curve(config: dict[str, Any]) -> list[float]:
    summary = surogate_core.run(config)
    records = map(json.loads, (summary.output_dir / "metrics.jsonl").read_text().splitlines())
    return [record["loss"] for record in records if record["kind"] == "step"]


def test_full_fine_tuning_reaches_the_published_loss(config: dict[str, Any]) -> None:
    losses = curve(config)
    assert mean(losses[:10]) == pytest.approx(3.65, abs=0.15)
    assert mean(losses[-10:]) <= 2.20


def test_lora_of_rank_16_learns(config: dict[str, Any]) -> None:
    assert mean(curve({**config, "lora": True, "lora_rank": 16})[-10:]) < 3.0
