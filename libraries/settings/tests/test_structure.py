from __future__ import annotations

from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from surogate_settings.structure import InvalidError, describe, from_text, make_converter, show

CONVERTER = make_converter()
LIST = list[str]


@pytest.mark.parametrize(
    ("value", "kind", "wanted"),
    [
        (3, int, 3),
        (3, float, 3.0),
        (2.5, float, 2.5),
        (True, bool, True),
        ("x", str, "x"),
        (None, int | None, None),
        (4, int | None, 4),
        (["a"], LIST | None, ["a"]),
        ({"a": "b"}, dict[str, str], {"a": "b"}),
        ("a", str | list[str], "a"),
        (["a"], str | list[str], ["a"]),
        ("fp8-hybrid", Literal["fp8_hybrid", "x"], "fp8_hybrid"),
    ],
)
def test_accepts(value: Any, kind: Any, wanted: Any) -> None:
    done = CONVERTER.structure(value, kind)
    assert done == wanted
    assert type(done) is type(wanted)


@pytest.mark.parametrize(
    ("value", "kind", "wanted"),
    [
        (3.7, int, "a whole number"),
        (3.0, int, "a whole number"),
        (True, int, "a whole number"),
        ("3", int, "a whole number"),
        (None, int, "a whole number"),
        (True, float, "a number"),
        ("1", float, "a number"),
        (float("nan"), float, "a finite number"),
        (float("inf"), float, "a finite number"),
        ("false", bool, "true or false"),
        (0, bool, "true or false"),
        (3, str, "text"),
        (False, str | None, "text"),
        ("abc", list[str], "a list of texts"),
        ({"a": 1}, list[str], "a list of texts"),
        ([1], dict[str, str], "a table"),
        ("z", Literal["a", "b"], 'one of "a", "b"'),
        (True, Literal[1, 2], "one of 1, 2"),
        (3.5, int | list[int], "a whole number or a list of whole numbers"),
    ],
)
def test_refuses_without_coercing(value: Any, kind: Any, wanted: str) -> None:
    with pytest.raises(InvalidError) as caught:
        CONVERTER.structure(value, kind)
    assert caught.value.wanted == wanted


def test_names_the_place_inside_of_a_list_or_table() -> None:
    with pytest.raises(InvalidError) as caught:
        CONVERTER.structure({"a": ["x", 3]}, dict[str, list[str]])
    assert (caught.value.path, caught.value.value, caught.value.wanted) == (".a.1", 3, "text")


@pytest.mark.parametrize(
    ("text", "kind", "wanted"),
    [
        ("123", str, "123"),
        ("null", str | None, "null"),
        ("null", int | None, None),
        ("1e-4", float, 1e-4),
        ("-1", int, -1),
        ("True", bool, True),
        ("a,b", list[str], ["a", "b"]),
        ('["a", "b"]', LIST | None, ["a", "b"]),
        ("1, 2", list[int], [1, 2]),
        ('{"a": "b"}', dict[str, str], {"a": "b"}),
        ("2", Literal[1, 2], 2),
        ("3.5", int, "3.5"),
        ("yes", bool, "yes"),
    ],
)
def test_text_is_read_by_the_type_of_its_key(text: str, kind: Any, wanted: Any) -> None:
    assert from_text(text, kind) == wanted


@given(st.integers(-(10**12), 10**12), st.floats(allow_nan=False, allow_infinity=False), st.booleans())
def test_text_of_a_value_reads_back_as_the_value(whole: int, number: float, flag: bool) -> None:
    assert from_text(show(whole), int) == whole
    assert from_text(show(number), float) == number
    assert from_text(show(flag), bool) is flag


def test_types_in_words() -> None:
    assert describe(int | None) == "a whole number"
    assert describe(dict) == "a table"
    assert describe(list) == "a list"
    assert describe(Any) == "anything"
