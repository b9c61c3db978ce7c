"""Unknown keys, wrong types, bounds and names: every key of this version is tried."""

from __future__ import annotations

import re
import string
from collections.abc import Iterable
from typing import Any

import attrs
import pytest
from surogate_settings.sources import Given
from surogate_settings.structure import choices, make_converter, members

from surogate_core.config import load
from surogate_core.config.catalogue import Catalogue, Key, catalogue
from surogate_core.config.known import HOMES, NAME_HOMES, NOT_BUILT, NOT_BUILT_NAMES
from surogate_core.config.options import LAYOUT, CoreOptions, DatasetOptions
from surogate_core.config.resolve import DATASET_HOMES, Reading
from surogate_core.errors import ConfigError, Problem
from surogate_core.host import Host, load_host

BASE = {"path": "owner/name", "type": "instruction", "instruction_field": "q", "output_field": "a"}
MINIMAL: dict[str, Any] = {"model": "owner/model", "datasets": [BASE]}
TOP_KEYS = sorted({*(f.name for f in attrs.fields(CoreOptions)), *LAYOUT.tables, *NOT_BUILT, *HOMES} - DATASET_HOMES.keys())
TABLE_KEYS = sorted(f.name for f in attrs.fields(DatasetOptions) if f.metadata.get("key", True))
CONVERTER = make_converter()
LETTERS = string.ascii_lowercase + string.digits + "_"


def refused(host: Host, source: Any, overrides: Any = ()) -> list[Problem]:
    with pytest.raises(ConfigError) as caught:
        load(source, host, overrides)
    return list(caught.value.problems)


def edits(word: str) -> tuple[set[str], set[str]]:
    """All words one edit away: deletions and swaps of neighbours; substitutions and insertions of every letter."""
    halves = [(word[:i], word[i:]) for i in range(len(word) + 1)]
    fewer = {a + b[1:] for a, b in halves if b} | {a + b[1] + b[0] + b[2:] for a, b in halves if len(b) > 1}
    other = {a + letter + rest for a, b in halves for letter in LETTERS for rest in (b, b[1:])}
    return fewer - {word, ""}, other - {word}


def near(keys: Iterable[str]) -> dict[str, set[str]]:
    """Each typo of these keys → all of them that are one edit away from it."""
    found: dict[str, set[str]] = {}
    for key in keys:
        for typo in set.union(*edits(key)):
            found.setdefault(typo, set()).add(key)
    return found


def sample(key: str) -> set[str]:
    """All deletions and swaps, and a tenth of the others: another tenth for each key."""
    fewer, other = edits(key)
    return fewer | set(sorted(other)[sum(key.encode()) % 10 :: 10])


def unknown(known: Catalogue, path: str, format_name: str | None = None) -> Problem | None:
    """What one unknown key gives, without the rest of a configuration."""
    reading = Reading(known, {path: Given("1", "c.toml:7")}, "c.toml", converter=CONVERTER)
    reading.unknown(path, format_name)
    return reading.problems[0] if reading.problems else None


@pytest.fixture(scope="module")
def known(host: Host) -> Catalogue:
    return catalogue(host)


@pytest.fixture(scope="module")
def top(known: Catalogue) -> dict[str, set[str]]:
    """Typos of the keys outside of the tables, without those that are themselves keys of some place."""
    everywhere = {*known.keys, *TOP_KEYS, *known.base, *DATASET_HOMES, *(key for own in known.formats.values() for key in own)}
    return {typo: keys for typo, keys in near({*known.keys, *TOP_KEYS}).items() if typo not in everywhere}


@pytest.fixture(scope="module")
def in_table(known: Catalogue) -> dict[str, set[str]]:
    """Typos of the keys of a table of instructions, without those that are themselves keys of some place."""
    own = {*known.table("instruction"), *DATASET_HOMES}
    return {typo: keys for typo, keys in near(own).items() if typo not in {*own, *known.keys, *TOP_KEYS}}


def assert_suggests(known: Catalogue, prefix: str, typo: str, keys: set[str]) -> None:
    problem = unknown(known, prefix + typo, "instruction" if prefix else None)
    assert problem is not None
    assert problem.what == f"there is no key {typo}" + (' in a table of type = "instruction"' if prefix else "")
    assert problem.where == f"c.toml:7, key {prefix}{typo}"
    assert problem.how.startswith("did you mean ")
    assert re.findall(r"(\S+) \(", problem.how) == sorted(keys), (typo, problem.how)


