"""Kill runs (kill -9) at random moments and at each operation of a save, let them continue, compare with a run left alone.

    python tests/prove/kill_sweep.py --kills 300 --results docs/proof/kills.json

Pretraining from scratch, full fine-tuning and LoRA of a tiny model. A *chain* is one run: started, killed, started again in the
same directory, perhaps killed again, then left to finish; its weights, optimizer state, random state, progress and metrics must
equal those of the run left alone bit for bit. The first kills of four in five chains go through the operations of
``train/durable.py`` that such a run does (a write is torn in its middle), in an order that spreads them; all other kills are drawn:
an operation, or a moment after training has begun.

This process imports what a run imports and computes nothing, so that forked children start at once. Results are kept after each
chain, and a sweep that is started again goes on where it was.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import math
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from surogate_command_verify.verify import compare
from surogate_loop_standard import session
from surogate_model_transformers import testing as models_testing

import surogate_core
from surogate_core import testing
from surogate_core.train import durable

SINGLE = ("make_directory", "write", "flush", "rename", "link", "unlink", "remove_directory")
OPTIONS: dict[str, dict[str, Any]] = {
    "pretraining": {"from_scratch": True, "model_dtype": "fp32", "optimizer": "adamw"},
    "full": {"lora": False},
    "lora": {"lora_rank": 4, "lora_dropout": 0.1},
}
KINDS = tuple(OPTIONS)
STEPS = 6


def config(kind: str, inputs: Path, output: Path) -> dict[str, Any]:
    pairs = {"path": str(inputs / "pairs.jsonl"), "type": "instruction", "instruction_field": "q", "output_field": "a"}
    return {
        "model": str(inputs / "model"),
        "output_dir": str(output),
        "sequence_len": 64,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "max_steps": STEPS,
        "save_steps": 2,
        "save_total_limit": 2,
        "eval_steps": 3,
        "learning_rate": 3e-3,
        "recompute": False,
        "dataloader_num_workers": 0,
        "datasets": [{"path": str(inputs / "text.jsonl"), "type": "text"} if kind == "pretraining" else pairs],
        **OPTIONS[kind],
    }


def prepare(inputs: Path) -> None:
    models_testing.tiny_model(inputs / "model")
    text = [{"text": f"Number {n} is followed by {n + 1}; twice {n} is {2 * n}."} for n in range(60)]
    testing.write_rows(inputs / "text.jsonl", text)
    testing.write_rows(inputs / "pairs.jsonl", [{"q": f"What is {n} + 1?", "a": f"It is {n + 1}."} for n in range(30)])


def count_operations(tell: Callable[[bytes], object], die_at: int | None) -> None:
    """In a child: say each operation through ``tell``; die at number ``die_at``, a write in its middle."""
    done = 0

    def counted(name: str, real: Callable[..., None]) -> Callable[..., None]:
        def operation(*arguments: Any) -> None:
            nonlocal done
            done += 1
            tell(b".")
            if done == die_at:
                if name == "write":
                    arguments[0].write_bytes(arguments[1][: len(arguments[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            real(*arguments)

        return operation

    for name in SINGLE:
        setattr(durable, name, counted(name, getattr(durable, name)))


def start(work: Callable[[], None], log: Path, die_at: int | None = None) -> tuple[int, int]:
    """Fork a child; returns its process id and a pipe from which "t" comes when training begins and "." at each operation."""
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        return child, reading
    try:
        os.close(reading)
        said = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(said, 1)
        os.dup2(said, 2)
        count_operations(lambda mark: os.write(writing, mark), die_at)
        train = session.train

        def announced(*arguments: Any) -> str | None:
            os.write(writing, b"t")
            return train(*arguments)

        vars(session)["train"] = announced
        work()
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)


def finish(child: int, pipe: int, log: Path, kill_after: float | None = None) -> tuple[bool, int, float]:
    """Wait for a child, killing it ``kill_after`` seconds into training. Returns whether it was killed, how many operations it
    did, and how long it trained."""
    operations, began = 0, 0.0
    while mark := os.read(pipe, 1):
        operations += mark == b"."
        if mark == b"t":
            began = time.monotonic()
            if kill_after is not None:
                time.sleep(kill_after)
                os.kill(child, signal.SIGKILL)
    os.close(pipe)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return True, operations, 0.0
    if status:
        raise SystemExit(f"a run failed:\n{log.read_text()}")
    return False, operations, time.monotonic() - began


def import_like(work: Callable[[], None], modules: Path, log: Path) -> None:
    """Import here what a child imports for ``work``: most of a short run's time."""

    def listed() -> None:
        work()
        modules.write_text("\n".join(sys.modules))

    finish(*start(listed, log), log)
    for name in modules.read_text().splitlines():
        with contextlib.suppress(Exception):  # some names are no module that can be imported again
            importlib.import_module(name)


