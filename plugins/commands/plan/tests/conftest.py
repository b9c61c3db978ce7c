from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from surogate_model_transformers.testing import tiny_model

from surogate_core.config import load
from surogate_core.host import load_host
from surogate_core.plan import Plan, make_plan


@pytest.fixture(scope="session")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen3 with seven layers, so that it is rehearsed with fewer."""
    return tiny_model(tmp_path_factory.mktemp("deep"), num_hidden_layers=7, hidden_size=64, intermediate_size=96)


@pytest.fixture
def plan_of(deep: Path) -> Callable[..., Plan]:
    def make(device: str | None = None, **changes: Any) -> Plan:
        base = {"model": str(deep), "lora": True, "sequence_len": 64, "optimizer": "adamw", "gradient_accumulation_steps": 1}
        host = load_host()
        return make_plan(load({**base, **changes}, host, need_data=False), host, device)

    return make
