from __future__ import annotations

import io
import sys

import pytest

from surogate_core.cli import output
from surogate_core.errors import Problem


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("environment", "styled"), [({}, True), ({"NO_COLOR": "1"}, False), ({"NO_COLOR": ""}, True), ({"TERM": "dumb"}, False)]
)
def test_colours_on_a_terminal(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], styled: bool) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert output.colour(Terminal()) is styled
    assert output.colour(io.StringIO()) is False
    monkeypatch.setattr(sys, "stderr", stream := Terminal())
    output.problems([Problem("what")])
    assert ("\x1b[" in stream.getvalue()) is styled


def test_problems_have_three_lines_each(capsys: pytest.CaptureFixture[str]) -> None:
    output.problems([Problem("a", "b", "c"), Problem("d")])
    assert capsys.readouterr() == ("", "error: a\n  where: b\n  how: c\nerror: d\n2 problems\n")


def test_a_table_is_aligned_when_piped(capsys: pytest.CaptureFixture[str]) -> None:
    output.table(("key", "value"), [("a", "1"), ("long", "22")])
    assert capsys.readouterr().out == "key   value\na     1\nlong  22\n"
    output.table(("key", "value"), [])
    assert capsys.readouterr().out == "key  value\n"


def test_a_table_on_a_terminal_has_the_same_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr(sys, "stdout", stream := Terminal())
    output.table(("key", "value"), [("[bold]a", "1")])
    assert [line.split() for line in stream.getvalue().splitlines()][1] == ["[bold]a", "1"]


def test_quiet_leaves_notes_out(capsys: pytest.CaptureFixture[str]) -> None:
    output.note("a")
    output.note("b", quiet=True)
    assert capsys.readouterr().err == "a\n"
