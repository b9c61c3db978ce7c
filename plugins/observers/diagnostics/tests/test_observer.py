"""The observer's state, its options, and its part in real runs."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import curves
import pytest
import torch
from attrs import evolve
from safetensors.torch import load_file
from surogate_observer_diagnostics.observer import Diagnostics, Event, Facts, crowd, watch
from surogate_observer_diagnostics.options import Options
from transformers import AutoConfig

import surogate_core
from surogate_core import testing
from surogate_core.config import load
from surogate_core.errors import ConfigError
from surogate_core.host import load_host

ON = Options(auto_lr_reduction=True, early_stop=True)
FACTS = Facts(parameters=1_000_000, warmup=100, crowd=8.0)


def events(records: curves.Records, options: Options = ON, facts: Facts = FACTS) -> list[tuple[int, str]]:
    return [(event.step, event.text) for event in watch(records, options, facts)]


@pytest.mark.parametrize(
    "name", ["spikes in a row", "flat after learning", "oscillates", "overfits", "very slow", "experts collapse"]
)
@pytest.mark.parametrize("share", [0.03, 0.31, 0.62])
def test_a_continued_run_hears_the_same(name: str, share: float) -> None:
    records = curves.MADE[name]()
    whole = watch(records, ON, FACTS)
    first, second = records[: int(len(records) * share)], records[int(len(records) * share) :]
    heard: list[Event] = []

    def log(record: dict[str, Any]) -> None:
        heard.append(Event(record["step"], "", record["text"]))

    diagnostics = Diagnostics(ON, FACTS, log)
    stopped = False
    for record in first:
        decision = diagnostics.step(record) if record["kind"] == "step" else diagnostics.evaluation(record)
        if decision and (decision.reason or decision.stop):
            heard.append(Event(record["step"], "", decision.reason, decision))
        if decision and decision.stop:
            stopped = True
            break
    if not stopped:
        heard += watch(second, ON, FACTS, json.loads(json.dumps(diagnostics.state())))
    assert [(one.step, one.text, one.decision) for one in heard] == [(one.step, one.text, one.decision) for one in whole]


@pytest.mark.parametrize(
    ("family", "changes", "wanted"),
    [
        ("qwen3_moe", {"num_experts": 128, "num_experts_per_tok": 8}, 16.0),
        ("mixtral", {"num_local_experts": 8, "num_experts_per_tok": 2}, 4.0),
        ("gpt_oss", {"num_local_experts": 32, "num_experts_per_tok": 4}, 8.0),
        ("deepseek_v3", {"n_routed_experts": 256, "num_experts_per_tok": 8}, 32.0),
        ("qwen3", {}, 1.0),
    ],
)
def test_experts_over_experts_a_token_from_the_config_of_a_family(family: str, changes: dict[str, int], wanted: float) -> None:
    assert crowd(SimpleNamespace(config=AutoConfig.for_model(family, **changes))) == wanted
    assert crowd(torch.nn.Linear(1, 1)) == 1.0


def test_temporary_cuts_blend_back_and_permanent_ones_stay() -> None:
    diagnostics = Diagnostics(ON, FACTS, lambda record: None)
    scale, seen = 1.0, {}
    for record in curves.MADE["spikes in a row"]():
        decision = diagnostics.step(record)
        scale *= decision.scale_lr if decision else 1.0
        seen[record["step"]] = scale
    assert seen[809] == 1.0
    assert seen[810] == 0.5
    assert seen[825] == pytest.approx(0.5 + 15 * 0.01)
    assert seen[840] == pytest.approx((0.5 + 30 * 0.01) * 0.5)
    assert min(seen.values()) >= 0.5**5 * 0.25
    assert diagnostics.memory.cuts.permanent == 5
    alone = Diagnostics(ON, FACTS, lambda record: None)
    scale = 1.0
    for record in curves.MADE["one spike"]():
        decision = alone.step(record)
        scale *= decision.scale_lr if decision else 1.0
    assert scale == pytest.approx(1.0, abs=1e-12)


EFFECTS: list[tuple[str, Any, str]] = [
    ("auto_lr_reduction", False, "one spike"),
    ("early_stop", False, "flat from the start"),
    ("diagnostics_window", 100, "oscillates"),
    ("spike_sigma", 80.0, "one spike"),
    ("spike_rise", 3.0, "one spike"),
    ("grad_explosion", 100.0, "gradient explodes"),
    ("plateau_steps", 400, "flat from the start"),
    ("plateau_improvement", 0.0005, "flat from the start"),
    ("divergence_rise", 2.0, "level jumps"),
    ("unstable_spikes", 100, "gradient explodes"),
    ("unstable_noise", 50.0, "oscillates"),
    ("lr_reduction_factor", 0.7, "one spike"),
    ("lr_reduction_temporary", 0, "one spike"),
    ("lr_reduction_limit", 1, "spikes in a row"),
    ("lr_reduction_blend", 10, "spikes in a row"),
    ("lr_reduction_pause", 100, "spikes in a row"),
    ("early_stop_score", 0.9999, "overfits"),
    ("early_stop_evals", 8, "overfits"),
    ("early_stop_efficiency", 0.0, "very slow and noisy"),
    ("early_stop_divergence", 300, "level jumps"),
    ("early_stop_plateau", 900, "flat from the start"),
    ("early_stop_improvement", 0.0001, "flat from the start"),
    ("moe_collapse", 0.9, "experts collapse"),
    ("moe_collapse_steps", 100, "experts collapse"),
]


@pytest.mark.parametrize(("option", "value", "name"), EFFECTS, ids=[row[0] for row in EFFECTS])
def test_every_threshold_has_an_effect(option: str, value: Any, name: str) -> None:
    records = curves.MADE[name]()
    loose = {"plateau_improvement": 50.0, "early_stop_improvement": 50.0} if option == "early_stop_efficiency" else {}
    changed = watch(records, evolve(ON, **loose, **{option: value}), FACTS)
    usual = watch(records, evolve(ON, **loose), FACTS)
    assert [(one.step, one.text, one.decision) for one in changed] != [(one.step, one.text, one.decision) for one in usual]


def test_nothing_is_decided_unless_asked_and_phases_are_told_all_the_same() -> None:
    for name in ("spikes in a row", "flat from the start", "level jumps"):
        heard = watch(curves.MADE[name](), Options(), FACTS)
        assert not [event for event in heard if event.decision]
        assert [event for event in heard if event.what.startswith("phase")]


def test_losses_that_are_not_finite_are_a_spike_and_do_no_harm() -> None:
    records = [curves.one(step, float("nan") if step == 300 else 2.0 + step % 7 / 100) for step in range(1, 400)]
    heard = events(records, evolve(ON, early_stop=False))
    assert heard[1][0] == 300
    assert "loss nan" in heard[1][1]
    assert json.dumps(watch(records, ON, FACTS) and "ok")


# ---------------------------------------------------------------- real runs
@pytest.fixture
def config(tmp_path: Path, tiny: Path) -> dict[str, Any]:
    rows = [{"text": f"Number {number} is followed by {number + 1}; twice {number} is {2 * number}."} for number in range(60)]
    return {
        "model": str(tiny),
        "output_dir": str(tmp_path / "out"),
        "task": "pt",
        "model_dtype": "fp32",
        "sequence_len": 64,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 1,
        "max_steps": 60,
        "save_steps": 37,
        "eval_steps": 1000,
        "optimizer": "adamw",
        "lr_scheduler_type": "constant",
        "learning_rate": 3e-3,
        "recompute": False,
        "dataloader_num_workers": 0,
        "datasets": [{"path": str(testing.write_rows(tmp_path / "text.jsonl", rows)), "type": "text"}],
    }


def kept(directory: str | Path, kind: str) -> list[dict[str, Any]]:
    lines = (Path(directory) / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


SENSITIVE = {"auto_lr_reduction": True, "grad_explosion": 1.2, "lr_reduction_pause": 5, "lr_reduction_blend": 10}


def test_a_run_with_cuts_is_continued_bit_for_bit(config: dict[str, Any], tmp_path: Path) -> None:
    whole = surogate_core.run({**config, **SENSITIVE, "output_dir": str(tmp_path / "whole")})
    surogate_core.run({**config, **SENSITIVE, "max_steps": 37, "warmup_steps": 0})
    resumed = surogate_core.run({**config, **SENSITIVE})
    one, two = kept(whole.output_dir, "decision"), kept(resumed.output_dir, "decision")
    assert one == two
    assert [record for record in one if record["step"] <= 37]
    assert [record for record in one if record["step"] > 37]
    assert [(r["loss"], r["lr"]) for r in kept(whole.output_dir, "step")] == [
        (r["loss"], r["lr"]) for r in kept(resumed.output_dir, "step")
    ]
    first, second = (load_file(summary.output_dir / "last/model.safetensors") for summary in (whole, resumed))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_decision_names_owner_criterion_and_figures_in_log_and_console(
    config: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    summary = surogate_core.run({**config, **SENSITIVE})
    decision = kept(summary.output_dir, "decision")[0]
    assert decision["owner"].startswith("surogate-observer-diagnostics 0.1")
    assert decision["reason"].startswith("auto_lr_reduction, temporary cut 1 of 2")
    assert "gradient norm " in decision["reason"]
    assert " above 1.2 x " in decision["reason"]
    assert decision["scale_lr"] == 0.5
    steps = {record["step"]: record for record in kept(summary.output_dir, "step")}
    assert steps[decision["step"] + 1]["lr"] == pytest.approx(0.5 * 3e-3)
    assert steps[decision["step"] + 2]["lr"] == pytest.approx(0.55 * 3e-3)
    out = capsys.readouterr().out
    assert f"decision  learning rate × 0.5  step {decision['step']}  {decision['reason']}  by {decision['owner']}" in out
    assert {record["phase"] for record in steps.values()} <= {"warmup", "converging", "unstable", "plateau", "diverging"}


def test_early_stop_ends_a_run_and_says_why(config: dict[str, Any]) -> None:
    stop = {
        "early_stop": True,
        "early_stop_plateau": 30,
        "plateau_steps": 20,
        "plateau_improvement": 50.0,
        "early_stop_improvement": 50.0,
    }
    summary = surogate_core.run({**config, **stop, "learning_rate": 1e-12, "max_steps": 200})
    assert summary.steps < 200
    assert "surogate-observer-diagnostics" in (summary.stopped or "")
    assert "early_stop, plateau" in (summary.stopped or "")
    assert kept(summary.output_dir, "decision")[-1]["stop"] is True
    assert kept(summary.output_dir, "checkpoint")[-1]["step"] == summary.steps


def test_the_line_of_chinchilla(config: dict[str, Any]) -> None:
    summary = surogate_core.run({**config, "max_steps": 2})
    parameters = kept(summary.output_dir, "run")[0]["parameters"]
    line = next(record["text"] for record in kept(summary.output_dir, "notice") if record["text"].startswith("Chinchilla"))
    assert f"{parameters:,} parameters x 20 = {20 * parameters:,} tokens; this run has 128" in line


def test_epoch_adjustment_trains_on_twenty_tokens_a_parameter(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("surogate_observer_diagnostics.plugin.TOKENS_PER_PARAMETER", 0.25)
    config = {key: value for key, value in config.items() if key != "max_steps"}
    rows = kept(surogate_core.run({**config, "num_epochs": 1}).output_dir, "run")[0]
    one_epoch = rows["rows"] * 64 * rows["fill"]
    wanted = round(0.25 * rows["parameters"] / one_epoch)
    assert wanted > 2
    summary = surogate_core.run({**config, "num_epochs": 1, "epoch_adjustment": True, "output_dir": config["output_dir"] + "2"})
    assert kept(summary.output_dir, "run")[0]["epochs"] == wanted
    tokens = sum(record["tokens"] for record in kept(summary.output_dir, "step"))
    assert tokens == pytest.approx(0.25 * rows["parameters"], abs=one_epoch / 2)
    told = [record["text"] for record in kept(summary.output_dir, "notice") if record["text"].startswith("num_epochs")]
    assert "surogate-observer-diagnostics" in told[0]
    fixed = surogate_core.run({**config, "max_steps": 3, "epoch_adjustment": True, "output_dir": config["output_dir"] + "3"})
    assert fixed.steps == 3


def test_epoch_adjustment_with_an_adapter_is_refused(config: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="20 tokens for each parameter"):
        load({**config, "task": "sft", "lora": True, "epoch_adjustment": True}, load_host())
