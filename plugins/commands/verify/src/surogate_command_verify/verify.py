"""``verify``: two promises of the loop, checked on the user's own model, data and machine.

``resume``  N steps in one go equal k steps, kill -9, and N - k steps in a fresh process, bit for bit.
``batch``   The gradient of a step does not depend on how its rows are split into micro-batches.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from surogate_core.cli import output
from surogate_core.cli.run import PASS_KEYS, config_arguments, overrides
from surogate_core.errors import PlanError, RunFailed

if TYPE_CHECKING:
    from torch import Tensor

WHEN = {"seconds", "data_seconds", "tokens_per_s", "ms", "memory", "gpu"}
"""Fields of records that are measured: they depend on the clock and on what else the machine does."""

TOLERANCE = {"fp32": 1e-4, "bf16": 5e-2}
"""Largest difference of a gradient between two orders of summation, relative to its norm."""

Difference = tuple[str, int, str | None]
"""What was compared, how many of it, and the first that differs (None: all equal)."""


@click.group()
def verify() -> None:
    """Check on CONFIG that resuming is exact, or that gradients do not depend on the batch split."""


# ---------------------------------------------------------------- resume
@verify.command(context_settings=PASS_KEYS)
@config_arguments
@click.option("--steps", default=6, show_default=True, type=click.IntRange(2), help="Steps in all.")
@click.option("--at", default=3, show_default=True, type=click.IntRange(1), help="Kill after the checkpoint of this step.")
def resume(config: Path, words: tuple[str, ...], steps: int, at: int) -> None:
    """Train CONFIG in one go, and again with a kill -9 and a fresh process in between; compare weights, optimizer, random state and
    metrics bit for bit. Everything is written into a temporary directory and removed."""
    if at >= steps:
        raise click.UsageError(f"--at {at} must be below --steps {steps}")
    from surogate_core.config import load
    from surogate_core.host import load_host

    log_file = load(config, load_host(), overrides(words)).resolved().get("log_file")
    with tempfile.TemporaryDirectory(prefix="surogate-verify-") as place:
        whole, parts = Path(place, "whole"), Path(place, "parts")

        def command(target: Path, save_steps: int) -> list[str]:
            keys = {
                "output_dir": target,
                "checkpoint_dir": target,
                "max_steps": steps,
                "save_steps": save_steps,
                "save_total_limit": steps,
            }
            keys |= {"log_file": target / "log.jsonl"} if log_file else {}
            given = [f"{key}={value}" for key, value in keys.items()]
            return [sys.executable, "-m", "surogate_core", "run", str(config), *words, *given, "--quiet"]

        output.note(f"training {steps} steps in one go")
        _finish(subprocess.run(command(whole, steps), check=False).returncode)
        output.note(f"training {at} steps, then kill -9")
        _kill_after(command(parts, at), parts, at)
        output.note(f"continuing from step {at} in a fresh process")
        _finish(subprocess.run(command(parts, at), check=False).returncode)
        found = list(compare(whole, parts, steps))
    output.table(("compared", "count", "result"), [(name, str(count), worst or "identical") for name, count, worst in found])
    for name, _, worst in found:
        if worst:
            raise RunFailed(f"resuming is not exact: {name}: {worst}", where=str(config), how="see the table for all that differs")


def _finish(code: int) -> None:
    if code:
        raise RunFailed(f"a run of the comparison ended with exit code {code}; its own message is above")


def _kill_after(command: Sequence[str], target: Path, at: int) -> None:
    """Start a run and kill it as soon as the checkpoint of step ``at`` is there. What it wrote later goes too."""
    with subprocess.Popen(command) as process:
        while not (target / "last").exists() and process.poll() is None:
            time.sleep(0.01)
        process.kill()
    if not (target / f"checkpoint-{at:08d}").is_dir():
        _finish(process.returncode)
    for path in target.glob("checkpoint-*"):
        if path.name != f"checkpoint-{at:08d}":
            path.rename(target / f"later-{path.name}")


def compare(one: Path, two: Path, step: int) -> Iterator[Difference]:
    """Compare two output directories at their checkpoints of ``step``: tensors byte by byte, state, and records without times."""
    first, second = (path / f"checkpoint-{step:08d}" for path in (one, two))
    for name in sorted({path.name for where in (first, second) for path in where.glob("*.safetensors")}):
        yield _differ(name, _tensors(first / name), _tensors(second / name))
    yield _differ("state.json", *(json.loads((path / "state.json").read_text())["progress"] for path in (first, second)))
    yield _differ("metrics.jsonl", _records(one), _records(two))


def _differ(name: str, one: dict[Any, Any], two: dict[Any, Any]) -> Difference:
    keys = list(dict.fromkeys((*one, *two)))
    return name, len(keys), next((str(key) for key in keys if one.get(key) != two.get(key)), None)


def _tensors(path: Path) -> dict[str, tuple[Any, ...]]:
    """Name → type, shape and bytes of each tensor of a safetensors file; none if it does not exist."""
    if not path.exists():
        return {}
    from safetensors import deserialize

    return {name: (entry["dtype"], tuple(entry["shape"]), bytes(entry["data"])) for name, entry in deserialize(path.read_bytes())}


def _records(directory: Path) -> dict[str, dict[str, Any]]:
    lines = (directory / "metrics.jsonl").read_bytes().split(b"\n")
    found: dict[str, dict[str, Any]] = {}
    for record in map(json.loads, filter(None, lines)):
        if record["kind"] in ("step", "eval"):
            name = f"{record['kind']} {record['step']}"
            name += " again" if name in found else ""
            found[name] = {key: value for key, value in record.items() if key not in WHEN}
    return found


# ---------------------------------------------------------------- batch
@verify.command(context_settings=PASS_KEYS)
@config_arguments
def batch(config: Path, words: tuple[str, ...]) -> None:
    """Compute the gradient of CONFIG's first step with its rows as one micro-batch, as two, and one by one, through the functions
    of the loop and without dropout, and compare. A difference is relative to the norm of a parameter's gradient."""
    from surogate_core.config import load
    from surogate_core.host import load_host

    host = load_host()
    loaded = load(config, host, overrides(words))
    core = loaded.core
    rows = core.per_device_train_batch_size * core.gradient_accumulation_steps
    if rows < 2:
        raise PlanError("a step of one row cannot be split", where=str(config), how="add --gradient-accumulation-steps 4")
    sizes = sorted({rows, rows // 2 if rows % 2 == 0 else 1, 1}, reverse=True)
    tolerance = TOLERANCE[core.model_dtype]
    lines, worst = [], (0.0, "")
    reference: dict[str, Tensor] = {}
    for size, loss, gradients in _gradients(loaded, host, rows, sizes):
        reference = reference or gradients
        difference = _largest(reference, gradients)
        worst = max(worst, difference)
        lines.append((f"{size} x {rows // size}", f"{loss:.8f}", f"{difference[0]:.2e}", difference[1]))
    output.table(("rows x micro-batches", "loss", "largest difference", "in"), lines)
    if not worst[0] <= tolerance:
        raise RunFailed(
            f"the gradient depends on the batch split: {worst[1]} differs by {worst[0]:.2e}, {tolerance:.0e} is allowed",
            where=str(config),
            how="try --model-dtype fp32, for a mixture of experts --router-aux-loss-coef 0; "
            "if it still differs, a plugin or the model mixes the rows of a batch",
        )


def _gradients(config: Any, host: Any, rows: int, sizes: Sequence[int]) -> Iterator[tuple[int, float, dict[str, Tensor]]]:
    from surogate_loop_standard.loop import accumulate

    from surogate_core.plan import make_plan
    from surogate_core.train.setup import build

    plan = make_plan(config, host)
    data = plan.pipeline.prepare(plan.model_source.tokenizer(), output.note)
    trainee = build(plan)
    trainee.model.eval()
    for size in sizes:
        step = data.training(size, rows // size).step(0)
        loss = accumulate(trainee.model, step, plan.parallelism, plan.model_source.loss)
        named = list(zip(trainee.names, trainee.parameters, strict=True))
        yield size, float(loss), {name: one.grad.double() for name, one in named if one.grad is not None}
        for _, one in named:
            one.grad = None


def _largest(reference: dict[str, Tensor], other: dict[str, Tensor]) -> tuple[float, str]:
    """The largest difference relative to a parameter's gradient, and whose. A gradient that is all but zero, such as a key bias's,
    is nothing but rounding: it counts relative to a thousandth of the whole gradient's norm."""
    whole = math.sqrt(sum(float(one.square().sum()) for one in reference.values()))
    found = {}
    for name, one in reference.items():
        found[name] = float((other[name] - one).norm()) / max(float(one.norm()), whole / 1000, 1e-30)
    worst = max(found, key=lambda name: math.inf if math.isnan(found[name]) else found[name])
    return (math.inf if math.isnan(found[worst]) else found[worst]), worst
