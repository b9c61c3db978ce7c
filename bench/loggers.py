"""What logging costs a training step: the same steps with no logger and with all four, in interleaved pairs.

    python bench/loggers.py [--pairs 10] [--steps 40] [--ms 200]

A step multiplies matrices for about ``--ms`` milliseconds on ``--threads`` threads, then sends its record, as the loop does. Each
side of a pair is the mean step of its block; which side comes first alternates. Starting up is not counted. Also given: the wall
time that the step spends in handing its record over, and the processor time of all threads but the one that computes, which
depends little on what else the machine does. The last rows show loggers that misbehave.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from attrs import frozen
from surogate_loop_standard.fanout import Fanout
from surogate_loop_standard.records import Records

from surogate_core.config.options import CoreOptions
from surogate_core.contracts import Logger, LoggerContext
from surogate_core.host import load_host
from surogate_core.offers import Offer

T95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 8: 2.365, 10: 2.262, 12: 2.201, 16: 2.131, 20: 2.093}
"""Student's t for a two-sided 95 % interval of the mean of so many values."""
NAMES = ("console", "jsonl", "wandb", "aim")


class Sleeps:
    """Takes a second for each record."""

    def log(self, record: Mapping[str, Any]) -> None:
        time.sleep(1)

    def close(self) -> None:
        return


class Raises(Sleeps):
    def log(self, record: Mapping[str, Any]) -> None:
        raise RuntimeError("broken")


def loggers(work: Path, names: Sequence[str], log_file: str) -> list[tuple[Offer, Logger]]:
    core = CoreOptions(model="none", report_to=["wandb", "aim"])
    context = LoggerContext(config=core, output_dir=work, run_name="bench", resumed=0, terminal=False, quiet=False)
    values = {"log_file": log_file, "aim_repo": str(work)}
    made = []
    for name in names:
        offer = load_host().offer("loggers", name)
        keys = offer.options.__annotations__ if offer.options else ()
        options = offer.options(**{key: value for key, value in values.items() if key in keys}) if offer.options else None
        made.append((offer, offer.load()(options, context)))
    return made


def computation(milliseconds: float) -> Callable[[], None]:
    matrix = torch.randn(512, 512)

    def multiply(count: int) -> None:
        for _ in range(count):
            torch.mm(matrix, matrix)

    multiply(50)
    begun = time.perf_counter()
    multiply(200)
    count = max(1, round(milliseconds / 1000 / ((time.perf_counter() - begun) / 200)))
    return lambda: multiply(count)


@frozen
class Block:
    """Means over the steps of one block, in ms. Means, not medians: what happens now and then counts."""

    step: float
    handing: float
    threads: float


def block(compute: Callable[[], None], log: Callable[[Mapping[str, Any]], None], first: int, steps: int) -> Block:
    whole, handing, aside = 0.0, 0.0, time.process_time() - time.thread_time()
    for step in range(first, first + steps):
        begun = time.perf_counter()
        compute()
        computed = time.perf_counter()
        seconds = computed - begun
        log(
            {
                "kind": "step",
                "step": step,
                "total_steps": 10**6,
                "epoch": round(step / 1000, 4),
                "loss": 5 / step + 2,
                "lr": 1e-3 / step,
                "grad_norm": 1.0 + 1 / step,
                "tokens": 8192,
                "trained": 8100,
                "seconds": round(seconds, 6),
                "tokens_per_s": round(8192 / seconds, 1),
            }
        )
        ended = time.perf_counter()
        whole, handing = whole + ended - begun, handing + ended - computed
    threads = time.process_time() - time.thread_time() - aside
    return Block(*(1000 * value / steps for value in (whole, handing, threads)))


def measure(compute: Callable[[], None], fanout: Fanout, records: Records, pairs: int, steps: int) -> list[tuple[Block, Block]]:
    """(without, with) of each pair. ``metrics.jsonl`` is written on both sides: every run has it."""

    def both(record: Mapping[str, Any]) -> None:
        records.write(record)
        fanout.log(record)

    fanout.log({"kind": "run", "step": 0, "steps": 10**6, "config": {}})
    fanout.drain()
    block(compute, both, 1, 3)
    found, step = [], 10
    for pair in range(pairs):
        sides = {}
        for log in (records.write, both) if pair % 2 == 0 else (both, records.write):
            sides[log] = block(compute, log, step, steps)
            step += steps
        found.append((sides[records.write], sides[both]))
    return found


def row(name: str, found: Sequence[tuple[Block, Block]], said: str) -> str:
    over = [(loud.step / still.step - 1) * 100 for still, loud in found]
    mean = statistics.mean(over)
    half = T95[len(over)] * statistics.stdev(over) / math.sqrt(len(over))
    base = statistics.median(still.step for still, _ in found)
    handing, threads = (
        statistics.mean(getattr(loud, figure) - getattr(still, figure) for still, loud in found)
        for figure in ("handing", "threads")
    )
    interval = f"{mean:+.2f} ({mean - half:+.2f} to {mean + half:+.2f})"
    return f"| {name} | {base:.0f} | {interval} | {handing:.3f} | {threads:.3f} | {said} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=10, choices=sorted(T95))
    parser.add_argument("--steps", type=int, default=40, help="steps of one side of a pair")
    parser.add_argument("--ms", type=float, default=200.0, help="milliseconds of a step")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    compute = computation(given.ms)
    lines = [
        "| loggers | step without, ms | slower by, % (95 % interval) | handing over, ms | other threads, CPU ms | named |",
        "|---|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory(prefix="surogate-bench-", ignore_cleanup_errors=True) as made:
        work = Path(made)
        records = Records(work / "metrics.jsonl", 0)
        cases: list[tuple[str, list[tuple[Offer, Logger]], int, float]] = [
            ("console, jsonl, wandb, aim", loggers(work, NAMES, str(work / "log.jsonl")), given.pairs, 60.0),
            ("one that sleeps 1 s", [(Offer("sleeps", None, build=""), Sleeps())], 2, 1.0),
            ("one that raises", [(Offer("raises", None, build=""), Raises())], 2, 1.0),
            ("jsonl on a full disk", loggers(work, ("jsonl",), "/dev/full"), 2, 1.0),
        ]
        for name, chosen, pairs, patience in cases:
            notices: list[str] = []
            fanout = Fanout(chosen, notices.append, patience=patience)
            found = measure(compute, fanout, records, pairs, given.steps)
            fanout.close()
            lines.append(row(name, found, f"{len(notices)}×" if notices else "no"))
        records.close()
    print("\n".join(["", *lines]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
