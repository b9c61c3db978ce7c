"""What logging costs a training step: one real run whose steps reach its loggers in every other block only.

    python bench/loggers.py [--pairs 10] [--turns 20] [--steps 2]

A random model is trained on one thread; its steps take 200 ms or more on a quiet machine. A pair is all steps with loggers beside
all steps without in so many turns, and a turn is four blocks: without, with, with, without. Blocks are short, because a machine
that is shared changes its speed within seconds: what lies beside each other meets the same. The first step of a block is not
counted: in it the threads of the loggers work on the step before. Of each figure the median over the pairs is told, with an
interval that holds it at 95 % whatever the distribution (order statistics).

wall       time from the end of a step to the end of the next; noisy on a machine that does other work
processor  time that the training thread itself computes; does not see waiting for the interpreter's lock
at most    what the training thread spends on handing a record over, plus all that the other threads compute, as a share of a step:
           if every moment of theirs held up the training thread, it would be slower by this
processes  what processes that loggers started compute for a step with loggers; they need a core when the training leaves one

``metrics.jsonl`` is written in both blocks, as every run does. The last rows have one logger that misbehaves.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from attrs import Factory, define, fields
from surogate_loop_standard import session
from surogate_loop_standard.fanout import Fanout
from surogate_model_transformers.testing import tiny_model

import surogate_core
from surogate_core import testing
from surogate_core.contracts import Logger
from surogate_core.offers import Offer

FIRST = 4
"""Steps before the first block: loggers open their files, torch its kernels."""


class Sleeps:
    """Takes a second for each record."""

    def log(self, record: Mapping[str, Any]) -> None:
        time.sleep(1)

    def close(self) -> None:
        return


class Raises(Sleeps):
    def log(self, record: Mapping[str, Any]) -> None:
        raise RuntimeError("broken")


def clocks() -> tuple[float, float, float]:
    """Seconds: on the wall, of this thread, of all threads."""
    return time.perf_counter(), time.thread_time(), time.process_time()


def of_children(parent: int) -> float:
    """Seconds that the processes which this one has started, and theirs, have computed. 0 where there is no ``/proc``."""
    found: dict[int, tuple[int, float]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            found[int(path.parent.name)] = int(fields[1]), (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    own, total = {parent}, 0.0
    while more := {process for process, (above, _) in found.items() if above in own} - own:
        own |= more
        total += sum(found[process][1] for process in more)
    return total


@define
class Block:
    """Seconds of each counted step: by the clock; of the processor, in the training thread, there in handing records over, and in
    the other threads."""

    wall: list[float] = Factory(list)
    processor: list[float] = Factory(list)
    handing: list[float] = Factory(list)
    others: list[float] = Factory(list)

    def add(self, *figures: float) -> None:
        for name, figure in zip(("wall", "processor", "handing", "others"), figures, strict=True):
            getattr(self, name).append(figure)

    def mean(self, name: str) -> float:
        """Means, not medians: what happens now and then counts."""
        return statistics.fmean(getattr(self, name))

    @classmethod
    def joined(cls, blocks: Sequence[Block]) -> Block:
        """The steps of all."""
        return cls(*([value for block in blocks for value in getattr(block, part.name)] for part in fields(cls)))


@define
class Meter:
    """Counts the steps of a run, and lets their records through in the blocks that have loggers."""

    size: int
    turns: int
    wanted: int
    """Pairs."""
    blocks: list[Block] = Factory(list)
    last: tuple[float, float, float] = (0.0, 0.0, 0.0)
    elsewhere: list[float] = Factory(list)
    """:func:`of_children` before the first block and after the last."""

    def loud(self, block: int) -> bool:
        return block % 4 in (1, 2)

    def step(self, record: Mapping[str, Any], log: Callable[[Mapping[str, Any]], None]) -> None:
        block, place = divmod(record["step"] - FIRST - 1, self.size + 1)
        begun = time.thread_time()
        if block < 0 or self.loud(block):
            log(record)
        handing = time.thread_time() - begun
        now = clocks()
        wall, own, whole = (new - old for new, old in zip(now, self.last, strict=True))
        self.last = now
        if (block, place) in ((0, 0), (4 * self.turns * self.wanted - 1, self.size)):
            self.elsewhere.append(of_children(os.getpid()))
            self.last = clocks()
        if block >= 0 and place > 0:
            while len(self.blocks) <= block:
                self.blocks.append(Block())
            self.blocks[block].add(wall, own, handing, whole - own)

    def pairs(self) -> list[tuple[Block, Block]]:
        """(without, with)."""
        sides = [[block for number, block in enumerate(self.blocks) if self.loud(number) == loud] for loud in (False, True)]
        count = 2 * self.turns
        return [
            (Block.joined(sides[0][first : first + count]), Block.joined(sides[1][first : first + count]))
            for first in range(0, len(sides[0]), count)
        ]


def measure(work: Path, pairs: int, turns: int, size: int, extra: Logger | None = None, **changes: Any) -> tuple[Meter, list[str]]:
    """One run; its notices are those that the fan-out itself has. ``extra`` is a logger beside those of the configuration."""
    meter, notices = Meter(size, turns, pairs), []

    class Measured(Fanout):
        def __init__(self, loggers: Any, notice: Callable[[str], None]):
            beside = [(Offer("extra", None, build=""), extra)] if extra else []
            super().__init__([*loggers, *beside], notices.append, patience=1.0 if changes.get("report_to") is None else 60.0)

        def log(self, record: Mapping[str, Any]) -> None:
            if record.get("kind") == "step":
                meter.step(record, super().log)
            else:
                super().log(record)

    rows = testing.write_rows(work / "rows.jsonl", [{"text": f"{n} green bottles hanging on the wall " * 40} for n in range(300)])
    config = {
        "model": str(work / "model"),
        "output_dir": str(work / f"out-{len(list(work.iterdir()))}"),
        "model_dtype": "fp32",
        "lora": False,
        "optimizer": "adamw",
        "recompute": False,
        "sequence_len": 512,
        "gradient_accumulation_steps": 1,
        "learning_rate": 1e-9,  # a model that learns the rows by heart has ever smaller gradients, whose steps take other times
        "max_steps": FIRST + 4 * turns * pairs * (size + 1),
        "save_steps": 10**6,
        "validation_split_ratio": 0.0,  # an evaluation would lie in a step of one block
        "dataloader_num_workers": 0,
        "datasets": [{"path": str(rows), "type": "text"}],
        "aim_repo": str(work),
        **changes,
    }
    with mock.patch.object(session, "Fanout", Measured), contextlib.redirect_stdout(io.StringIO()):
        summary = surogate_core.run(config)
    assert summary.steps == config["max_steps"], "a logger stopped the run"
    return meter, notices


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, and the two order statistics between which it lies in 95 % of samples or more (binomial with one half)."""
    ordered, outside, cut = sorted(values), 0.0, 0
    while cut < (len(ordered) - 1) // 2:
        outside += 2 * math.comb(len(ordered), cut) / 2 ** len(ordered)
        if outside > 0.05:
            break
        cut += 1
    cut = max(0, cut - 1)
    return statistics.median(ordered), ordered[cut], ordered[-1 - cut]


