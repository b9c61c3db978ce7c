"""All four loggers on real runs: what one of them holds, the others hold, to the last bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from surogate_core import testing

Rows = dict[int, dict[str, Any]]


@pytest.fixture
def config(tiny: Path, tmp_path: Path) -> dict[str, Any]:
    rows = [{"text": f"{number} green bottles hanging on the wall " * 8} for number in range(60)]
    return {
        "model": str(tiny),
        "output_dir": str(tmp_path / "out"),
        "sequence_len": 64,
        "optimizer": "adamw",
        "lora": False,
        "eval_steps": 20,
        "save_steps": 20,
        "max_steps": 60,
        "report_to": ["wandb", "aim"],
        "log_file": str(tmp_path / "log.jsonl"),
        "aim_repo": str(tmp_path / "repo"),
        "aim_experiment": "bottles",
        "wandb_project": "green",
        "datasets": [{"path": str(testing.write_rows(tmp_path / "rows.jsonl", rows)), "type": "text"}],
    }


def start(config: dict[str, Any], directory: Path) -> subprocess.Popen[str]:
    path = directory / "config.toml"
    path.write_text("\n".join(f"{key} = {json.dumps(value)}" for key, value in config.items() if key != "datasets"))
    table = config["datasets"][0]
    with path.open("a") as file:
        file.write(f'\n[[datasets]]\npath = "{table["path"]}"\ntype = "text"\n')
    command = [sys.executable, "-m", "surogate_core", "run", str(path)]
    environ = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}  # not that of this process
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=directory, env=environ, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True)


def told(path: Path) -> tuple[Rows, list[dict[str, Any]]]:
    """(step → figures under their public names, other records) of a JSON Lines file."""
    rows: Rows = {}
    others = []
    for line in path.read_bytes().split(b"\n")[:-1]:
        record = json.loads(line)
        group = {"step": "train", "eval": "eval"}.get(record["kind"])
        if group is None:
            others.append(record)
            continue
        figures = {f"{group}/{key}": value for key, value in record.items() if key not in ("kind", "step", "total_steps")}
        rows.setdefault(record["step"], {}).update(figures)
    return rows, others


def wandb_rows(records: list[Any]) -> Rows:
    rows: Rows = {}
    for record in records:
        if record.WhichOneof("record_type") == "history":
            found = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
            rows.setdefault(found["_step"], {}).update({key: value for key, value in found.items() if key[0] != "_"})
    return rows


def wandb_lines(records: list[Any]) -> list[dict[str, Any]]:
    return [json.loads(record.output_logger.line) for record in records if record.WhichOneof("record_type") == "output_logger"]


def events(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [record for record in records if record["kind"] not in ("run", "ledger", "end")]


def test_every_logger_holds_the_same_and_a_killed_run_continues_its_curve(
    config: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    read_wandb: Callable[[Path], list[Any]],
    read_aim: Callable[[Path], list[dict[str, Any]]],
) -> None:
    monkeypatch.setenv("WANDB_X_TRANSACTION_LOG_FLUSH_INTERVAL", "0.02")
    log, output, repo = tmp_path / "log.jsonl", tmp_path / "out", tmp_path / "repo"
    process = start(config, tmp_path)
    while not any(20 in wandb_rows(read_wandb(path)) for path in output.glob("wandb/offline-run-*/run-*.wandb")):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    state = json.loads((output / "last" / "state.json").read_text())
    saved, ids = state["progress"]["step"], state["loggers"]

    process = start(config, tmp_path)
    out, err = process.communicate(timeout=240)
    assert (process.returncode, err) == (0, "")
    assert f"see it with: aim up --repo {repo}" in out
    assert f"send it with: wandb sync {output}/wandb/offline-run-*-{ids['wandb']['run_id']}" in out
    assert out.index("step 60/60") < out.index("checkpoint-00000060") < out.index("picture: "), "in order, to the last line"

    rows, others = told(log)
    assert sorted(rows) == list(range(1, 61))
    assert {"train/loss", "train/lr", "train/grad_norm", "train/tokens_per_s", "eval/loss"} <= rows[40].keys()
    assert told(output / "metrics.jsonl") == (rows, others)
    resumed = [record for record in others if record["kind"] == "run"][-1]
    assert resumed["resumed"] == saved

    files = sorted((output / "wandb").glob("offline-run-*/run-*.wandb"))
    assert [path.name for path in files] == [f"run-{ids['wandb']['run_id']}.wandb"] * 2
    first, second = map(read_wandb, files)
    assert sorted(wandb_rows(second)) == list(range(saved + 1, 61))
    assert {step: figures for step, figures in wandb_rows(first).items() if step <= saved} | wandb_rows(second) == rows
    lines = [line for line in wandb_lines(first) if line.get("step", 0) <= saved] + wandb_lines(second)
    assert lines == events(others)
    begun = next(record.run for record in second if record.WhichOneof("record_type") == "run")
    settings = {item.key: json.loads(item.value_json) for item in begun.config.update}
    assert (begun.run_id, begun.project, begun.display_name) == (ids["wandb"]["run_id"], "green", resumed["run_name"])
    assert {key: settings[key] for key in resumed["config"]} == resumed["config"]
    assert settings["run"] == {key: value for key, value in resumed.items() if key != "config"}
    assert settings["run"]["plugins"]["surogate-logger-wandb"]

    (kept,) = read_aim(repo)
    assert {step: figures for step, figures in kept["rows"].items() if step in rows} == rows, "replayed steps are replaced"
    assert [line for line in kept["lines"] if line in events(others)] == events(others)
    assert (kept["hash"], kept["experiment"]) == (ids["aim"]["run_hash"], "bottles")
    assert (kept["name"], kept["ended"]) == (resumed["run_name"], True)
    assert kept["settings"]["hparams"] == resumed["config"]
    assert kept["settings"]["run"] == settings["run"]
    assert kept["settings"]["ledger"] == [record for record in others if record["kind"] == "ledger"][-1]
    assert kept["settings"]["end"] == others[-1]
