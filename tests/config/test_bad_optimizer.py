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
        ("offload_grads", True, "offload_grads = true needs gradients that are sharded"),
        ("offload_quants", True, "offload_quants = true needs quantised weights that are kept"),
        ("persistent_quants", True, "persistent_quants = true needs weights that are sharded"),
        ("zero_level", 0, "wanted a whole number >= 1 and <= 3"),
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


@pytest.mark.parametrize(
    ("given", "key", "needed"),
    [
        ({"offload_grads": True, "zero_level": 1}, "offload_grads", "shard_gradients = true or zero_level = 2"),
        ({"persistent_quants": True, "shard_gradients": True}, "persistent_quants", "shard_weights = true or zero_level = 3"),
        ({"persistent_quants": True, "zero_level": 2}, "persistent_quants", "shard_weights = true or zero_level = 3"),
        ({"offload_quants": True, "zero_level": 3}, "offload_quants", "persistent_quants = true"),
        ({"offload_grads": True, "zero_level": 2, "optimizer": "adamw"}, "offload_grads", 'optimizer = "adamw_8bit"'),
        ({"offload_grads": True, "zero_level": 2, "optimizer": "normuon"}, "offload_grads", 'optimizer = "adamw_8bit"'),
        ({"offload_optimizer": True, "optimizer": "normuon"}, "offload_optimizer", 'optimizer = "adamw_8bit"'),
        ({"offload_master": True, "optimizer": "adamw"}, "offload_master", 'optimizer = "adamw_8bit"'),
        ({"use_zero_copy": True, "optimizer": "adamw"}, "use_zero_copy", 'optimizer = "adamw_8bit"'),
        ({"use_write_combined": True, "optimizer": "normuon"}, "use_write_combined", 'optimizer = "adamw_8bit"'),
    ],
    ids=str,
)
def test_what_is_offloaded_names_what_it_needs(given: dict[str, Any], key: str, needed: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load({**MINIMAL, **given}, load_host())
    (problem,) = caught.value.problems
    assert problem.what.startswith(f"{key} = true")
    assert problem.where == f"mapping, key {key}"
    assert problem.how == f"set {needed}, or {key} = false"


@pytest.mark.parametrize(
    "given",
    [
        {"offload_grads": True, "zero_level": 2},
        {"offload_grads": True, "shard_gradients": True},
        {"offload_grads": True, "shard_weights": True},
        {"persistent_quants": True, "shard_weights": True, "zero_level": 1},
        {"offload_quants": True, "persistent_quants": True, "zero_level": 3},
    ],
    ids=str,
)
def test_and_is_accepted_with_it(given: dict[str, Any]) -> None:
    assert load({**MINIMAL, **given}, load_host()).resolved().items() >= given.items()