@pytest.mark.parametrize("key", TOP_KEYS)
def test_a_typo_of_a_key_suggests_all_keys_one_edit_away(known: Catalogue, top: dict[str, set[str]], key: str) -> None:
    for typo in sample(key) & top.keys():
        assert_suggests(known, "", typo, top[typo])


@pytest.mark.parametrize("key", sorted({*TABLE_KEYS, *DATASET_HOMES}))
def test_a_typo_in_a_table_suggests_all_its_keys_one_edit_away(known: Catalogue, in_table: dict[str, set[str]], key: str) -> None:
    for typo in sample(key) & in_table.keys():
        assert_suggests(known, "datasets.0.", typo, in_table[typo])


@pytest.mark.prove("200,000 typos take three minutes")
def test_every_typo_of_every_key(known: Catalogue, top: dict[str, set[str]], in_table: dict[str, set[str]]) -> None:
    for prefix, typos in (("", top), ("datasets.0.", in_table)):
        for typo, keys in typos.items():
            assert_suggests(known, prefix, typo, keys)


def test_all_keys_that_are_equally_near_are_suggested_with_their_owners(known: Catalogue) -> None:
    problem = unknown(known, "qlora_fp")
    assert problem is not None
    assert (
        problem.how
        == "did you mean qlora_fp4 (pip install surogate-quantizer-nvfp4) or qlora_fp8 (pip install surogate-quantizer-fp8-block)?"
    )
    problem = unknown(known, "lora_rnk")
    assert problem is not None
    assert problem.how == "did you mean lora_rank (surogate-stand-in 3.1)?"


def test_a_key_in_the_wrong_place(host: Host) -> None:
    (top,) = refused(host, {**MINIMAL, "text_field": "x"})
    assert top.what.startswith("text_field does not belong here")
    assert top.how == "write text_field in its [[datasets]] table"
    (table,) = refused(host, {**MINIMAL, "datasets": [{**BASE, "save_steps": 3}]})
    assert table.how == "write save_steps above the first table"
    (other,) = refused(host, {**MINIMAL, "datasets": [{**BASE, "messages_field": "x"}]})
    assert other.lines() == [
        'messages_field is no key of type = "instruction"',
        "  where: mapping, key datasets.0.messages_field",
        '  how: remove it, or use type = "conversation"',
    ]


@pytest.mark.parametrize(("key", "home"), HOMES.items())
def test_a_key_of_a_plugin_that_is_not_installed_names_the_pip_line(key: str, home: str) -> None:
    bare = catalogue(load_host(discover=False))
    for path in (key, f"datasets.0.{key}") if home.startswith("surogate-dataset-") else (key,):
        problem = unknown(bare, path, "text")
        assert problem is not None
        assert problem.what == f"{key} needs {home}, which is not installed"
        assert problem.how == f"pip install {home}"


@pytest.mark.parametrize(("key", "default"), NOT_BUILT.items())
def test_a_key_that_is_not_built_has_its_default_only(host: Host, key: str, default: Any) -> None:
    assert load({**MINIMAL, key: default}, host).notices == ()
    load(MINIMAL, host, [(key, "null" if default is None else str(default).lower() if default in (True, False) else str(default))])
    other = {bool: lambda: not default, type(None): lambda: "x", str: lambda: default + "x"}.get(
        type(default), lambda: default + 1
    )()
    (problem,) = refused(host, {**MINIMAL, key: other})
    assert problem.what.startswith(f"{key} = ")
    assert problem.what.endswith("is not available in this version")
    assert problem.where == f"mapping, key {key}"
    assert "leave it at" in problem.how
    (problem,) = refused(host, MINIMAL, [(key, "other")])
    assert "not available" in problem.what


def test_one_is_not_true_for_a_key_that_is_not_built(host: Host) -> None:
    assert "gpus = true" in refused(host, {**MINIMAL, "gpus": True})[0].what
    assert "memcpy_all_gather = 0" in refused(host, {**MINIMAL, "memcpy_all_gather": 0})[0].what