def row(name: str, meter: Meter, notices: Sequence[str]) -> str:
    pairs = meter.pairs()

    def slower(figure: str) -> str:
        middle, low, high = interval([(loud.mean(figure) / still.mean(figure) - 1) * 100 for still, loud in pairs])
        return f"{middle:+.2f} ({low:+.2f} to {high:+.2f})"

    def more(figure: str) -> float:
        return statistics.median(loud.mean(figure) - still.mean(figure) for still, loud in pairs)

    base = statistics.median(still.mean("wall") for still, _ in pairs)
    quiet = statistics.median(still.mean("processor") for still, _ in pairs)
    most = (more("handing") + max(0.0, more("others"))) / quiet * 100
    costs = f"{1000 * more('handing'):.2f} + {1000 * more('others'):.2f}"
    apart = (meter.elsewhere[1] - meter.elsewhere[0]) / (2 * meter.turns * meter.wanted * (meter.size + 1)) * 1000
    cells = (
        name,
        f"{1000 * base:.0f}",
        slower("wall"),
        slower("processor"),
        costs,
        f"{most:.2f}",
        f"{apart:.1f}",
        str(len(notices)),
    )
    return f"| {' | '.join(cells)} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--turns", type=int, default=20, help="turns of four blocks in a pair")
    parser.add_argument("--steps", type=int, default=2, help="counted steps of one block")
    parser.add_argument("--rows", type=int, default=2, help="rows of 512 positions in a step")
    given = parser.parse_args()
    torch.set_num_threads(1)
    os.environ.setdefault("WANDB_MODE", "offline")
    lines = [
        "| loggers | step without, ms | slower by, %: wall | processor | handing over + other threads, ms | at most, % | "
        "other processes, ms | named |",
        "|---|---|---|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory(prefix="surogate-bench-", ignore_cleanup_errors=True) as made:
        work = Path(made)
        shape = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 3}
        tiny_model(work / "model", "qwen3", **shape)
        cases: list[tuple[str, int, dict[str, Any]]] = [
            ("console, jsonl, wandb, aim", given.pairs, {"report_to": ["wandb", "aim"], "log_file": str(work / "log.jsonl")}),
            ("console, one that sleeps 1 s", 2, {"extra": Sleeps()}),
            ("console, one that raises", 2, {"extra": Raises()}),
            ("console, jsonl on a full disk", 2, {"log_file": "/dev/full"}),
        ]
        load = os.getloadavg()[0]
        for name, pairs, changes in cases:
            meter, notices = measure(work, pairs, given.turns, given.steps, per_device_train_batch_size=given.rows, **changes)
            lines.append(row(name, meter, notices))
            print(json.dumps({"case": name, "notices": notices}), file=sys.stderr)
    print("\n".join(["", f"load average {load:.1f} to {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores", "", *lines]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
