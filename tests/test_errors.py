"""The tree of errors, their exit codes and their three lines."""

from __future__ import annotations

import pickle

import pytest

from surogate_core import errors
from surogate_core.errors import DataError, Problem, SurogateError


@pytest.mark.parametrize(
    "kind", [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, SurogateError)]
)
def test_exit_codes_follow_the_tree(kind: type[SurogateError]) -> None:
    wanted = 2 if issubclass(kind, errors.Refused) else 130 if issubclass(kind, errors.Interrupted) else 1
    assert kind.exit_code == wanted
    assert kind.__name__ in (errors.__doc__ or "")


def test_what_where_and_how_are_one_line_each() -> None:
    error = SurogateError([Problem("a is wrong", "file:3", "write b"), Problem("c is wrong")])
    assert str(error).splitlines() == ["a is wrong", "  where: file:3", "  how: write b", "c is wrong"]


def test_an_error_survives_the_way_from_a_worker_process() -> None:
    error = pickle.loads(pickle.dumps(DataError("what", "where", "how")))
    assert type(error) is DataError
    assert error.problems == (Problem("what", "where", "how"),)