def wrong_values(key: Key) -> list[Any]:
    simple: dict[Any, list[Any]] = {int: [3.7, "3", True], float: ["0.5", True], bool: ["false", 0, 1], str: [3, True]}
    kinds = members(key.kind)
    if choices(key.kind):
        return ["no such choice", 3]
    return simple.get(kinds[0], ["text", 3]) if len(kinds) == 1 else []


def all_keys() -> list[tuple[str, str]]:
    core = [("", f.name) for f in attrs.fields(CoreOptions) if f.name not in LAYOUT.lists]
    stand_in = [("", name) for name in ("lora_rank", "lora_dropout", "lora_dtype", "lora_target_modules", "log_file", "fp8_window")]
    table = [("datasets.0.", name) for name in (*TABLE_KEYS, "instruction_field", "system_prompt_type")]
    return core + stand_in + table


@pytest.mark.parametrize(("prefix", "name"), all_keys())
def test_a_wrong_type_says_what_was_given_and_wanted(host: Host, known: Catalogue, prefix: str, name: str) -> None:
    key = known.table("instruction")[name] if prefix else known.keys[name]
    values = wrong_values(key)
    assert values
    for value in values:
        source = {**MINIMAL, **({"datasets": [{**BASE, name: value}]} if prefix else {name: value})}
        if prefix + name == "datasets.0.type" and isinstance(value, str):
            continue
        (problem,) = [p for p in refused(host, source) if p.where == f"mapping, key {prefix}{name}"]
        shown = (
            {True: "true", False: "false"}[value] if isinstance(value, bool) else f'"{value}"' if isinstance(value, str) else value
        )
        assert problem.what.startswith(f"{prefix}{name} = {shown}: wanted ")
        assert problem.how


@pytest.mark.parametrize(
    "name", [f.name for f in attrs.fields(CoreOptions) if f.name != "datasets"] + ["lora_rank", "lora_dropout", "fp8_window"]
)
def test_bounds(host: Host, known: Catalogue, name: str) -> None:
    key = known.keys[name]
    step = 1 if int in members(key.kind) else 1e-3
    for bound in key.ranges:
        outside = [
            *([bound.low - step] if bound.low is not None else []),
            *([bound.above] if bound.above is not None else []),
            *([bound.high + step] if bound.high is not None else []),
            *([bound.below] if bound.below is not None else []),
        ]
        assert outside
        for value in outside:
            (problem,) = refused(host, {**MINIMAL, name: value})
            assert problem.what.startswith(f"{name} = ")
            assert str(bound) in problem.what
            assert problem.where == f"mapping, key {name}"
            assert problem.how.startswith(f"set {name} to ")
        if bound.low is not None and name not in ("max_steps", "sequence_len"):
            load({**MINIMAL, name: bound.low if step != 1 else int(bound.low)}, host)


def test_numbers_of_the_core_have_bounds() -> None:
    known = catalogue(load_host(discover=False))
    for key in (*known.keys.values(), *known.base.values()):
        if {int, float} & set(members(key.kind)):
            assert key.ranges, f"{key.name} has no bounds"


def test_missing_keys(host: Host) -> None:
    problems = {p.where: p for p in refused(host, {"datasets": [{"type": "instruction", "output_field": "a"}]})}
    assert set(problems) == {"mapping, key model", "mapping, key datasets.0.path", "mapping, key datasets.0.instruction_field"}
    assert problems["mapping, key model"].what == "model is missing: wanted text"
    assert problems["mapping, key model"].how == "add model: Directory or Hugging Face repository of the model."


