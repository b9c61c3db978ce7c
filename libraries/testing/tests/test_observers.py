"""Observers that break one promise each, and what the check says of them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from surogate_model_transformers import testing as models_testing
from surogate_testing import check_observer

from surogate_core import testing
from surogate_core.config import load
from surogate_core.contracts import Decision, ObserverContext, RunInfo
from surogate_core.host import load_host
from surogate_core.plan import Plan, make_plan


class Watcher:
    """Halves the rate when the loss jumps, three times at most, and says so."""

    def __init__(self, context: ObserverContext, fault: str):
        self.log, self.fault = context.log, fault
        state: Mapping[str, Any] = {} if fault == "deaf" else context.state
        self.last, self.cuts, self.steps = state.get("last", 0.0), state.get("cuts", 0), 0

    def state(self) -> dict[str, Any]:
        cuts = {"tuple": (self.cuts,), "forgets": 0}.get(self.fault, self.cuts)
        return {"last": self.last, "cuts": cuts, "old": self.fault == "hidden" and self.steps > 200}

    def run_started(self, run: RunInfo) -> None:
        self.log({"text": "hello"} if self.fault == "kindless" else {"kind": "notice", "text": "hello"})

    def step_finished(self, run: RunInfo, record: dict[str, Any]) -> Any:
        loss, self_last = record["loss"], self.last
        self.last, self.steps = loss, self.steps + 1
        record["jump"] = {1, 2} if self.fault == "set" else loss - self_last
        if self.fault == "edits":
            record["lr"] *= 0.5
        if self.fault == "drops":
            del record["tokens"]
        if self.fault == "raises" and record["step"] == 100:
            raise RuntimeError("I do not like this step")
        if loss - self_last < 2.0 or self.cuts >= (2 if self.fault == "forgets" else 3):
            return True if self.fault == "truth" else None
        self.cuts += 1
        scale = float("nan") if self.fault == "nan" else -1.0 if self.fault == "negative" else 0.5
        self.log({"kind": "notice", "step": record["step"], "text": f"cut {self.steps if self.fault == 'counts' else self.cuts}"})
        return Decision(reason="" if self.fault == "mute" else "a jump", scale_lr=scale, stop=self.fault == "mute")


class Blind:
    def state(self) -> dict[str, Any]:
        return {}


class Misnamed(Blind):
    def step_finishes(self, run: RunInfo, record: dict[str, Any]) -> None: ...


class Narrow:
    def step_finished(self, record: dict[str, Any]) -> None: ...


OBSERVERS = {
    "kindless": "a record without a kind",
    "raises": r"step_finished\(run, record\) raises RuntimeError: I do not like this step; in a run it would be detached",
    "edits": "step_finished changed 'lr' of the record of step 1",
    "drops": "step_finished changed 'tokens' of the record of step 1",
    "set": "what step_finished added to a record is not plain JSON",
    "truth": "step_finished answers True: wanted None or a Decision",
    "nan": "decides scale_lr = nan",
    "negative": "decides scale_lr = -1.0",
    "mute": "decides to stop without a reason",
    "tuple": "the state does not survive JSON",
    "deaf": "the state is another one as soon as it is given back",
    "forgets": "the decisions after a resume are others than without it",
    "hidden": "the state after a resume is another one than without it",
    "counts": "what is said after a resume is not the same",
}


@pytest.fixture
def plan(tiny: Path, tmp_path: Path) -> Plan:
    host = load_host()
    texts = testing.write_rows(tmp_path / "texts.jsonl", [{"text": "the quick brown fox"}] * 9)
    return make_plan(load(models_testing.short_run(tiny, texts, tmp_path), host), host)


def test_a_good_one(plan: Plan, tmp_path: Path) -> None:
    check_observer(partial(Watcher, fault=""), plan, tmp_path)


@pytest.mark.parametrize("fault", OBSERVERS)
def test_observer(fault: str, plan: Plan, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=OBSERVERS[fault]):
        check_observer(partial(Watcher, fault=fault), plan, tmp_path)


@pytest.mark.parametrize(
    ("observer", "said"),
    [
        (Blind(), "Blind has no method of an observer"),
        (Misnamed(), "Misnamed.step_finishes is never called: the hook is step_finished"),
        (Narrow(), "raises TypeError.*unexpected keyword argument 'run'"),
        (None, "this configuration does not ask for the observer"),
    ],
)
def test_methods(observer: Any, said: str, plan: Plan, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=said):
        check_observer(lambda context: observer, plan, tmp_path)
