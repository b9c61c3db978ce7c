from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest
from click.testing import Result

from surogate_core.cli.run import overrides
from surogate_core.config import load
from surogate_core.errors import Interrupted, RunFailed
from surogate_core.host import Host


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ([], []),
        (["--learning-rate", "1e-4"], [("learning-rate", "1e-4")]),
        (["--learning-rate=1e-4", "a=b=c"], [("learning-rate", "1e-4"), ("a", "b=c")]),
        (["--max-steps", "-1", "--datasets.0.samples", "500"], [("max-steps", "-1"), ("datasets.0.samples", "500")]),
        (["--system", ""], [("system", "")]),
    ],
)
def test_overrides(words: list[str], wanted: list[tuple[str, str]]) -> None:
    assert overrides(words) == wanted


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["max_steps"], "'max_steps' is not understood: write --key value or key=value"),
        (["-x", "1"], "'-x' is not understood"),
        (["--lora"], "--lora has no value: write --lora VALUE"),
        (["--lora", "--quiet"], "--lora has no value"),
        (["--freh"], "did you mean --fresh?"),
    ],
)
def test_words_that_are_no_overrides(words: list[str], said: str) -> None:
    with pytest.raises(click.UsageError, match=said.replace("?", r"\?")):
        overrides(words)


@pytest.fixture
def executed(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What ``surogate_core.train.run.execute`` was called with, without training."""
    calls: list[dict[str, Any]] = []
    module = ModuleType("surogate_core.train.run")

    def execute(config: Any, host: Any, **more: Any) -> None:
        calls.append({"config": config, **more})
        if config.core.run_name == "fails":
            raise RunFailed("the loss is not finite", "step 3", "lower learning_rate")
        if config.core.run_name == "stops":
            raise Interrupted("stopped after step 3", how="continue with: surogate run c.toml")
        if config.core.run_name == "keyboard":
            raise KeyboardInterrupt
        if config.core.run_name == "breaks":
            error = KeyError("x")
            error.add_note("raised by plugin surogate-recipe-theirs 0.1 in hook check_plan")
            raise error

    module.execute = execute  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "surogate_core.train.run", module)
    return calls


def test_run_passes_flags_and_overrides(surogate: Callable[..., Result], executed: list[dict[str, Any]], config: Path) -> None:
    done = surogate(
        "run", config, "--learning-rate", "1e-4", "--quiet", "max_steps=-1", "--allow-drift", "--datasets.0.samples", "5"
    )
    assert done.exit_code == 0, done.output
    (call,) = executed
    core = call["config"].core
    assert (core.learning_rate, core.max_steps, core.datasets[0].samples, core.save_steps, core.task) == (1e-4, -1, 5, 7, "sft")
    assert (call["quiet"], call["fresh"], call["allow_drift"]) == (True, False, True)
    assert call["started"] > 0
    assert surogate("run", config, "--fresh").exit_code == 0
    assert (executed[1]["quiet"], executed[1]["fresh"], executed[1]["allow_drift"]) == (False, True, False)


def test_presets(surogate: Callable[..., Result], executed: list[dict[str, Any]], config: Path) -> None:
    refused = surogate("pt", config)
    assert refused.exit_code == 2
    assert 'task = "pt" trains on type = "text" only' in refused.stderr
    assert surogate("pt", config, "--datasets.0.type", "text").exit_code == 0
    assert surogate("sft", config, "--datasets.0.type", "text").exit_code == 0
    assert [(call["config"].core.task, call["config"].core.lora) for call in executed] == [("pt", False), ("sft", True)]


@pytest.mark.parametrize(
    ("name", "code", "lines"),
    [
        ("fails", 1, ["error: the loss is not finite", "  where: step 3", "  how: lower learning_rate"]),
        ("stops", 130, ["error: stopped after step 3", "  how: continue with: surogate run c.toml"]),
        ("keyboard", 130, ["", "interrupted"]),
        (
            "breaks",
            1,
            [
                "error: KeyError: 'x'",
                "  how: run again with --debug to see where it happened",
                "  note: raised by plugin surogate-recipe-theirs 0.1 in hook check_plan",
            ],
        ),
    ],
)
def test_exit_codes_and_lines(
    surogate: Callable[..., Result], executed: list[dict[str, Any]], config: Path, name: str, code: int, lines: list[str]
) -> None:
    done = surogate("run", config, "--run-name", name)
    assert done.exit_code == code
    assert [line for line in done.stderr.splitlines() if line] == [line for line in lines if line]
    assert done.stdout == ""


@pytest.mark.parametrize("words", [("--debug", "run", "CONFIG"), ("run", "CONFIG", "--debug"), ("run", "--debug", "CONFIG")])
def test_debug_shows_the_traceback(
    surogate: Callable[..., Result], executed: list[dict[str, Any]], config: Path, words: tuple[str, ...]
) -> None:
    done = surogate(*(config if word == "CONFIG" else word for word in words), "--run-name", "breaks")
    assert done.exit_code == 1
    assert "Traceback (most recent call last)" in done.stderr
    assert "run again with --debug" not in done.stderr


def test_a_problem_of_the_configuration(surogate: Callable[..., Result], executed: list[dict[str, Any]], config: Path) -> None:
    done = surogate("run", config, "--save-stps", "3", "--lora-rank", "0")
    assert done.exit_code == 2
    assert done.stderr.splitlines() == [
        "error: lora_rank = 0: wanted a whole number >= 1",
        "  where: command line, key lora_rank",
        "  how: set lora_rank to a whole number >= 1, for example 16 (the default)",
        "error: there is no key save_stps",
        "  where: command line, key save_stps",
        "  how: did you mean save_steps (surogate)?",
        "2 problems",
    ]
    assert executed == []


def test_the_resume_command_gives_the_preset_and_the_overrides_again(host: Host, config: Path) -> None:
    from surogate_core.train.run import resume_command

    loaded = load(config, host, [("system", "a b"), ("resume_from_checkpoint", "false")], {"task": "sft"})
    assert resume_command(loaded) == f"surogate sft {config} --system 'a b'"
    assert resume_command(load(config, host)) == f"surogate run {config}"
