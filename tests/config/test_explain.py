from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from surogate_core.config import load
from surogate_core.config.explain import rows
from surogate_core.errors import ConfigError
from surogate_core.host import Host, load_host

MINIMAL: dict[str, Any] = {"model": "owner/model", "datasets": [{"path": "owner/name", "type": "conversation"}]}


def test_explain_shows_value_origin_owner_and_documentation(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hush")
    config = load({**MINIMAL, "run_name": "${HF_TOKEN}", "fp8_window": 4}, host, [("lora-rank", "8")])
    (row,) = rows(host, config, "lora-rank")
    assert (row.key, row.value, row.origin, row.owner) == ("lora_rank", "8", "command line", "surogate-stand-in 3.1")
    assert (row.wanted, row.doc) == ("a whole number >= 1", "Rank.")
    (row,) = rows(host, config, "run_name")
    assert row.value == '"${HF_TOKEN}"'
    (row,) = rows(host, config, "fp8_window")  # not in force, still explained
    assert (row.value, row.origin) == ("4", "mapping")
    assert [row.key for row in rows(host, config, "messages_field")] == ["datasets.0.messages_field"]
    assert len(rows(host, config, "datasets.0")) == 10
    assert len({row.key for row in rows(host, config)}) == len(rows(host, config))


def test_explain_without_a_configuration(host: Host) -> None:
    (row,) = rows(host, None, "save_steps")
    assert (row.value, row.origin, row.owner) == ("50", "", "surogate")
    assert rows(host, None, "model")[0].value == "required"
    assert rows(host, None, "qlora_fp4")[0].doc == "Not available in this version."
    with pytest.raises(ConfigError, match='did you mean "save_steps"'):
        rows(host, None, "save_step")


EXAMPLES = sorted((Path(__file__).resolve().parents[2] / "examples").rglob("*.toml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_resolved_key_of_every_example_has_an_origin_and_an_owner(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Installed plugins; a key that the file sets comes from its line, found here by reading the file anew."""
    host = load_host()
    monkeypatch.chdir(tmp_path)
    for name in re.findall(r'^model = "(.+)"$', path.read_text(), re.MULTILINE):
        (tmp_path / name).mkdir(parents=True)
    for name in re.findall(r'^path = "(.+)"$', path.read_text(), re.MULTILINE):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}\n")
    config = load(path, host)
    owners = {str(plugin.owner) for plugin in host.plugins} | {"surogate"}
    found = {row.key: row for row in rows(host, config)}
    assert set(config.resolved()) <= set(found) | {"datasets", "validation_datasets"}
    for row in found.values():
        assert row.origin, row.key
        assert row.owner in owners, row.key
    written = path.read_text().splitlines()
    for number, line in enumerate(written, 1):
        key = line.partition("=")[0].strip()
        if "=" in line and not line.startswith(("#", "[")) and "[[" not in "".join(written[:number]):
            assert found[key].origin.endswith(f":{number}"), key
    assert {row.origin for row in found.values()} > {"default"}
