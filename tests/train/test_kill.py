"""kill -9 changes nothing: N steps at once against N steps with a kill anywhere in between.

Children are forked from a server that has imported torch, so that a run costs a second and not five. A child is killed at a random
moment, or at the n-th call that its saves make to the file system. ``make test`` makes 21 kills; ``make prove`` makes 300 and
writes ``docs/proof/kills.md``, continuing where an earlier sweep stopped.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from surogate_core import testing

KINDS = ("pretraining", "full", "lora")
WAYS = ("moment", "call")
KILLS = 7
PROOF = Path(__file__).resolve().parents[2] / "docs" / "proof" / "kills.md"
OPERATIONS = ("write", "flush", "rename", "link", "unlink", "make_directory", "remove_directory")


def child(config: dict[str, Any], kill_at: int | None, log: str) -> None:
    """Train in a forked process; die at call ``kill_at`` of the durable operations, or count them all into ``log``."""
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    import torch

    import surogate_core
    from surogate_core.train import durable

    torch.set_num_threads(1)
    calls = 0

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **named)

        return call

    for name in OPERATIONS:
        setattr(durable, name, counted(getattr(durable, name)))
    surogate_core.run(config)
    Path(log).with_suffix(".calls").write_text(str(calls))


@pytest.fixture(scope="module")
def server() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "surogate_core.train.session", "transformers.models.qwen3.modeling_qwen3", __name__])
    return context


@pytest.fixture(scope="module")
def configs(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> dict[str, dict[str, Any]]:
    data = tmp_path_factory.mktemp("data")
    text = testing.write_rows(data / "text.jsonl", [{"text": f"{number} and {number + 1}"} for number in range(40)])
    pairs = testing.write_rows(data / "pairs.jsonl", [{"q": f"{number}?", "a": f"{number + 1}."} for number in range(40)])
    common = {
        "model": str(tiny),
        "sequence_len": 64,
        "gradient_accumulation_steps": 1,
        "max_steps": 7,
        "save_steps": 2,
        "eval_steps": 3,
        "save_total_limit": 2,
        "learning_rate": 3e-3,
        "dataloader_num_workers": 0,
    }
    instruction = {"path": str(pairs), "type": "instruction", "instruction_field": "q", "output_field": "a"}
    return {
        "pretraining": {**common, "from_scratch": True, "lora": False, "datasets": [{"path": str(text), "type": "text"}]},
        "full": {**common, "lora": False, "model_dtype": "fp32", "optimizer": "adamw", "datasets": [instruction]},
        "lora": {**common, "lora_rank": 4, "lora_dropout": 0.2, "datasets": [instruction]},
    }


def run(server: Any, config: dict[str, Any], log: Path, *, kill_at: int | None = None, after: float | None = None) -> int | None:
    """Exit code of a run that is killed at a call or after some seconds, if it lives that long."""
    process = server.Process(target=child, args=(config, kill_at, str(log)))
    process.start()
    if after is not None:
        process.join(after)
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
    process.join(120)
    return process.exitcode


def outcome(directory: Path) -> dict[str, Any]:
    """All that must be equal: the bytes of every file of the last checkpoint, and the metrics without times."""
    last = (directory / "last").resolve()
    found: dict[str, Any] = {path.name: path.read_bytes() for path in sorted(last.iterdir()) if path.suffix == ".safetensors"}
    found["name"] = last.name
    records = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    found["metrics"] = [
        {key: record.get(key) for key in ("kind", "step", "loss", "lr", "grad_norm", "tokens", "epoch")}
        for record in records
        if record["kind"] in ("step", "eval")
    ]
    return found


@pytest.fixture(scope="module")
def whole(server: Any, configs: dict[str, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """For each kind: the uninterrupted outcome, its seconds, and the number of its durable calls."""
    found = {}
    for kind, config in configs.items():
        directory = tmp_path_factory.mktemp(kind)
        begun = time.monotonic()
        assert run(server, {**config, "output_dir": str(directory / "out")}, directory / "log.txt") == 0, (
            directory / "log.txt"
        ).read_text()
        seconds = time.monotonic() - begun
        found[kind] = (outcome(directory / "out"), seconds, int((directory / "log.calls").read_text()))
    return found


def kill_once(server: Any, config: dict[str, Any], whole: tuple[Any, float, int], way: str, number: int, place: Path) -> str:
    """Kill one run, continue it, compare. Returns where it was killed; AssertionError if anything differs."""
    wanted, seconds, calls = whole
    draw = random.Random(f"{way} {number}")
    config = {**config, "output_dir": str(place / "out")}
    if way == "call":
        at = draw.randint(1, calls)
        told = f"call {at} of {calls}"
        assert run(server, config, place / "log.txt", kill_at=at) == -signal.SIGKILL
    else:
        after = draw.uniform(0.1, seconds)
        told = f"{after:.2f} s of {seconds:.2f}"
        run(server, config, place / "log.txt", after=after)
    assert run(server, config, place / "log.txt") == 0, (place / "log.txt").read_text()
    found = outcome(place / "out")
    assert found["metrics"] == wanted["metrics"], told
    assert found.keys() == wanted.keys(), told
    for name, value in wanted.items():
        assert found[name] == value, f"{name} differs after a kill at {told}"
    return told


@pytest.mark.parametrize("number", range(KILLS))
@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_run_ends_as_if_it_had_not_been(
    server: Any, configs: dict[str, Any], whole: dict[str, Any], tmp_path: Path, kind: str, number: int
) -> None:
    kill_once(server, configs[kind], whole[kind], WAYS[number % 2], number, tmp_path)


@pytest.mark.prove
@pytest.mark.skipif("SUROGATE_PROVE" not in os.environ, reason="300 kills: make prove")
def test_three_hundred_kills(server: Any, configs: dict[str, Any], whole: dict[str, Any], tmp_path: Path) -> None:
    PROOF.parent.mkdir(parents=True, exist_ok=True)
    if not PROOF.exists():
        PROOF.write_text("# Kills\n\nEach line: a run killed with SIGKILL, continued, and equal bit for bit to the whole run.\n\n")
    done = {line.split(":")[0] for line in PROOF.read_text().splitlines()}
    for number in range(100):
        for kind in KINDS:
            name = f"- {kind} {number}"
            if name in done:
                continue
            place = tmp_path / f"{kind}-{number}"
            place.mkdir()
            told = kill_once(server, configs[kind], whole[kind], WAYS[number % 2], 1000 + number, place)
            with PROOF.open("a") as file:
                file.write(f"{name}: killed at {told}: equal\n")
            shutil.rmtree(place)
