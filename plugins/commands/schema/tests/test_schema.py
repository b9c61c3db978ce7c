from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from surogate_command_schema.command import schema as command
from surogate_command_schema.schema import json_schema, markdown

from surogate_core.config import load
from surogate_core.config.catalogue import catalogue
from surogate_core.config.known import NOT_BUILT
from surogate_core.errors import ConfigError
from surogate_core.host import Host, load_host

ROOT = Path(__file__).resolve().parents[4]
CHAT = {"path": "owner/name", "type": "conversation"}
MINIMAL: dict[str, Any] = {"model": "owner/model", "datasets": [CHAT]}
TYPES: dict[str, Any] = {
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "string": str,
    "array": list,
    "object": dict,
    "null": type(None),
}


@pytest.fixture(scope="module")
def host() -> Host:
    return load_host()


def valid(value: Any, schema: dict[str, Any]) -> bool:
    """A reader of the part of JSON Schema that ours uses (draft 2020-12, sections 6.1 to 6.5, 10.2 and 10.3)."""
    known = {
        "description",
        "title",
        "default",
        "$schema",
        "type",
        "enum",
        "const",
        "anyOf",
        "oneOf",
        "items",
        "minItems",
        "properties",
    }
    known |= {"required", "additionalProperties", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}
    assert set(schema) <= known, set(schema) - known
    if "type" in schema:
        right = isinstance(value, TYPES[schema["type"]])
        if not right or (isinstance(value, bool) and schema["type"] in ("integer", "number")):
            return False
    if "const" in schema and (value != schema["const"] or type(value) is not type(schema["const"])):
        return False
    if "enum" in schema and value not in schema["enum"]:
        return False
    if "anyOf" in schema and not any(valid(value, part) for part in schema["anyOf"]):
        return False
    if "oneOf" in schema and sum(valid(value, part) for part in schema["oneOf"]) != 1:
        return False
    bounds = {"minimum": float.__ge__, "maximum": float.__le__, "exclusiveMinimum": float.__gt__, "exclusiveMaximum": float.__lt__}
    for name, holds in bounds.items():
        if name in schema and isinstance(value, int | float) and not holds(float(value), float(schema[name])):
            return False
    if isinstance(value, list):
        return len(value) >= schema.get("minItems", 0) and all(valid(item, schema.get("items", {})) for item in value)
    if isinstance(value, dict):
        properties, more = schema.get("properties", {}), schema.get("additionalProperties", {})
        if not set(schema.get("required", ())) <= set(value):
            return False
        return all(valid(v, properties[k]) if k in properties else (more is not False and valid(v, more)) for k, v in value.items())
    return True


@pytest.mark.parametrize(
    "change",
    [
        {},
        {
            "learning_rate": 1,
            "max_steps": -1,
            "lora_target_modules": ["q"],
            "report_to": ["jsonl"],
            "log_file": "l.jsonl",
            "run_name": None,
        },
        {"learning_rate": "1"},
        {"learning_rate": 0},
        {"warmup_ratio": 1.5},
        {"save_steps": 0},
        {"save_steps": True},
        {"samples": 3},
        {"recipe": "fp8_test"},
        {"recipe": "theirs"},
        {"report_to": ["theirs"]},
        {"truncation_strategy": "middle"},
        {"truncation_strategy": "left"},
        {"gpus": 1},
        {"gpus": 2},
        {"distributed": {"num_nodes": 1}},
        {"distributed": {"num_nodes": 2}},
        {"dataloader_num_workers": -1},
        {"datasets": []},
        {"datasets": [{"path": "a/b", "type": "text", "text_field": "t"}]},
        {"datasets": [{"path": "a/b", "type": "text", "messages_field": "t"}]},
        {"datasets": [{"path": "a/b", "type": "instruction", "instruction_field": "q"}]},
        {"datasets": [{"path": "a/b", "type": "text", "samples": 0}]},
        {"datasets": [{"path": "a/b"}]},
    ],
)
def test_schema_and_loader_agree(host: Host, change: dict[str, Any]) -> None:
    source = {**MINIMAL, **change}
    try:
        load(source, host)
    except ConfigError:
        accepted = False
    else:
        accepted = True
    assert valid(source, json_schema(host)) is accepted


def test_schema_has_every_key_with_its_documentation(host: Host) -> None:
    schema = json_schema(host)
    assert json.loads(json.dumps(schema)) == schema
    assert schema["$schema"].endswith("2020-12/schema")
    assert schema["required"] == ["model"]
    for key in catalogue(host).keys.values():
        assert key.doc in schema["properties"][key.name]["description"]
    assert schema["properties"]["lora_rank"] == {
        "description": f"Rank of the update of each adapted layer. ({host.offer('adapters', 'lora').owner})",
        "type": "integer",
        "default": 16,
        "minimum": 1,
    }
    assert {path.partition(".")[0] for path in NOT_BUILT} <= set(schema["properties"])


def section(page: str, title: str) -> str:
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    assert found, f"no section {title}"
    return found[1]


@pytest.mark.parametrize(
    "title", ["Core", "Every `[[datasets]]` and `[[validation_datasets]]` table", "Not available in this version"]
)
def test_the_options_page_is_current_for_the_keys_of_the_core(title: str) -> None:
    """When this fails: `surogate schema --markdown --output docs/options.md`, with all plugins of the repository installed."""
    page = (ROOT / "docs" / "options.md").read_text()
    assert section(page, title) == section(markdown(load_host(discover=False)), title)


def test_the_page_has_every_key_of_every_offer(host: Host) -> None:
    page = markdown(host)
    known = catalogue(host)
    for key in (*known.keys.values(), *known.base.values(), *(k for own in known.formats.values() for k in own.values())):
        assert re.search(rf"^\| `{key.name}` \| [^|]+ \| [^|]+ \| {str(key.owner).split()[0]} \| ", page, re.MULTILINE), key.name


def test_the_command_prints_and_writes(tmp_path: Path) -> None:
    printed = CliRunner().invoke(command, [])
    assert json.loads(printed.stdout)["properties"]["lora_rank"]["default"] == 16
    assert CliRunner().invoke(command, ["--output", str(tmp_path / "s.json")]).stdout == ""
    assert (tmp_path / "s.json").read_text() == printed.stdout
    page = CliRunner().invoke(command, ["--markdown"]).stdout
    assert "| `lora_rank` | a whole number >= 1 | `16` | surogate-adapter-lora | " in page
