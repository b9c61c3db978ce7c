"""Those who watch a run."""

from __future__ import annotations

import copy
import difflib
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from surogate_core.contracts import Decision, KeepsState, ObserverContext, RunInfo
from surogate_core.plan import Plan
from surogate_core.train.setup import bind_optimizer, build
from surogate_testing.plain import plain

HOOKS = ("run_started", "step_finished", "evaluated", "part_finished", "checkpoint_saved", "run_finished")
STEPS = 240
MIDDLE = (120, "step_finished")
"""Where another observer takes over. The hooks of a step come in the order of their names."""


def check_observer(make: Callable[[ObserverContext], Any], plan: Plan, directory: Path) -> None:
    """``make(context)`` gives the observer of one run; ``plan`` is what ``make_plan`` says of a small configuration that
    asks for it.

    Told of a made-up run of 240 steps, in which the loss falls, jumps for a while and stands still: no method raises, records keep
    their fields (more may come, of plain JSON), what it answers is None or a :class:`Decision` of finite numbers. Its state
    survives JSON; another one that gets it in mid-run decides, says and remembers the same from there on as the one that saw all
    of it. A method that is named nearly like a hook, and so is never called, is found too."""
    observer, said = _made(make, plan, {})
    assert observer is not None, "build gives None: this configuration does not ask for the observer"
    names = [name for name in dir(observer) if not name.startswith("_") and callable(getattr(observer, name))]
    for name in names:
        near = [] if name in HOOKS else difflib.get_close_matches(name, HOOKS, n=1, cutoff=0.85)
        assert not near, f"{type(observer).__name__}.{name} is never called: the hook is {near[0]}"
    assert {*names} & {*HOOKS}, f"{type(observer).__name__} has no method of an observer: {', '.join(HOOKS)}"
    run = _run(plan, directory, observer)
    answers: list[Any] = []
    for step, hook, record in _story():
        answers.append(_told(observer, run, hook, record))
        if (step, hook) == MIDDLE:
            state, answered, told = _state(observer), len(answers), len(said)
    _call(observer, "run_finished", run=run, summary={"steps": STEPS, "stopped": None})
    if state is None:
        return
    later, said_later = _made(make, plan, state)
    again = _run(plan, directory, later, resumed=MIDDLE[0])
    assert _state(later) == state, "the state is another one as soon as it is given back"
    decided = [_told(later, again, hook, record) for step, hook, record in _story() if (step, hook) > MIDDLE]
    _call(later, "run_finished", run=again, summary={"steps": STEPS, "stopped": None})
    assert decided == answers[answered:], "the decisions after a resume are others than without it"
    assert _state(later) == _state(observer), "the state after a resume is another one than without it"
    words, words_later = ([record for record in log if "step" in record] for log in (said[told:], said_later))
    assert words == words_later, f"what is said after a resume is not the same: {words_later}, without it {words}"


def _made(make: Callable[[ObserverContext], Any], plan: Plan, state: Any) -> tuple[Any, list[dict[str, Any]]]:
    said: list[dict[str, Any]] = []

    def log(record: dict[str, Any]) -> None:
        assert isinstance(record.get("kind"), str), f"a record without a kind: {record}"
        said.append(plain(record, "a record of the observer's own"))

    return make(ObserverContext(config=plan.config.core, device="cpu", plan=plan, log=log, state=state)), said


def _run(plan: Plan, directory: Path, observer: Any, resumed: int = 0) -> RunInfo:
    trainee = build(plan)
    run = RunInfo(
        config=plan.config,
        plan=plan,
        model=trainee.model,
        optimizer=bind_optimizer(plan, trainee),
        output_dir=directory,
        resumed=resumed,
        total_steps=STEPS,
        terminal=False,
        quiet=True,
    )
    _call(observer, "run_started", run=run)
    return run


def _story() -> Iterator[tuple[int, str, dict[str, Any]]]:
    """(step, hook, record)."""
    for step in range(1, STEPS + 1):
        wave = 0.02 * math.sin(7.0 * step)
        loss = 2.0 + 2.0 * math.exp(-step / 30) + wave + (3.0 if step in (90, 91, 92, 150) else 0.0)
        figures = {"loss": loss, "lr": 1e-3, "grad_norm": 1.0 + wave, "tokens": 512, "trained": 500, "epoch": step / STEPS}
        if step % 20 == 0:
            yield step, "evaluated", {"kind": "eval", "step": step, "loss": loss, "perplexity": math.exp(loss), "tokens": 64}
        times = {"seconds": 0.5, "data_seconds": 0.1, "tokens_per_s": 1024.0}
        yield step, "step_finished", {"kind": "step", "step": step, "total_steps": STEPS, **figures, **times}


def _told(observer: Any, run: RunInfo, hook: str, record: dict[str, Any]) -> Any:
    """What the observer answers to a record, as plain values."""
    if hook == "step_finished":
        for part in ("data", "forward", "backward", "optimizer"):
            torch.ones(8).add_(1)  # some observers count what operations make
            _call(observer, "part_finished", run=run, name=part)
    before = copy.deepcopy(record)
    answer = _call(observer, hook, run=run, record=record)
    for name, value in before.items():
        assert name in record and record[name] == value, f"{hook} changed {name!r} of the record of step {before['step']}"  # noqa: PT018
    plain(record, f"what {hook} added to a record")
    if answer is None:
        return None
    assert isinstance(answer, Decision), f"{hook} answers {answer!r}: wanted None or a Decision"
    assert math.isfinite(answer.scale_lr), f"{hook} decides scale_lr = {answer.scale_lr}: wanted a number of at least 0"
    assert answer.scale_lr >= 0, f"{hook} decides scale_lr = {answer.scale_lr}: wanted a number of at least 0"
    assert answer.reason or not answer.stop, f"{hook} decides to stop without a reason"
    return answer


def _call(observer: Any, hook: str, **arguments: Any) -> Any:
    """As the loop calls it: the method, if there is one, with all its arguments by name."""
    method = getattr(observer, hook, None)
    if method is None:
        return None
    try:
        return method(**arguments)
    except Exception as error:
        what = f"{hook}({', '.join(arguments)}) raises {type(error).__name__}: {error}; in a run it would be detached"
        raise AssertionError(what) from error


def _state(observer: Any) -> Any:
    """The state as a checkpoint keeps it, None where there is none."""
    if not isinstance(observer, KeepsState):
        return None
    state = dict(observer.state())
    return plain(state, "the state")
