"""The quickstart with ``make prove``, kept in ``docs/proof/quickstart.json``; its data and its configurations with every
``make test``."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
from click.testing import CliRunner
from PIL import Image

from surogate_core.cli.main import main

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "examples" / "quickstart"
RESULTS = ROOT / "docs" / "proof" / "quickstart.json"


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_its_data_hold_out_whole_modules_and_its_configurations_are_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    subprocess.run([sys.executable, str(PROGRAM / "prepare.py"), "quickstart"], check=True, capture_output=True)
    out = tmp_path / "quickstart"
    assert sum(len(row["text"]) for row in rows(out / "text-train.jsonl")) > 3_000_000
    assert sum(len(row["text"]) for row in rows(out / "text-held-out.jsonl")) > 100_000
    train, held_out = rows(out / "pairs-train.jsonl"), rows(out / "pairs-held-out.jsonl")
    assert (len(train) > 1500, len(held_out) > 100) == (True, True)
    sides = [{re.search(r"in the module (\S+)\. ", row["output"])[1] for row in side} for side in (train, held_out)]  # type: ignore[index]
    assert not sides[0] & sides[1]
    assert not {row["output"] for row in train} & {row["output"] for row in held_out}
    (out / "pretrain" / "last").mkdir(parents=True)  # what the first run leaves is the model of the second
    for name in ("pretrain.toml", "finetune.toml"):
        done = CliRunner().invoke(main, ["validate", str(PROGRAM / name)])
        assert (done.exit_code, done.stderr) == (0, "")


def falls(out: Path, printed: str) -> dict[str, list[float]]:
    """Loss before and after: of pretraining its first step and the mean of its last ten, from the metrics; of the held-out answers
    what ``eval`` printed first and the last evaluation in the metrics of the fine-tuning."""
    losses = [record["loss"] for record in rows(out / "pretrain" / "metrics.jsonl") if record["kind"] == "step"]
    evaluations = [record["loss"] for record in rows(out / "finetune" / "metrics.jsonl") if record["kind"] == "eval"]
    before, after = (float(loss) for loss in re.findall(r"^\$ surogate eval .*\nmodel .*\nloss +([\d.]+)$", printed, re.MULTILINE))
    assert after == pytest.approx(evaluations[-1], abs=1e-3)
    return {"pretraining": [losses[0], mean(losses[-10:])], "answers": [before, evaluations[-1]]}


def generations(printed: str) -> list[str]:
    """What each ``generate`` printed: at least a line for each prompt."""
    found = []
    for section in re.split(r"^\$ surogate ", printed.partition("\nDone in ")[0], flags=re.MULTILINE):
        words, _, text = section.partition("\n")
        if words.startswith("generate "):
            assert len([line for line in text.splitlines() if line.strip()]) >= shlex.split(words).count("--prompt"), section
            found.append(text.strip())
    return found


@pytest.mark.prove("it takes ten minutes")
def test_the_goals_are_reached(tmp_path: Path) -> None:
    begun = time.monotonic()
    command = [sys.executable, str(PROGRAM / "quickstart.py")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    out = tmp_path / "quickstart"
    found = falls(out, done.stdout)
    kept: dict[str, Any] = {"seconds": round(time.monotonic() - begun)}
    for name, goal in (("pretraining", 0.45), ("answers", 0.15)):
        first, last = found[name]
        assert 1 - last / first >= goal, name
        kept[name] = {"from": round(first, 4), "to": round(last, 4), "fall": round(1 - last / first, 4), "goal": goal}
    for name in ("pretrain", "finetune"):
        with Image.open(out / name / "loss.png") as picture:
            assert len(picture.convert("RGB").getcolors(picture.width * picture.height) or ()) > 1  # not one colour
    texts = generations(done.stdout)
    assert len(texts) == 3
    RESULTS.write_text(json.dumps({**kept, "generated": texts}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