@pytest.mark.parametrize(
    ("source", "path", "what", "how"),
    [
        ({"recipe": "bf61"}, "recipe", 'recipe = "bf61" is not installed', 'did you mean "bf16"?'),
        ({"optimizer": "adamw8bit"}, "optimizer", "is not installed", 'did you mean "adamw_8bit"?'),
        ({"optimizer": "adm"}, "optimizer", "is not installed", '"adamw"'),
        ({"recipe": "nvfp4"}, "recipe", "needs surogate-recipe-nvfp4, which is not installed", "pip install surogate-recipe-nvfp4"),
        ({"recipe": "fp8-hybrid"}, "recipe", "which is not installed", "pip install surogate-recipe-fp8-hybrid"),
        ({"adapter": "prefix"}, "adapter", 'adapter = "prefix" needs surogate-adapter-prompt', "pip install"),
        ({"adapter": "prefix", "lora": False}, "adapter", 'adapter = "prefix" needs surogate-adapter-prompt', "pip install"),
        ({"lr_scheduler_type": "cosin"}, "lr_scheduler_type", "is not installed", 'did you mean "cosine"?'),
        ({"report_to": ["wandb"]}, "report_to", 'report_to = "wandb" needs surogate-logger-wandb', "pip install"),
        ({"report_to": ["jsonl", "jsnl"]}, "report_to", 'report_to = "jsnl" is not installed', 'did you mean "jsonl"?'),
        ({"datasets": [{**BASE, "type": "instructon"}]}, "datasets.0.type", "is not installed", 'did you mean "instruction"?'),
        ({"loss_scale": "defalt"}, "loss_scale", 'did you mean "default"?', "set loss_scale to text"),
        ({"lora": "false"}, "lora", 'lora = "false": wanted true or false', "write lora = false, without quotes"),
        ({"save_steps": "50"}, "save_steps", "wanted a whole number", "write save_steps = 50, without quotes"),
        ({"lora_target_modules": ["q", 3]}, "lora_target_modules", "lora_target_modules.1 = 3: wanted text", "a list of texts"),
        ({"datasets": []}, "datasets", "datasets is empty", "add a table"),
        ({"datasets": BASE}, "datasets", "wanted a list of tables", "[[datasets]]"),
        ({"datasets": ["owner/name"]}, "datasets.0", "wanted a table with path and type", "[[datasets]]"),
    ],
)
def test_names_and_values(host: Host, source: dict[str, Any], path: str, what: str, how: str) -> None:
    (problem,) = [p for p in refused(host, {**MINIMAL, **source}) if p.where == f"mapping, key {path}"]
    assert what in problem.what
    assert how in problem.how


@pytest.mark.parametrize(("chooser", "name"), NAME_HOMES)
def test_a_name_of_a_plugin_that_is_not_installed_names_the_pip_line(chooser: str, name: str) -> None:
    source = {"model": "owner/model", "lora": True, "datasets": [{"path": "a/b", "type": name if chooser == "type" else "text"}]}
    if chooser != "type":
        source[chooser] = [name] if chooser == "report_to" else name
    found = refused(load_host(discover=False), source)
    path = "datasets.0.type" if chooser == "type" else chooser
    (problem,) = [p for p in found if p.where == f"mapping, key {path}"]
    assert problem.what == f'{path} = "{name}" needs {NAME_HOMES[chooser, name]}, which is not installed'
    assert problem.how == f"pip install {NAME_HOMES[chooser, name]}"


def test_names_that_are_not_built_are_refused_under_every_chooser() -> None:
    assert set(NOT_BUILT_NAMES) <= {"recipe", "optimizer", "adapter", "type", "report_to", "lr_scheduler_type"}


def test_the_core_alone_names_every_missing_plugin_of_the_defaults() -> None:
    found = refused(load_host(discover=False), {"model": "owner/model", "datasets": [{"path": "a/b", "type": "conversation"}]})
    assert {p.how for p in found} == {
        "pip install surogate-model-transformers",
        "pip install surogate-pipeline-packed",
        "pip install surogate-checkpoint-local",
        "pip install surogate-loop-standard",
        "pip install surogate-schedule-standard",
        "pip install surogate-recipe-bf16",
        "pip install surogate-optimizer-adamw-8bit",
        "pip install surogate-adapter-lora",
        "pip install surogate-dataset-conversation",
    }
    assert any('optimizer = "adamw_8bit" (the default) needs' in p.what for p in found)


def test_all_problems_come_at_once(host: Host) -> None:
    source = {"model": 3, "save_stps": 1, "gpus": 2, "recipe": "x", "max_length": 1, "datasets": [{**BASE, "samples": 0}]}
    where = {p.where.split("key ")[1] for p in refused(host, source, [("warmup_ratio", "2")])}
    assert where == {"model", "save_stps", "gpus", "recipe", "max_length", "datasets.0.samples", "warmup_ratio"}


def test_a_table_that_does_not_exist(host: Host) -> None:
    found = refused(host, MINIMAL, [("datasets.3.samples", "1")])
    assert any(p.what == "datasets has no table 3: it has 1" for p in found)
