"""Loading as a whole: values, origins, the task, what is in force."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import pytest
from attrs import field, frozen

from surogate_core.config import load
from surogate_core.config.options import CoreOptions
from surogate_core.errors import ConfigError, PluginError, Problem
from surogate_core.hookspecs import hookimpl
from surogate_core.host import Host, load_host
from surogate_core.offers import Offer, Owner, doc

TEXT = {"path": "owner/name", "type": "text"}
CHAT = {"path": "owner/name", "type": "conversation"}
MINIMAL = {"model": "owner/model", "datasets": [CHAT]}
TOML = """model = "owner/model"
learning-rate = 1e-4
lora_target_modules = ["q_proj", "v_proj"]
system = "${SYSTEM_TEXT}"
[[datasets]]
path = "owner/name"
type = "conversation"
samples = 3
"""
YAML = """model: owner/model
learning-rate: 1e-4
lora_target_modules: [q_proj, v_proj]
system: "${SYSTEM_TEXT}"
datasets:
  - path: owner/name
    type: conversation
    samples: 3
"""


def refused(host: Host, source: Any, overrides: Any = (), **more: Any) -> list[Problem]:
    with pytest.raises(ConfigError) as caught:
        load(source, host, overrides, **more)
    return list(caught.value.problems)


def write(tmp_path: Path, name: str, text: str) -> Path:
    (tmp_path / name).write_text(text)
    return tmp_path / name


def test_defaults_are_those_of_the_classes(host: Host, options: SimpleNamespace) -> None:
    config = load(MINIMAL, host)
    wanted = attrs.evolve(CoreOptions(model="owner/model"), task="sft", datasets=config.core.datasets)
    assert config.core == wanted
    assert config.of(options.lora) == options.lora()
    assert config.of(CoreOptions) is config.core
    assert config.path is None
    assert config.origins["save_steps"] == "default"
    assert config.origins["model"] == "mapping"


def test_toml_and_yaml_say_the_same(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: SimpleNamespace) -> None:
    monkeypatch.setenv("SYSTEM_TEXT", "123")
    toml = load(write(tmp_path, "c.toml", TOML), host)
    yaml = load(write(tmp_path, "c.yaml", YAML), host)
    assert toml.core == yaml.core
    assert toml.resolved() == yaml.resolved()
    assert toml.core.learning_rate == 1e-4
    assert toml.of(options.pipeline).system == "123"  # a text key keeps text
    assert toml.of(options.lora).lora_target_modules == ["q_proj", "v_proj"]
    assert toml.core.datasets is not None
    assert toml.core.datasets[0].samples == 3
    assert toml.core.datasets[0].format_options == options.conversation()


def test_origins_and_owners(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYSTEM_TEXT", "x")
    config = load(write(tmp_path, "c.toml", TOML), host, [("datasets.0.samples", "500"), ("save-steps", "7")])
    wanted = {
        "model": "c.toml:1",
        "learning_rate": "c.toml:2",
        "lora_target_modules": "c.toml:3",
        "system": "environment SYSTEM_TEXT at c.toml:4",
        "datasets.0.type": "c.toml:7",
        "datasets.0.samples": "command line",
        "datasets.0.split": "default",
        "save_steps": "command line",
        "task": "derived: not all data sets are text",
    }
    assert {key: config.origins[key] for key in wanted} == wanted
    assert config.owners["save_steps"] == config.owners["datasets.0.path"] == "surogate"
    assert config.owners["lora_rank"] == config.owners["datasets.0.messages_field"] == Owner("surogate-stand-in", "3.1")
    assert config.core.datasets is not None
    assert (config.core.datasets[0].samples, config.core.save_steps) == (500, 7)


def test_origins_of_a_yaml_file(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYSTEM_TEXT", "x")
    origins = load(write(tmp_path, "c.yaml", YAML), host).origins
    assert (origins["learning_rate"], origins["datasets.0.samples"]) == ("c.yaml:2", "c.yaml:8")


def test_resolved_is_flat_json_and_reads_back(host: Host) -> None:
    source = {**MINIMAL, "lora_rank": 4, "validation_datasets": [TEXT], "report_to": ["jsonl"], "log_file": "x"}
    config = load(source, host)
    values = config.resolved()
    assert json.loads(json.dumps(values)) == values
    assert values["datasets.0.messages_field"] == "messages"
    assert values["validation_datasets.0.text_field"] == "text"
    assert "fp8_window" not in values  # belongs to a recipe that is not chosen
    again = load(json.loads(json.dumps(values)), host)
    assert again.resolved() == values
    assert again.core == config.core


def test_a_secret_of_the_environment_is_not_in_the_resolved_values(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_KEY", "hush")
    config = load({**MINIMAL, "run_name": "r-${MY_API_KEY}"}, host)
    assert config.core.run_name == "r-hush"
    assert config.resolved()["run_name"] == "r-${MY_API_KEY}"
    (problem,) = refused(host, {**MINIMAL, "save_steps": "${MY_API_KEY}"})
    assert "hush" not in "".join(problem.lines())


def test_a_value_that_is_wholly_from_the_environment_is_read_by_the_keys_type(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEPS", "12")
    config = load({**MINIMAL, "max_steps": "${STEPS}", "run_name": "${STEPS}"}, host)
    assert (config.core.max_steps, config.core.run_name) == (12, "12")
    (problem,) = refused(host, {**MINIMAL, "max_steps": "1${STEPS}"})
    assert problem.what == 'max_steps = "112": wanted a whole number'


@pytest.mark.parametrize(
    ("source", "task", "lora", "why"),
    [
        ({"datasets": [TEXT]}, "pt", False, "derived: all data sets are text and lora is not set"),
        ({"datasets": [TEXT], "lora": True}, "sft", True, "derived: lora is set"),
        ({"datasets": [TEXT], "lora": False}, "sft", False, "derived: lora is set"),
        ({"datasets": [TEXT], "adapter": "lora"}, "sft", True, "derived: adapter is set"),
        ({"datasets": [TEXT], "adapter": "lora", "task": "pt"}, "pt", True, "mapping"),
        ({"datasets": [TEXT, CHAT]}, "sft", True, "derived: not all data sets are text"),
        ({"datasets": [TEXT], "validation_datasets": [CHAT]}, "sft", True, "derived: not all data sets are text"),
        ({"datasets": [TEXT], "task": "sft"}, "sft", True, "mapping"),
        ({"datasets": [TEXT], "task": "pt", "lora": True}, "pt", True, "mapping"),
    ],
)
def test_task_and_lora(host: Host, source: dict[str, Any], task: str, lora: bool, why: str) -> None:
    config = load({"model": "owner/model", **source}, host)
    assert (config.core.task, config.core.lora, config.origins["task"]) == (task, lora, why)


def test_presets(host: Host) -> None:
    pt = load({"model": "owner/model", "datasets": [TEXT]}, host, preset={"task": "pt"})
    assert (pt.core.task, pt.core.lora, pt.core.from_scratch) == ("pt", False, False)
    assert (pt.origins["task"], pt.origins["lora"]) == ("preset pt", 'derived: task is "pt"')
    sft = load({"model": "owner/model", "datasets": [TEXT]}, host, preset={"task": "sft"})
    assert (sft.core.task, sft.core.lora) == ("sft", True)
    (problem,) = refused(host, MINIMAL, preset={"task": "pt"})
    assert 'trains on type = "text" only' in problem.what
    (problem,) = refused(host, {**MINIMAL, "task": "sft", "datasets": [TEXT]}, preset={"task": "pt"})
    assert "contradicts the command" in problem.what
    assert "surogate run" in problem.how


def test_a_key_of_an_offer_that_is_not_chosen_gets_a_notice(host: Host) -> None:
    config = load({**MINIMAL, "fp8_window": 4, "lora_rank": 8, "lora": False}, host)
    assert sorted(config.notices) == [
        'fp8_window has no effect: it belongs to recipe = "fp8_test" (mapping)',
        'lora_rank has no effect: it belongs to adapter = "lora" (mapping)',
    ]
    assert load({**MINIMAL, "recipe": "fp8-test", "fp8_window": 4, "lora_rank": 8, "log_file": "x"}, host).notices == ()


def test_names_are_spelled_as_installed(host: Host) -> None:
    config = load({**MINIMAL, "recipe": "fp8-test", "optimizer": "adamw-8bit"}, host)
    assert (config.core.recipe, config.core.optimizer) == ("fp8_test", "adamw_8bit")


def test_plugins_are_asked_for_problems_of_their_own(options: SimpleNamespace) -> None:
    seen = []

    def check_config(config: Any) -> list[Problem]:
        seen.append(config.core.save_steps)
        return [Problem("two keys exclude each other", how="drop one")]

    host = load_host([("p", options.stand_in(check_config=check_config), Owner("surogate-p", "2"))], discover=False)
    (problem,) = refused(host, MINIMAL)
    assert problem.lines() == ["two keys exclude each other", "  where: surogate-p 2", "  how: drop one"]
    assert seen == [50]


@frozen(kw_only=True)
class TogetherOptions:
    low: int = field(default=1, metadata=doc("Low."))
    high: int = field(default=9, metadata=doc("High."))

    @low.validator
    def _not_above(self, _: Any, value: int) -> None:
        if value > self.high:
            raise ValueError("low is above high")

    def __attrs_post_init__(self) -> None:
        if self.low == self.high:
            raise ValueError("low and high are equal")


@pytest.mark.parametrize(("change", "what"), [({"low": 10}, "low is above high"), ({"high": 1}, "low and high are equal")])
def test_a_class_of_options_may_check_its_keys_together(change: dict[str, int], what: str, options: SimpleNamespace) -> None:
    module = SimpleNamespace(register_optimizers=hookimpl(lambda: [Offer("theirs", TogetherOptions, build="no:where")]))
    host = load_host([("a", module, Owner("a", "1")), ("b", options.stand_in(), Owner("b", "1"))], discover=False)
    assert load({**MINIMAL, "optimizer": "theirs", "low": 9}, host, [("high", "10")]).of(TogetherOptions).low == 9
    (problem,) = refused(host, {**MINIMAL, "optimizer": "theirs", **change})
    assert (problem.what, problem.where) == (what, f"mapping, key {next(iter(change))}")
    assert "surogate explain" in problem.how


def test_arguments_give_the_overrides_again(host: Host) -> None:
    overrides = [("max_steps", "5"), ("report_to", ["jsonl"]), ("lora", False), ("system", "a b"), ("datasets.0.samples", 3)]
    config = load(MINIMAL, host, overrides)
    assert config.arguments[:2] == ("--max-steps", "5")
    words = [(key.removeprefix("--"), text) for key, text in zip(config.arguments[::2], config.arguments[1::2], strict=True)]
    again = load(MINIMAL, host, words)
    assert (again.core, again.resolved()) == (config.core, config.resolved())


def test_options_of_a_class_that_no_offer_has(host: Host) -> None:
    with pytest.raises(PluginError, match="no installed offer has the options"):
        load(MINIMAL, host).of(int)


def test_loading_needs_no_torch() -> None:
    code = (
        "import sys; from surogate_core.host import load_host; from surogate_core.config import load\n"
        "try: load({'model': 'a/b', 'datasets': [{'path': 'a/b', 'type': 'text'}]}, load_host(discover=False))\n"
        "except Exception as error: assert 'pip install' in str(error), error\n"
        "assert not {'torch', 'transformers', 'datasets', 'numpy', 'ruamel', 'rich'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def reference_examples(shared_data: Path) -> list[str]:
    text = (shared_data.parent / "spec" / "config-reference.md").read_text()
    return re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)


def test_every_example_of_the_reference_is_accepted(host: Host, shared_data: Path, tmp_path: Path) -> None:
    """The distributed example asks for two nodes: every line of it is understood, and that one is not available yet."""
    examples = reference_examples(shared_data)
    assert len(examples) >= 5
    for example in examples:
        path = write(tmp_path, "example.yaml", example)
        needed: list[tuple[str, Any]] = [] if re.search("^model:", example, re.MULTILINE) else [("model", "owner/model")]
        if "datasets:" not in example:
            needed.append(("datasets", [CHAT]))
        if "distributed:" in example:
            found = refused(host, path, needed)
            assert {p.where.split("key ")[1] for p in found} == {
                "distributed.num_nodes",
                "distributed.gpus_per_node",
                "distributed.worker_output_dir",
            }
            assert all("not available in this version" in p.what for p in found)
        else:
            config = load(path, host, needed)
            assert any("tabs" in text for text in config.notices) == ("\n\t" in example)


@pytest.mark.parametrize("lora", [True, False])
def test_recommended_values_are_for_keys_that_are_not_set(host: Host, lora: bool) -> None:
    """decisions: clipping at 1.0, warmup of 3 %, cosine, and a weight decay of 0.01 with LoRA."""
    plain = load({**MINIMAL, "lora": lora}, host)
    config = load({**MINIMAL, "lora": lora, "apply_recommended_values": True}, host)
    wanted = {"max_grad_norm": 1.0, "warmup_ratio": 0.03, "lr_scheduler_type": "cosine", **({"weight_decay": 0.01} if lora else {})}
    changed = {key: value for key, value in config.resolved().items() if plain.resolved()[key] != value}
    assert changed == {**wanted, "apply_recommended_values": True}
    assert {key for key, origin in config.origins.items() if origin == "recommended"} == set(wanted)
    assert len([notice for notice in config.notices if "is recommended" in notice]) == len(wanted)


def test_what_is_set_is_left_alone(host: Host) -> None:
    given = {"max_grad_norm": 0.0, "warmup_steps": 7, "lr_scheduler_type": "linear", "weight_decay": 0.1}
    config = load({**MINIMAL, **given, "apply_recommended_values": True}, host)
    assert {key: config.resolved()[key] for key in given} == given
    assert config.core.warmup_ratio == 0.0
    assert not [notice for notice in config.notices if "recommended" in notice]
