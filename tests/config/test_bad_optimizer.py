"""Options of an optimizer, a schedule and of offloading that cannot be meant: each is an error with its key and a way out."""

from __future__ import annotations

from typing import Any

import pytest

from surogate_core.config import load
from surogate_core.errors import ConfigError
from surogate_core.host import load_host

MINIMAL = {"model": "owner/model", "datasets": [{"path": "owner/rows", "type": "text"}]}


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("learning_rate", -1e-4, "wanted a number > 0"),
        ("learning_rate", 0, "wanted a number > 0"),
        ("weight_decay", -0.1, "wanted a number >= 0"),
        ("max_grad_norm", -1.0, "wanted a number >= 0"),
        ("final_lr_fraction", -0.5, "wanted a number >= 0 and <= 1"),
        ("warmup_ratio", -0.1, "wanted a number >= 0 and <= 1"),
        ("warmup_steps", -1, "wanted a whole number >= 0"),
        ("cooldown_steps", -1, "wanted a whole number >= 0"),
        ("adamw_beta1", 1.0, "wanted a number >= 0 and <= 0.999999"),
        ("adamw_beta1", -0.1, "wanted a number >= 0"),
        ("adamw_beta2", 1.0, "wanted a number >= 0 and <= 0.999999"),
        ("adamw_epsilon", 0.0, "wanted a number > 0"),
        ("normuon_momentum", 1.0, "wanted a number >= 0 and <= 0.999999"),
        ("normuon_beta2", 1.0, "wanted a number >= 0 and <= 0.999999"),
        ("offload_grads", True, "offload_grads = true is not available in this version"),
        ("offload_quants", True, "offload_quants = true is not available in this version"),
        ("persistent_quants", True, "persistent_quants = true is not available in this version"),
    ],
)
def test_one_error_names_the_key_the_place_and_the_way_out(key: str, value: Any, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load({**MINIMAL, key: value}, load_host())
    (problem,) = caught.value.problems
    assert problem.what.startswith(f"{key} = ")
    assert said in problem.what
    assert problem.where == f"mapping, key {key}"
    assert key in problem.how


def test_a_warmup_longer_than_the_run_names_both() -> None:
    with pytest.raises(ConfigError) as caught:
        load({**MINIMAL, "max_steps": 10, "warmup_steps": 11}, load_host())
    (problem,) = caught.value.problems
    assert problem.what == "warmup (11 steps) and cooldown_steps (0) are longer than max_steps (10)"
    assert "lower warmup_steps" in problem.how
