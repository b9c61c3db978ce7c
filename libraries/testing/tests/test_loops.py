"""The standard loop with one promise broken, and what the check says of it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from surogate_loop_standard import session
from surogate_loop_standard.observers import Observers
from surogate_loop_standard.standard import Standard
from surogate_model_transformers import testing as models_testing
from surogate_testing import check_loop

from surogate_core import testing

Patch = Callable[[pytest.MonkeyPatch], object]


def around(place: Any, name: str, change: Callable[..., Any]) -> Patch:
    """Put ``change(original, *arguments)`` in the place of a function."""

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        original = getattr(place, name)

        @functools.wraps(original)
        def call(*given: Any, **named: Any) -> Any:
            return change(original, *given, **named)

        monkeypatch.setattr(place, name, call)

    return patch


def anew(run: Any, *given: Any, **named: Any) -> Any:
    return run(*given, **{**named, "fresh": True})


def never_anew(run: Any, *given: Any, **named: Any) -> Any:
    return run(*given, **{**named, "fresh": False})


def forget_optimizer(read: Any, directory: Path, plan: Any, trainee: Any, optimizer: Any) -> None:
    zeros = {name: torch.zeros_like(tensor) for name, tensor in optimizer.state_dict().items()}
    read(directory, plan, trainee, optimizer)
    optimizer.load_state_dict(zeros)


def another_seed(write: Any, directory: Path, *rest: Any) -> None:
    with torch.random.fork_rng():
        torch.rand(int("parts" in str(directory) and "6" in directory.name))
        write(directory, *rest)


def forget_rate(progress_from: Any, state: Any) -> Any:
    return progress_from({**state, "lr_scale": 1.0})


def tell_but(silent: str) -> Callable[..., Any]:
    return lambda tell, self, hook, **given: [] if hook == silent else tell(self, hook, **given)


def stubborn(tell: Any, self: Any, hook: str, **given: Any) -> list[Any]:
    self._detached.clear()
    return tell(self, hook, **given)


def deaf(tell: Any, self: Any, hook: str, **given: Any) -> list[Any]:
    tell(self, hook, **given)
    return []


def wordless(run: Any, *given: Any, **named: Any) -> Any:
    return attrs.evolve(run(*given, **named), stopped=None)


def boastful(run: Any, *given: Any, **named: Any) -> Any:
    summary = run(*given, **named)
    return attrs.evolve(summary, steps=summary.steps + 1)


def lossless(tell: Any, self: Any, hook: str, **given: Any) -> list[Any]:
    if hook == "step_finished":
        given["record"].pop("grad_norm")
    return tell(self, hook, **given)


LOOPS: dict[str, tuple[Patch, str]] = {
    "starts over": (around(Standard, "run", anew), "the run is continued from step 0, a checkpoint has step 3"),
    "never starts over": (around(Standard, "run", never_anew), "with fresh the run does not start over"),
    "forgets the optimizer": (around(session, "read_files", forget_optimizer), "step 5: loss is .* in one piece, .* in two"),
    "forgets the rate": (around(session, "progress_from", forget_rate), "step 4: lr is 0.005 in one piece, 0.01 in two"),
    "another generator": (around(session, "write_files", another_seed), "rng.safetensors of the last checkpoint differs"),
    "deaf": (around(Observers, "tell", deaf), "step 3: rate 0.01, wanted 0.005"),
    "patient": (around(Observers, "tell", stubborn), "an observer that raises is heard 6 times"),
    "begins in silence": (around(Observers, "tell", tell_but("run_started")), "wanted run_started"),
    "ends in silence": (around(Observers, "tell", tell_but("run_finished")), "wanted run_finished"),
    "no clock": (around(Observers, "tell", tell_but("part_finished")), "part_finished is never called for 'data'"),
    "saves in silence": (around(Observers, "tell", tell_but("checkpoint_saved")), "observers are not told of the checkpoint"),
    "no norm": (around(Observers, "tell", lossless), "the record of step 1 has no 'grad_norm'"),
    "wordless": (around(Standard, "run", wordless), "Summary.stopped does not say why the run ended early"),
    "boastful": (around(Standard, "run", boastful), "Summary: 7 of 6 steps"),
}


@pytest.mark.parametrize("fault", LOOPS)
def test_loop(fault: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    patch, said = LOOPS[fault]
    patch(monkeypatch)
    texts = testing.write_rows(tmp_path / "texts.jsonl", [{"text": f"{number} quick brown foxes"} for number in range(40)])
    config = models_testing.short_run(tiny, texts, tmp_path)
    with pytest.raises(AssertionError, match=said):
        check_loop(config, tmp_path / "runs")


def test_a_run_that_cannot_be_made_says_why(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"a run in whole: .*nowhere"):
        check_loop(models_testing.short_run(tiny, tmp_path / "nowhere.jsonl", tmp_path), tmp_path / "runs")
