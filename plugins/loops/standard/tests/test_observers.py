from __future__ import annotations

from surogate_loop_standard.observers import Observers

from surogate_core import testing
from surogate_core.hookspecs import hookimpl


def test_an_observer_that_raises_is_reported_once_and_detached() -> None:
    calls: list[int] = []

    def step_finished(record: dict[str, int]) -> None:
        calls.append(record["step"])
        raise ValueError("too bad")

    seen: list[str] = []
    module = type("Module", (), {"step_finished": staticmethod(hookimpl(step_finished))})
    observers = Observers(testing.host_with(module), seen.append)
    for step in (1, 2):
        observers.tell("step_finished", run=None, record={"step": step})
    assert calls == [1]
    assert seen == ["observer test-0 1.0 raised ValueError in step_finished and is detached: too bad"]
