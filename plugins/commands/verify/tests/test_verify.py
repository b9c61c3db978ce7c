from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.numpy import save_file
from surogate_command_verify import verify
from surogate_model_transformers import testing as models_testing

from surogate_core import testing
from surogate_core.cli.main import main
from surogate_core.contracts import Step
from surogate_core.errors import PlanError, RunFailed

TEXT = [{"text": f"{number} and then " * (1 + number % 5)} for number in range(40)]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("verify")
    rows = testing.write_rows(place / "text.jsonl", TEXT)
    keys = {
        "model": str(models_testing.tiny_model(place / "model")),
        "output_dir": str(place / "out"),
        "log_file": str(place / "log.jsonl"),
        "model_dtype": "fp32",
        "sequence_len": 64,
        "sample_packing": False,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "dataloader_num_workers": 0,
    }
    path = place / "config.toml"
    tables = f'[[datasets]]\npath = {json.dumps(str(rows))}\ntype = "text"\n'
    path.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in keys.items()) + tables)
    return path


def output_directory(path: Path) -> Path:
    saved = path / "checkpoint-00000006"
    saved.mkdir(parents=True)
    save_file({"w": np.arange(6, dtype=np.float32), "b": np.zeros(2, dtype=np.float32)}, saved / "model.safetensors")
    save_file({"m": np.arange(3, dtype=np.uint8)}, saved / "optimizer.safetensors")
    (saved / "state.json").write_text(json.dumps({"progress": {"step": 6, "tokens": 10}, "run_name": path.name}))
    records = [
        {"kind": "run", "prepared_s": 1},
        {"kind": "step", "step": 6, "loss": 1.5, "seconds": 0.1, "tokens_per_s": 9},
        {"kind": "eval", "step": 6, "loss": 1.25},
    ]
    (path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def _sign_of_zero(path: Path) -> None:
    values = {"w": np.arange(6, dtype=np.float32), "b": np.array([0.0, -0.0], dtype=np.float32)}
    save_file(values, path / "checkpoint-00000006" / "model.safetensors")


def _other_type(path: Path) -> None:
    save_file({"m": np.arange(3, dtype=np.int8)}, path / "checkpoint-00000006" / "optimizer.safetensors")


def _no_optimizer(path: Path) -> None:
    (path / "checkpoint-00000006" / "optimizer.safetensors").unlink()


def _more_tensors(path: Path) -> None:
    save_file({"cpu": np.zeros(1)}, path / "checkpoint-00000006" / "rng.safetensors")


def _edit(name: str, old: str, new: str) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        text = (path / name).read_text()
        assert old in text
        (path / name).write_text(text.replace(old, new))

    return edit


@pytest.mark.parametrize(
    ("change", "where", "first"),
    [
        (_sign_of_zero, "model.safetensors", "b"),
        (_other_type, "optimizer.safetensors", "m"),
        (_no_optimizer, "optimizer.safetensors", "m"),
        (_more_tensors, "rng.safetensors", "cpu"),
        (_edit("checkpoint-00000006/state.json", '"tokens": 10', '"tokens": 11'), "state.json", "tokens"),
        (_edit("metrics.jsonl", '"loss": 1.5', '"loss": 1.5000000000000002'), "metrics.jsonl", "step 6"),
        (_edit("metrics.jsonl", '{"kind": "run"', '{"kind": "eval", "step": 6}\n{"kind": "run"'), "metrics.jsonl", "eval 6"),
        (
            _edit("metrics.jsonl", '{"kind": "run"', '{"kind": "step", "step": 6, "loss": 1.5}\n{"kind": "run"'),
            "metrics.jsonl",
            "step 6 again",
        ),
        (_edit("metrics.jsonl", '"kind": "eval", "step": 6', '"kind": "eval", "step": 5'), "metrics.jsonl", "eval 6"),
    ],
)
def test_compare_finds_the_first_difference(tmp_path: Path, change: Callable[[Path], None], where: str, first: str) -> None:
    one, two = output_directory(tmp_path / "one"), output_directory(tmp_path / "two")
    _edit("metrics.jsonl", '"seconds": 0.1, "tokens_per_s": 9', '"seconds": 0.2, "tokens_per_s": 5')(two)
    assert [(name, count, worst) for name, count, worst in verify.compare(one, two, 6) if worst] == []
    assert {name: count for name, count, _ in verify.compare(one, two, 6)} == {
        "model.safetensors": 2,
        "optimizer.safetensors": 1,
        "state.json": 2,
        "metrics.jsonl": 2,
    }
    change(two)
    assert [(name, worst) for name, _, worst in verify.compare(one, two, 6) if worst] == [(where, first)]
    assert [name for name, _, worst in verify.compare(two, one, 6) if worst] == [where]


def test_resume_is_exact_and_leaves_nothing(config: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "surogate_core", "verify", "resume", str(config), "--steps", "3", "--at", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
    done = subprocess.run([*command, "--eval-steps", "2"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    assert rows[0] == ["compared", "count", "result"]
    assert [row[0] for row in rows[1:]] == [
        "model.safetensors",
        "optimizer.safetensors",
        "rng.safetensors",
        "state.json",
        "metrics.jsonl",
    ]
    assert {row[2] for row in rows[1:]} == {"identical"}
    assert int(rows[-1][1]) == 5, "three steps, evaluated at 2 and 3"
    assert "continuing from step 2 in a fresh process" in done.stderr
    assert list(tmp_path.iterdir()) == []
    assert sorted(path.name for path in config.parent.iterdir()) == ["config.toml", "model", "text.jsonl"]


def test_a_difference_is_named_and_fails(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The continued run is replaced by one whose optimizer has lost a value."""
    runs = iter(("whole", "parts"))

    def finished(command: list[str], check: bool) -> Any:
        [place] = [Path(word.partition("=")[2]) for word in command if word.startswith("output_dir=")]
        assert place.name == next(runs)
        shutil.rmtree(place, ignore_errors=True)
        output_directory(place)
        if place.name == "parts":
            _other_type(place)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(verify.subprocess, "run", finished)
    monkeypatch.setattr(verify, "_kill_after", lambda command, target, at: None)
    done = CliRunner().invoke(main, ["verify", "resume", str(config)])
    assert done.exit_code == 1
    assert "optimizer.safetensors  1      m" in done.stdout
    assert "resuming is not exact: optimizer.safetensors: m" in done.stderr


def test_a_run_that_fails_is_not_called_exact(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify.subprocess, "run", lambda command, check: subprocess.CompletedProcess(command, 2))
    done = CliRunner().invoke(main, ["verify", "resume", str(config)])
    assert done.exit_code == 1
    assert "exit code 2" in done.stderr


def test_kill_after_a_run_that_ends_too_early(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match="exit code 3"):
        verify._kill_after([sys.executable, "-c", "raise SystemExit(3)"], tmp_path, 2)


def test_what_cannot_be_split(config: Path) -> None:
    done = CliRunner().invoke(main, ["verify", "resume", str(config), "--steps", "3", "--at", "3"])
    assert done.exit_code == 2
    assert "--at 3 must be below --steps 3" in done.stderr
    words = ["--gradient-accumulation-steps", "1", "--per-device-train-batch-size", "1"]
    done = CliRunner().invoke(main, ["verify", "batch", str(config), *words])
    assert done.exit_code == PlanError.exit_code
    assert "a step of one row cannot be split" in done.stderr


def test_the_gradient_does_not_depend_on_the_split(config: Path) -> None:
    done = CliRunner().invoke(main, ["verify", "batch", str(config)])
    assert done.exit_code == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines() if " x " in line][1:]
    assert [row[:3] for row in rows] == [["4", "x", "1"], ["2", "x", "2"], ["1", "x", "4"]]
    assert [float(row[4]) for row in rows] == pytest.approx([0, 0, 0], abs=1e-5)


def test_a_mean_of_means_is_found(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The classic fault: each micro-batch's mean, instead of the sum over the whole step's weight."""

    def mean_of_means(model: torch.nn.Module, step: Step, parallelism: Any, loss_of: Any) -> torch.Tensor:
        total = torch.zeros(())
        for batch in step.batches:
            loss = loss_of(model, batch) / batch.weights.sum() / len(step.batches)
            loss.backward()
            total += loss.detach()
        return total

    monkeypatch.setattr("surogate_loop_standard.loop.accumulate", mean_of_means)
    done = CliRunner().invoke(main, ["verify", "batch", str(config)])
    assert done.exit_code == 1
    assert "the gradient depends on the batch split" in done.stderr
    assert "0.0001 is allowed" in done.stderr or "1e-04 is allowed" in done.stderr


def test_largest_difference_by_hand() -> None:
    reference = {"a": torch.tensor([3.0, 4.0]), "key.bias": torch.tensor([1e-9])}
    other = {"a": torch.tensor([3.0, 4.5]), "key.bias": torch.tensor([-1e-9])}
    assert verify._largest(reference, other) == (pytest.approx(0.5 / 5), "a")
    assert verify._largest(reference, {**other, "key.bias": torch.tensor([float("nan")])}) == (float("inf"), "key.bias")
