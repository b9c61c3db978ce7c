from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from surogate_loop_standard.signals import StopRequest

CHILD = """
import signal, sys, time
from pathlib import Path
from surogate_loop_standard.signals import StopRequest
signal.signal(signal.SIGINT, signal.default_int_handler)
before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
with StopRequest(lambda text: print(text, flush=True), Path(".")) as stop:
    try:
        print("ready", flush=True)
        for step in range(400):
            time.sleep(0.05)
            if stop.requested and sys.argv[1] == "polite":
                break
    except KeyboardInterrupt:
        print("aborted", signal.getsignal(signal.SIGTERM) == signal.SIG_DFL, flush=True)
print(stop.requested, (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before, flush=True)
"""


def child(kind: str) -> tuple[subprocess.Popen[str], Callable[[], str]]:
    process = subprocess.Popen([sys.executable, "-c", CHILD, kind], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    stdout = process.stdout
    assert stdout.readline() == "ready\n"
    return process, lambda: stdout.readline().strip()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_asks_and_says_so(number: signal.Signals) -> None:
    process, line = child("polite")
    process.send_signal(number)
    assert line() == f"{number.name}: stopping after this step; once more aborts"
    assert line() == f"{number.name} True"
    process.communicate()
    assert process.returncode == 0


@pytest.mark.parametrize(("first", "second"), [(signal.SIGINT, signal.SIGINT), (signal.SIGTERM, signal.SIGINT)])
def test_the_second_aborts_at_once(first: signal.Signals, second: signal.Signals) -> None:
    process, line = child("deaf")
    process.send_signal(first)
    assert "once more aborts" in line()
    process.send_signal(second)
    assert line() == "aborted True"
    assert line() == f"{first.name} True"
    process.communicate()


def test_an_ignored_signal_stays_ignored(tmp_path: Path) -> None:
    previous = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with StopRequest(print, tmp_path) as stop:
            signal.raise_signal(signal.SIGTERM)
            assert stop.requested is None
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, previous)


def test_a_stream_in_the_middle_of_a_write_does_not_break_the_handler(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def say(text: str) -> None:
        raise RuntimeError("reentrant call inside <_io.BufferedWriter name='<stderr>'>")

    with StopRequest(say, tmp_path) as stop:
        signal.raise_signal(signal.SIGTERM)
    assert stop.requested == "SIGTERM"
    assert capfd.readouterr().err == "SIGTERM: stopping after this step; once more aborts\n"


def test_outside_of_the_main_thread_nothing_is_installed(tmp_path: Path) -> None:
    before, during = signal.getsignal(signal.SIGTERM), []

    def work() -> None:
        with StopRequest(print, tmp_path) as stop:
            during.append((signal.getsignal(signal.SIGTERM), stop.requested))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert during == [(before, None)]


def test_the_trigger_file_asks_once(tmp_path: Path) -> None:
    stop = StopRequest(print, tmp_path)
    assert not stop.save_now()
    (tmp_path / "SAVE").touch()
    assert stop.save_now()
    assert not stop.save_now()
    assert list(tmp_path.iterdir()) == []
