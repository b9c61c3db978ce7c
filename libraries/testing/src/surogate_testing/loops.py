"""The training loop: a small run whole, and the same run in two parts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from surogate_core.config import load
from surogate_core.contracts import Decision, RunInfo, Summary
from surogate_core.errors import SurogateError
from surogate_core.hookspecs import hookimpl
from surogate_core.host import load_host
from surogate_core.offers import Owner
from surogate_core.train.run import execute

STEPS, PART, CUT = 6, 3, 2
"""Steps of the run, the one after which its first part ends, and the one after which an observer halves the learning rate."""
EXACT = ("step", "loss", "lr", "grad_norm", "tokens", "trained", "epoch")
"""Fields of a step's record that do not measure time."""


def check_loop(config: Mapping[str, Any], directory: Path, *plugins: Any) -> None:
    """``config`` chooses the loop (``training_loop``), and a model and data small enough for thirty steps, on the CPU; steps,
    schedule and directories are set here. ``plugins``: modules that are not installed. ``directory`` is empty.

    Six steps are recorded and observed in order, with a rate that halves when an observer says so; one that raises is heard no
    more. Stopped by an observer after the third and continued, the run gives the same records and files as in one piece, bit for
    bit. Started again it is finished; with ``fresh`` it starts over."""
    whole, rebel = _Witness(), _Rebel()
    summary = _run(config, directory / "whole", plugins, whole, rebel)
    _check_summary(summary, STEPS, whole)
    assert rebel.heard == 1, f"an observer that raises is heard {rebel.heard} times, wanted once: it is detached"
    rates = [record["lr"] for record in whole.records]
    for step, rate in enumerate(rates, 1):
        wanted = rates[0] * (0.5 if step > CUT else 1.0)
        assert math.isclose(rate, wanted), f"step {step}: rate {rate}, wanted {wanted}: an observer halved it after step {CUT}"
    first = _Witness(stop=PART)
    stopped = _run(config, directory / "parts", plugins, first, _Rebel())
    assert stopped.steps == PART, f"an observer stops the run after step {PART}, and it makes {stopped.steps}"
    assert stopped.stopped is not None, "Summary.stopped does not say why the run ended early"
    assert "as planned" in stopped.stopped, f"Summary.stopped says {stopped.stopped!r}, and not the observer's reason"
    second = _Witness()
    summary = _run(config, directory / "parts", plugins, second, _Rebel())
    assert second.resumed == PART, f"the run is continued from step {second.resumed}, a checkpoint has step {PART}"
    _check_summary(summary, STEPS, second, PART)
    for one, two in zip(whole.records, [*first.records, *second.records], strict=True):
        for name in EXACT:
            same = one[name] == two[name]
            assert same, f"step {one['step']}: {name} is {one[name]!r} in one piece, {two[name]!r} in two"
    _same_files(whole.newest(), second.newest())
    over = _Witness()
    done = _run(config, directory / "parts", plugins, over, _Rebel())
    assert not over.records, f"a finished run trains step {[record['step'] for record in over.records]} again"
    assert done.steps == STEPS, f"a finished run says that it has {done.steps} steps"
    anew = _Witness(stop=1)
    _run(config, directory / "parts", plugins, anew, _Rebel(), fresh=True)
    assert [record["step"] for record in anew.records] == [1], "with fresh the run does not start over"
    assert anew.records[0]["loss"] == whole.records[0]["loss"], "started over, the first step is another one"


