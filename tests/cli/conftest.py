"""A fixture that runs a command in this process with a host of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from attrs import field, frozen
from click.testing import CliRunner, Result
from surogate_pipeline_packed.plugin import Options as PipelineOptions

from surogate_core.cli.main import main
from surogate_core.hookspecs import hookimpl
from surogate_core.host import Host, load_host
from surogate_core.offers import Offer, Owner, doc, ge


@frozen(kw_only=True)
class LoraOptions:
    lora_rank: int = field(default=16, validator=ge(1), metadata=doc("Rank."))


@frozen(kw_only=True)
class TextOptions:
    text_field: str = field(default="text", metadata=doc("Column."))


def stand_in(**more: Any) -> SimpleNamespace:
    """A plugin module that offers what the defaults need, and ``more`` hooks."""
    given: dict[str, list[tuple[str, type | None]]] = {
        "models": [("transformers", None)],
        "pipelines": [("packed", PipelineOptions)],
        "checkpoints": [("local", None)],
        "loops": [("standard", None)],
        "recipes": [("bf16", None)],
        "adapters": [("lora", LoraOptions)],
        "schedules": [("linear", None), ("cosine", None), ("wsd", None)],
        "optimizers": [("adamw_8bit", None)],
        "datasets": [("text", TextOptions), ("conversation", None)],
    }

    def register(kind: str) -> Any:
        return hookimpl(lambda: [Offer(name, cls, build="nowhere:build", summary=f"The {name}.") for name, cls in given[kind]])

    return SimpleNamespace(
        **{f"register_{kind}": register(kind) for kind in given}, **{name: hookimpl(f) for name, f in more.items()}
    )


@pytest.fixture
def host() -> Host:
    return load_host([("stand-in", stand_in(), Owner("surogate-stand-in", "3.1"))], discover=False)


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[[Host], None]:
    """Make the commands see this host instead of the installed plugins."""
    return lambda host: monkeypatch.setattr("surogate_core.host.load_host", lambda *_, **__: host)


@pytest.fixture
def surogate(host: Host, use: Callable[[Host], None]) -> Callable[..., Result]:
    """``surogate("validate", "c.toml")`` → click's result; ``stdout`` and ``stderr`` are apart."""
    use(host)
    return lambda *words: CliRunner().invoke(main, [str(word) for word in words])


@pytest.fixture
def with_hooks() -> Callable[..., Host]:
    """A host whose stand-in has more hooks: ``with_hooks(check_config=function)``."""
    return lambda **more: load_host([("stand-in", stand_in(**more), Owner("surogate-stand-in", "3.1"))], discover=False)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "c.toml"
    path.write_text('model = "owner/model"\nsave_steps = 7\n[[datasets]]\npath = "owner/name"\ntype = "conversation"\n')
    return path
