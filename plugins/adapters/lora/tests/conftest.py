from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import Qwen3Config, Qwen3ForCausalLM


@pytest.fixture(scope="session")
def stories(shared_data: Path) -> Path:
    return shared_data / "models" / "stories260K"


@pytest.fixture(scope="session")
def qwen(tmp_path_factory: pytest.TempPathFactory, stories: Path) -> Path:
    """A small random Qwen3 with the tokenizer of stories260K."""
    directory = tmp_path_factory.mktemp("qwen3")
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=128,
    )
    Qwen3ForCausalLM(config).save_pretrained(directory)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (directory / name).write_bytes((stories / name).read_bytes())
    assert json.loads((directory / "config.json").read_text())["model_type"] == "qwen3"
    return directory


class Fresh(TorchDispatchMode):
    """``shapes`` of the floating tensors that operations allocated inside of it; views and what is written in place are none."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {one.untyped_storage()._cdata for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)}
        out = func(*args, **(kwargs or {}))
        for one in tree_leaves(out):
            if isinstance(one, torch.Tensor) and one.is_floating_point() and one.untyped_storage()._cdata not in given:
                self.shapes.add(tuple(one.shape))
        return out


@pytest.fixture
def allocated() -> Callable[[Callable[[], torch.Tensor]], set[tuple[int, ...]]]:
    """Shapes that are allocated in the forward pass of a function and the backward pass of its sum of squares."""

    def shapes(forward: Callable[[], torch.Tensor]) -> set[tuple[int, ...]]:
        with Fresh() as fresh:
            forward().square().sum().backward()
        return fresh.shapes

    return shapes