class _Witness:
    """A plugin that remembers what it is told, halves the rate after step 2, and stops after step ``stop``."""

    def __init__(self, stop: int = 0) -> None:
        self.stop = stop
        self.hooks: list[str] = []
        self.records: list[dict[str, Any]] = []
        self.parts: set[str] = set()
        self.saved: list[tuple[str, int]] = []
        self.info: RunInfo | None = None

    @property
    def resumed(self) -> int:
        return -1 if self.info is None else self.info.resumed

    def newest(self) -> Path:
        """Files of the newest checkpoint of the run that was told of."""
        assert self.info is not None
        core = self.info.config.core
        saved = self.info.plan.checkpoints(Path(core.checkpoint_dir or core.output_dir), core.save_total_limit).newest()
        assert saved is not None, "there is no checkpoint after the last step"
        return Path(saved.path)

    @hookimpl
    def run_started(self, run: RunInfo) -> None:
        self.hooks.append("run_started")
        self.info = run

    @hookimpl
    def step_finished(self, run: RunInfo, record: dict[str, Any]) -> Decision | None:
        self.hooks.append("step_finished")
        self.records.append(dict(record))
        stop = record["step"] == self.stop
        if stop or record["step"] == CUT:
            return Decision(reason="as planned", stop=stop, scale_lr=0.5 if record["step"] == CUT else 1.0)
        return None

    @hookimpl
    def part_finished(self, run: RunInfo, name: str) -> None:
        self.parts.add(name)

    @hookimpl
    def checkpoint_saved(self, run: RunInfo, path: str, step: int) -> None:
        self.hooks.append("checkpoint_saved")
        self.saved.append((path, step))

    @hookimpl
    def run_finished(self, run: RunInfo, summary: dict[str, Any]) -> None:
        self.hooks.append("run_finished")


class _Rebel:
    """An observer that raises."""

    def __init__(self) -> None:
        self.heard = 0

    @hookimpl
    def step_finished(self, record: dict[str, Any]) -> None:
        self.heard += 1
        raise RuntimeError("I do not like this step")


def _run(config: Mapping[str, Any], output: Path, plugins: tuple[Any, ...], *watching: Any, fresh: bool = False) -> Summary:
    given = [(f"check-{number}", plugin, Owner(f"check-{number}", "1")) for number, plugin in enumerate([*plugins, *watching])]
    host = load_host(given)
    assert not host.broken, f"a plugin cannot be used: {host.broken}"
    settled = {
        **config,
        "max_steps": STEPS,
        "save_steps": 1000,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "warmup_ratio": 0.0,
        "output_dir": str(output),
        "report_to": [],
    }
    try:
        return execute(load(settled, host), host, quiet=True, fresh=fresh)
    except SurogateError as error:
        raise AssertionError(f"a run in {output.name}: {error}") from error


def _check_summary(summary: Summary, steps: int, witness: _Witness, before: int = 0) -> None:
    told = [record["step"] for record in witness.records]
    assert told == list(range(before + 1, steps + 1)), f"observers are told of steps {told}, wanted {before + 1} to {steps}"
    started, ended = witness.hooks[:1], witness.hooks[-1:]
    assert started == ["run_started"], f"the first that observers are told is {started}, wanted run_started"
    assert ended == ["run_finished"], f"the last that observers are told is {ended}, wanted run_finished"
    for name in ("data", "forward", "backward", "optimizer", "record", "save"):
        assert name in witness.parts, f"part_finished is never called for {name!r}"
    for record in witness.records:
        missing = [name for name in EXACT if name not in record]
        assert not missing, f"the record of step {record['step']} has no {missing[0]!r}: see docs/metrics.md"
        assert record["kind"] == "step", f"the record of step {record['step']} is of kind {record['kind']!r}"
    assert witness.saved, "observers are not told of the checkpoint after the last step"
    path, step = witness.saved[-1]
    assert step == steps, f"the last checkpoint is of step {step}, not {steps}"
    assert Path(path).exists(), f"observers are told of a checkpoint that is not there: {path}"
    assert (summary.steps, summary.total_steps) == (steps, steps), f"Summary: {summary.steps} of {summary.total_steps} steps"
    assert summary.loss == witness.records[-1]["loss"], f"Summary.loss is {summary.loss}, the last record says another"
    assert summary.stopped is None, f"Summary.stopped says {summary.stopped!r} of a run with all its steps"


def _same_files(one: Path, two: Path) -> None:
    """The tensors of two checkpoints, file by file."""
    names = sorted(path.relative_to(one).as_posix() for path in one.rglob("*.safetensors"))
    assert names, f"{one.name} holds no tensors"
    for name in names:
        same = (two / name).is_file() and (two / name).read_bytes() == (one / name).read_bytes()
        assert same, f"{name} of the last checkpoint differs between a run in one piece and in two"
