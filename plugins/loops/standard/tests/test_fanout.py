from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from surogate_loop_standard.fanout import Fanout

from surogate_core.contracts import Logger
from surogate_core.offers import Offer, Owner


class Listener:
    def __init__(self, fails_at: int = 0, close_fails: bool = False):
        self.records: list[Mapping[str, Any]] = []
        self.threads: set[threading.Thread] = set()
        self.fails_at, self.close_fails, self.closed = fails_at, close_fails, 0

    def log(self, record: Mapping[str, Any]) -> None:
        assert isinstance(record, dict)
        self.threads.add(threading.current_thread())
        self.records.append(dict(record))
        record["mine"] = True
        if self.fails_at and record["step"] == self.fails_at:
            raise KeyError("lost")

    def close(self) -> None:
        self.threads.add(threading.current_thread())
        self.closed += 1
        if self.close_fails:
            raise OSError("gone")


class Stuck(Listener):
    """Stays in its first record until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.entered, self.go = threading.Event(), threading.Event()

    def log(self, record: Mapping[str, Any]) -> None:
        super().log(record)
        self.entered.set()
        assert self.go.wait(60)


class Named(Listener):
    def __init__(self, state: Callable[[], Mapping[str, Any]]):
        super().__init__()
        self.state = state


def offer(name: str) -> Offer:
    return Offer(name, None, build="", owner=Owner(f"surogate-logger-{name}", "0.3"))


def fan(notices: list[str], *, waiting: int = 100, patience: float = 60.0, **loggers: Logger) -> Fanout:
    made = [(offer(name), logger) for name, logger in loggers.items()]
    return Fanout(made, notices.append, waiting=waiting, patience=patience)


def steps(count: int) -> list[dict[str, Any]]:
    return [{"kind": "step", "step": step} for step in range(1, count + 1)]


def test_a_logger_that_raises_is_named_once_and_detached() -> None:
    notices: list[str] = []
    good, bad, last = Listener(), Listener(fails_at=2), Listener(close_fails=True)
    fanout = fan(notices, good=good, bad=bad, last=last)
    for record in steps(4):
        fanout.log(record)
        fanout.drain()
    assert [len(one.records) for one in (good, bad, last)] == [4, 2, 4]
    assert good.records == last.records == steps(4), "no logger sees what another one changed"
    assert notices == ["surogate-logger-bad 0.3: Listener raised KeyError in log and gets no more records: 'lost'"]
    assert [one.closed for one in (good, bad, last)] == [0, 1, 0]
    fanout.close()
    fanout.close()
    assert [one.closed for one in (good, bad, last)] == [1, 1, 1]
    assert notices[1:] == ["surogate-logger-last 0.3: Listener raised OSError in close: gone"]


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()])
def test_a_logger_cannot_end_the_program(error: BaseException) -> None:
    class Leaves(Listener):
        def log(self, record: Mapping[str, Any]) -> None:
            raise error

    notices: list[str] = []
    other = Listener()
    fanout = fan(notices, leaves=Leaves(), other=other)
    for record in steps(2):
        fanout.log(record)
    fanout.close()
    assert len(notices) == 1
    assert type(error).__name__ in notices[0]
    assert other.records == steps(2)


def test_one_thread_calls_a_logger_and_it_is_not_the_one_that_trains() -> None:
    one, two = Listener(), Listener()
    fanout = fan([], one=one, two=two)
    for record in steps(50):
        fanout.log(record)
    fanout.close()
    assert len(one.threads) == len(two.threads) == 1
    assert len({threading.main_thread()} | one.threads | two.threads) == 3
    assert not any(thread.is_alive() for thread in one.threads | two.threads)


def test_a_slow_logger_holds_up_neither_the_run_nor_the_others_and_gets_all_in_the_end() -> None:
    notices: list[str] = []
    slow, fast = Stuck(), Listener()
    fanout = fan(notices, slow=slow, fast=fast)
    for record in steps(50):
        fanout.log(record)  # returns although nobody lets the slow one go
    assert slow.entered.wait(60)
    assert len(slow.records) == 1
    slow.go.set()
    fanout.close()
    assert slow.records == fast.records == steps(50)
    assert (slow.closed, fast.closed, notices) == (1, 1, [])


def test_a_logger_that_falls_behind_is_named_once_and_the_memory_is_bounded() -> None:
    notices: list[str] = []
    slow, fast = Stuck(), Listener()
    fanout = fan(notices, waiting=10, slow=slow, fast=fast)
    fanout.log(steps(1)[0])
    assert slow.entered.wait(60)
    for record in steps(60)[1:]:
        fanout.log(record)
        if record["step"] % 5 == 0:
            while len(fast.records) < record["step"]:
                pass
    assert notices == ["surogate-logger-slow 0.3: Stuck is 10 records behind; it does not get those that come meanwhile"]
    slow.go.set()
    fanout.drain()
    fanout.log({"kind": "end", "step": 60})
    fanout.close()
    assert slow.records == [*steps(11), {"kind": "end", "step": 60}], "what it could take, and what comes when it has caught up"
    assert len(fast.records) == 61
    assert len(notices) == 1


def test_a_logger_that_does_not_finish_is_left_and_named_once() -> None:
    notices: list[str] = []
    stuck, good = Stuck(), Listener()
    fanout = fan(notices, patience=0.05, stuck=stuck, good=good)
    for record in steps(4):
        fanout.log(record)
    assert stuck.entered.wait(60)
    fanout.drain()
    fanout.close()
    assert notices == ["surogate-logger-stuck 0.3: Stuck has not finished after 0.05 s; 4 records are missing in it"]
    (thread,) = stuck.threads
    assert thread.daemon, "the end of the program does not wait for it"
    stuck.go.set()
    thread.join(60)


def test_draining_waits_for_what_was_sent() -> None:
    slow = Stuck()
    fanout = fan([], slow=slow)
    for record in steps(20):
        fanout.log(record)
    threading.Timer(0.05, slow.go.set).start()
    fanout.drain()
    assert slow.records == steps(20)
    assert slow.closed == 0
    fanout.close()


def test_a_logger_without_a_record_is_closed_too() -> None:
    idle = Listener()
    fanout = fan([], idle=idle)
    fanout.drain()
    fanout.close()
    assert idle.closed == 1


def test_states_are_asked_for_by_name_and_one_that_fails_is_named() -> None:
    def fails() -> dict[str, Any]:
        raise RuntimeError("no id")

    notices: list[str] = []
    fanout = fan(notices, plain=Listener(), one=Named(lambda: {"run_id": "abc"}), two=Named(fails))
    assert fanout.states() == {"one": {"run_id": "abc"}}
    assert notices == ["surogate-logger-two 0.3: Named raised RuntimeError in state: no id"]
    fanout.close()
