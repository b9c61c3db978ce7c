from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from click.testing import Result

from surogate_core.host import Host, load_host
from surogate_core.offers import Owner


def test_validate_says_what_the_run_would_be(surogate: Callable[..., Result], config: Path) -> None:
    done = surogate("validate", config, "--lora-rank", "8")
    assert done.exit_code == 0, done.output
    assert done.stdout == f'{config}: valid; task = "sft" (derived: not all data sets are text): bf16, lora, adamw_8bit\n'
    assert done.stderr == ""


def test_validate_prints_notices_beside_the_result(surogate: Callable[..., Result], config: Path) -> None:
    done = surogate("validate", config, "lora=false", "lora_rank=8")
    assert done.exit_code == 0
    assert done.stderr == 'notice: lora_rank has no effect: it belongs to adapter = "lora" (command line)\n'


def test_plugins_lists_offers_broken_plugins_and_collisions(surogate: Callable[..., Result], use: Callable[[Host], None]) -> None:
    done = surogate("plugins")
    assert done.exit_code == 0
    rows = [line.split(maxsplit=4) for line in done.stdout.splitlines()]
    assert rows[0] == ["distribution", "version", "kind", "offer", "summary"]
    assert ["surogate-stand-in", "3.1", "adapters", "lora", "The lora."] in rows
    broken: Any = SimpleNamespace(register_recipes=None)
    broken.register_recipies = __import__("surogate_core").hookimpl(lambda: [])
    use(load_host([("theirs", broken, Owner("surogate-theirs", "0.2"))], discover=False))
    done = surogate("plugins")
    assert done.exit_code == 0
    assert "broken: surogate-theirs 0.2 (theirs): PluginError: unknown hook 'register_recipies'" in done.stdout


def test_validate_needs_data(surogate: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('model = "owner/model"\n')
    done = surogate("validate", tmp_path / "c.toml")
    assert done.exit_code == 2
    assert "there are no datasets" in done.stderr