class Sweep:
    def __init__(self, place: Path, results: Path | None):
        self.place = place
        self.results = results
        self.chains: list[dict[str, Any]] = json.loads(results.read_text())["chains"] if results and results.exists() else []
        self.log = place / "log"
        self.figures: dict[str, tuple[int, float]] = {}
        finish(*start(lambda: prepare(place), self.log), self.log)
        import_like(self.run(KINDS[0], place / "imports"), place / "modules", self.log)
        for kind in KINDS:
            _, operations, seconds = finish(*start(self.run(kind, place / kind), self.log), self.log)
            self.figures[kind] = operations, seconds

    def run(self, kind: str, output: Path) -> Callable[[], None]:
        return lambda: surogate_core.run(config(kind, self.place, output)) and None

    def kills(self) -> int:
        return sum(len(chain["kills"]) for chain in self.chains)

    def chain(self, number: int, length: int) -> dict[str, Any]:
        """One run killed up to ``length`` times, then left to finish and compared."""
        kind = KINDS[number % len(KINDS)]
        operations, seconds = self.figures[kind]
        draw = random.Random(number)
        output = self.place / f"{kind}-{number}"
        kills: list[str] = []
        for index in range(length):
            turn = number // len(KINDS)
            die_at = draw.randint(1, operations) if draw.random() < 0.5 else None
            if index == 0 and turn % 5 < 4:
                stride = next(n for n in range(round(operations * 0.382), operations + 1) if math.gcd(n, operations) == 1)
                die_at = (operations // 2 + (turn - turn // 5) * stride) % operations + 1
            after = None if die_at else draw.uniform(0, seconds)
            killed, _, _ = finish(*start(self.run(kind, output), self.log, die_at), self.log, after)
            if not killed:
                break
            kills.append(f"operation {die_at}" if die_at else f"{after:.3f} s into training")
        finish(*start(self.run(kind, output), self.log), self.log)
        worst = [f"{name}: {first}" for name, _, first in compare(self.place / kind, output, STEPS) if first]
        return {"number": number, "kind": kind, "kills": kills, "differences": worst}

    def keep(self) -> None:
        if self.results:
            bad = sum(bool(chain["differences"]) for chain in self.chains)
            by_kind = {kind: sum(len(c["kills"]) for c in self.chains if c["kind"] == kind) for kind in KINDS}
            summary: dict[str, Any] = {
                "kills": self.kills(),
                "chains": len(self.chains),
                "chains that differ": bad,
                "kills by kind": by_kind,
            }
            summary["operations of a run"] = {kind: operations for kind, (operations, _) in self.figures.items()}
            self.results.parent.mkdir(parents=True, exist_ok=True)
            lines = ",\n  ".join(json.dumps(chain) for chain in self.chains)
            text = f'{{\n "summary": {json.dumps(summary)},\n "chains": [\n  {lines}\n ]\n}}\n'
            durable.replace_file(self.results, text.encode())


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--kills", type=int, default=21)
    arguments.add_argument("--chain", type=int, default=3, help="kills of one run")
    arguments.add_argument("--results", type=Path, help="JSON file that is kept and continued")
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory(prefix="surogate-kills-") as place:
        sweep = Sweep(Path(place), given.results)
        while sweep.kills() < given.kills:
            sweep.chains.append(sweep.chain(len(sweep.chains), given.chain))
            sweep.keep()
            print(json.dumps(sweep.chains[-1]), flush=True)
        bad = [chain for chain in sweep.chains if chain["differences"]]
    print(f"{sweep.kills()} kills in {len(sweep.chains)} runs; {len(bad)} runs differ from the run left alone")
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
