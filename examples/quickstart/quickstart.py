"""The quickstart: a tokenizer, a pretrained model and a LoRA adapter out of Python's own standard library, by surogate's commands.

    python examples/quickstart/quickstart.py

Run from the root of the repository. Everything is written to quickstart/, which is emptied first. Exit code 1 if the pretraining
loss falls by less than 45 % or the loss on held-out answers by less than 15 %.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
OUT = Path("quickstart")
PRETRAIN, FINETUNE = HERE / "pretrain.toml", HERE / "finetune.toml"
PRETRAINING_GOAL, ANSWERS_GOAL = 0.45, 0.15
TAIL = 10
"""The final pretraining loss is the mean of this many last steps."""


def command(*words: object, keep: bool = False) -> str:
    """Run ``surogate``; its output goes to the terminal, and is returned instead if ``keep``."""
    arguments = [str(word) for word in words]
    print(f"\n$ surogate {shlex.join(arguments)}", flush=True)
    done = subprocess.run([sys.executable, "-m", "surogate_core", *arguments], stdout=subprocess.PIPE if keep else None, text=True)
    if done.returncode:
        sys.exit(done.returncode)
    if keep:
        print(done.stdout.rstrip(), flush=True)
    return done.stdout or ""


def answer_loss() -> float:
    found = re.search(r"^loss\s+([\d.]+)", command("eval", FINETUNE, keep=True), re.MULTILINE)
    assert found is not None
    return float(found[1])


def answers(model: str, questions: list[str]) -> None:
    words = [word for question in questions for word in ("--prompt", question)]
    command("generate", OUT / model / "last", "--chat", "--max-new-tokens", 40, *words)


def main() -> int:
    started = time.monotonic()
    if OUT.exists():
        shutil.rmtree(OUT)
    subprocess.run([sys.executable, str(HERE / "prepare.py"), str(OUT)], check=True)
    pairs = [json.loads(line) for line in (OUT / "pairs-held-out.jsonl").read_text(encoding="utf-8").splitlines()]
    questions = [pair["instruction"] for pair in pairs if len(pair["instruction"]) < 70][:3]

    command("tokenizer", "train", OUT / "text-train.jsonl", "--output", OUT / "model", "--vocab-size", 2048)
    command("run", PRETRAIN)
    before = answer_loss()
    command("generate", OUT / "pretrain" / "last", "--max-new-tokens", 60, "--prompt", "The built-in function open() returns")
    answers("pretrain", questions)
    command("run", FINETUNE)
    after = answer_loss()
    answers("finetune", questions)

    records = [json.loads(line) for line in (OUT / "pretrain" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    losses = [record["loss"] for record in records if record["kind"] == "step"]
    final = sum(losses[-TAIL:]) / len(losses[-TAIL:])
    goals = [("pretraining loss", losses[0], final, PRETRAINING_GOAL), ("held-out answers", before, after, ANSWERS_GOAL)]
    print(f"\nDone in {time.monotonic() - started:.0f} s. Pictures: {OUT}/pretrain/loss.png, {OUT}/finetune/loss.png\n")
    for name, first, last, goal in goals:
        fall = 1 - last / first
        print(
            f"{name:<18}{first:.3f} -> {last:.3f}  {-fall:+.1%}  (at least {-goal:.0%}: {'reached' if fall >= goal else 'MISSED'})"
        )
    return 0 if all(1 - last / first >= goal for _, first, last, goal in goals) else 1


if __name__ == "__main__":
    sys.exit(main())
