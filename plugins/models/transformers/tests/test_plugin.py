"""Conflicts that the configuration alone tells, found before torch is imported."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from surogate_model_transformers.plugin import Options, check_config


@pytest.mark.parametrize(
    ("options", "what", "how"),
    [
        ({"rope_scaling": "yarn"}, "needs max_model_len", "set max_model_len"),
        ({"rope_scaling": "yrn", "max_model_len": 9}, "wanted one of linear, dynamic, yarn", 'did you mean "yarn"'),
        ({"rope_scaling": "{x}"}, "not a JSON object", "write it like"),
    ],
)
def test_rope_scaling_that_cannot_be(options: dict[str, Any], what: str, how: str) -> None:
    config = SimpleNamespace(of=lambda kind: kind(**(options if kind is Options else {})), origins={"rope_scaling": "c.toml:3"})
    (problem,) = check_config(config)  # type: ignore[arg-type]
    assert what in problem.what
    assert problem.where == "c.toml:3, key rope_scaling"
    assert how in problem.how


@pytest.mark.parametrize(
    "options",
    [{}, {"rope_scaling": "yarn", "max_model_len": 4096}, {"rope_scaling": '{"rope_type": "yarn", "factor": 2.0}'}],
)
def test_rope_scaling_that_can(options: dict[str, Any]) -> None:
    config = SimpleNamespace(of=lambda kind: kind(**(options if kind is Options else {})), origins={"rope_scaling": "c.toml:3"})
    assert check_config(config) == []  # type: ignore[arg-type]
