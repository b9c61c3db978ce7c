"""For the tests of plugins: hosts without discovery, and what offers are built with.

The conformance checks of all kinds of offers are in the distribution ``surogate-testing``, and can be called from here too:

    def test_conforms():
        testing.check_optimizer(plugin.build(None, testing.context()))
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from surogate_core.config.options import CoreOptions
from surogate_core.contracts import Context, Site
from surogate_core.host import Host, load_host
from surogate_core.offers import Owner


def __getattr__(name: str) -> Any:
    """``check_*`` of ``surogate_testing``, which depends on the core and is imported when it is used."""
    if not name.startswith("check_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(importlib.import_module("surogate_testing"), name)
    except ModuleNotFoundError as error:
        raise AttributeError(f"{name} is in surogate-testing: pip install surogate-testing") from error


def host_with(*modules: Any, owner: Owner | None = None, discover: bool = False) -> Host:
    """A host with these plugin modules, and without the installed ones unless ``discover``."""
    return load_host(
        [(f"test-{number}", module, owner or Owner(f"test-{number}", "1.0")) for number, module in enumerate(modules)],
        discover=discover,
    )


def context(device: str = "cpu", **options: Any) -> Context:
    """A context with default core options, changed by ``options``."""
    return Context(config=CoreOptions(**{"model": "none", **options}), device=device)


def site(rows: int = 48, columns: int = 32, name: str = "model.layers.0.mlp.up_proj", bias: bool = False) -> Site:
    """A linear site of N = ``rows`` outputs and K = ``columns`` inputs."""
    return Site(name=name, kind="linear", shape=(rows, columns), bias=bias, layer=0)


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
