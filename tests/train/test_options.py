"""Every option of the core that a run reads has an effect on the run: deleting its reader makes a case here fail.

Options of the data path, of loading and of the configuration itself are in their own rooms' tests.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import surogate_core
from surogate_core import testing
from surogate_core.config import load
from surogate_core.contracts import Summary
from surogate_core.host import load_host
from surogate_core.plan import make_plan
from surogate_core.train.setup import build

Run = Callable[..., tuple[Summary, list[dict[str, Any]]]]
ROWS = [{"q": f"{number} plus {number}?", "a": f"{2 * number}", "text": f"{number} and {number + 3}"} for number in range(24)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> dict[str, Any]:
    rows = testing.write_rows(tmp_path_factory.mktemp("data") / "rows.jsonl", ROWS)
    return {
        "model": str(tiny),
        "model_dtype": "fp32",
        "sequence_len": 64,
        "gradient_accumulation_steps": 1,
        "max_steps": 4,
        "save_steps": 4,
        "learning_rate": 1e-2,
        "optimizer": "adamw",
        "recompute": False,
        "dataloader_num_workers": 0,
        "validation_split_ratio": 0.0,
        "datasets": [{"path": str(rows), "type": "text"}],
    }


@pytest.fixture(scope="module")
def go(base: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Run:
    def run(**changes: Any) -> tuple[Summary, list[dict[str, Any]]]:
        out = changes.pop("output_dir", None) or str(tmp_path_factory.mktemp("out"))
        summary = surogate_core.run({**base, "output_dir": out, **changes})
        lines = (summary.output_dir / "metrics.jsonl").read_text().splitlines()
        return summary, [json.loads(line) for line in lines]

    return run


def steps(result: tuple[Summary, list[dict[str, Any]]]) -> list[tuple[float, float]]:
    return [(record["loss"], record["lr"]) for record in result[1] if record["kind"] == "step"]


@pytest.fixture(scope="module")
def plain(go: Run) -> list[tuple[float, float]]:
    return steps(go())


@pytest.mark.parametrize(
    "change",
    [
        {"learning_rate": 2e-2},
        {"lr_scheduler_type": "cosine"},
        {"warmup_ratio": 0.5},
        {"warmup_steps": 2},
        {"final_lr_fraction": 0.5},
        {"weight_decay": 5.0},
        {"adamw_beta1": 0.1},
        {"adamw_beta2": 0.5},
        {"adamw_epsilon": 0.1},
        {"optimizer": "adamw_8bit"},
        {"model_dtype": "bf16"},
        {"train_seed": 4},
        {"from_scratch": True},
        {"sequence_len": 32},
        {"sample_packing": False},
        {"per_device_train_batch_size": 1},
        {"gradient_accumulation_steps": 2},
        {"lora": True},
        {"rope_scaling": "linear", "max_model_len": 4096},
    ],
    ids=lambda change: "-".join(change),
)
def test_it_changes_the_losses_or_the_rates(go: Run, plain: list[tuple[float, float]], change: dict[str, Any]) -> None:
    assert steps(go(**change)) != plain


@pytest.mark.parametrize(
    ("change", "base_change"),
    [
        ({"max_grad_norm": 0.01}, {"adamw_epsilon": 0.1}),
        ({"cooldown_steps": 2}, {"lr_scheduler_type": "cosine"}),
        ({"master_dtype": "fp32"}, {"model_dtype": "bf16"}),
    ],
    ids=["max_grad_norm", "cooldown_steps", "master_dtype"],
)
def test_it_changes_what_another_option_makes_visible(go: Run, change: dict[str, Any], base_change: dict[str, Any]) -> None:
    """Adam's steps do not depend on the size of a gradient, unless epsilon counts; float32 weights need no masters."""
    assert steps(go(**base_change, **change)) != steps(go(**base_change))


def test_the_same_twice_is_the_same(go: Run, plain: list[tuple[float, float]]) -> None:
    assert steps(go()) == plain


def test_recompute_changes_no_bit_of_the_losses_and_is_really_on(
    go: Run, plain: list[tuple[float, float]], base: dict[str, Any]
) -> None:
    assert steps(go(recompute=True)) == plain
    host = load_host()
    for wanted in (True, False):
        trainee = build(make_plan(load({**base, "recompute": wanted}, host), host))
        assert any(getattr(module, "gradient_checkpointing", False) for module in trainee.model.modules()) is wanted


def test_recompute_draws_the_same_dropout_again(go: Run) -> None:
    """Other masks in the second forward pass would be another gradient."""
    dropped = {"lora": True, "lora_dropout": 0.3}
    losses = steps(go(**dropped))
    assert steps(go(**dropped, recompute=True)) == losses
    assert losses != steps(go(lora=True, lora_dropout=0.0))


def test_names_and_directories(go: Run, tmp_path: Path) -> None:
    summary, records = go(run_name="mine", output_dir=str(tmp_path / "one"), checkpoint_dir=str(tmp_path / "two"))
    assert [record["run_name"] for record in records if record["kind"] == "run"] == ["mine"]
    assert summary.checkpoint == tmp_path / "two" / "checkpoint-00000004"
    assert (tmp_path / "one" / "metrics.jsonl").exists()
    assert not list((tmp_path / "one").glob("checkpoint-*"))


def test_eval_steps_and_validation_data(go: Run, base: dict[str, Any]) -> None:
    held = go(eval_steps=2, validation_split_ratio=0.3)
    assert [record["step"] for record in held[1] if record["kind"] == "eval"] == [2, 4]
    own = go(eval_steps=4, validation_datasets=base["datasets"])
    (record,) = [record for record in own[1] if record["kind"] == "eval"]
    assert record["tokens"] == sum(len(row["text"]) for row in ROWS)


def test_eval_seed_draws_other_validation_rows(go: Run, base: dict[str, Any]) -> None:
    table = [{**base["datasets"][0], "samples": 5}]
    results = [go(eval_steps=4, validation_datasets=table, eval_seed=seed)[1] for seed in (1, 2, 1)]
    found = [next(record["loss"] for record in records if record["kind"] == "eval") for records in results]
    assert found[0] != found[1]
    assert found[0] == found[2]


@pytest.mark.parametrize(("loss_scale", "fraction"), [("default", 0.5), ("all", 1.0)])
def test_loss_scale(go: Run, base: dict[str, Any], loss_scale: str, fraction: float) -> None:
    table = {**base["datasets"][0], "type": "instruction", "instruction_field": "q", "output_field": "a"}
    records = go(datasets=[table], loss_scale=loss_scale, lora=False)[1]
    tokens = sum(record["tokens"] for record in records if record["kind"] == "step")
    trained = sum(record["trained"] for record in records if record["kind"] == "step")
    assert (trained / tokens > 0.9) is (fraction == 1.0)


def test_report_to_an_unknown_logger_is_refused(go: Run) -> None:
    with pytest.raises(surogate_core.SurogateError, match="jsonll"):
        go(report_to=["jsonll"])
