from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from surogate_settings.problem import Problem, UnreadableError
from surogate_settings.sources import Layout, expand, flatten, overlay, override, read_file, toml_lines

LAYOUT = Layout(lists=("datasets", "validation_datasets"), tables=("distributed",))
TOML = '''# a comment = not a key
model = "a = b"   # learning_rate = 1
"learning-rate" = 1e-4
system = """
fake_key = 1
[fake]
"""
lora_target_modules = [
  "q",  # ]
  "[",
]
[distributed]
num_nodes = 1
[[datasets]]
path = 'x'
[[datasets]]
path = "y"
  type = "text"
  [datasets.message_property_mappings]
  role = "from"
[[validation_datasets]]
path = "z"
'''


def put(tmp_path: Path, name: str, text: str | bytes) -> Path:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def refused(path: Path) -> Problem:
    with pytest.raises(UnreadableError) as caught:
        read_file(path)
    return caught.value.problem


def test_lines_of_toml_keys() -> None:
    assert toml_lines(TOML) == {
        "model": 2,
        "learning_rate": 3,
        "system": 4,
        "lora_target_modules": 8,
        "distributed": 12,
        "distributed.num_nodes": 13,
        "datasets.0": 14,
        "datasets.0.path": 15,
        "datasets.1": 16,
        "datasets.1.path": 17,
        "datasets.1.type": 18,
        "datasets.1.message_property_mappings": 19,
        "datasets.1.message_property_mappings.role": 20,
        "validation_datasets.0": 21,
        "validation_datasets.0.path": 22,
    }


def test_lines_of_yaml_keys_are_those_of_the_text(tmp_path: Path) -> None:
    text = "# c\nmodel: x\n\nlearning-rate: 2e-4\ndatasets:\n  - path: a\n    type: text\n  - type: text\n    path: b\n"
    tree, lines, notices = read_file(put(tmp_path, "c.yaml", text))
    assert tree == {"model": "x", "learning-rate": 2e-4, "datasets": [{"path": "a", "type": "text"}, {"type": "text", "path": "b"}]}
    found = {key: lines[key] for key in ("model", "learning_rate", "datasets.0.type", "datasets.1.path")}
    assert found == {"model": 2, "learning_rate": 4, "datasets.0.type": 7, "datasets.1.path": 9}
    assert notices == ()


def test_yaml_is_1_2_and_its_values_are_plain(tmp_path: Path) -> None:
    tree, _, _ = read_file(put(tmp_path, "c.yml", "a: 2e-4\nb: yes\nc: 0o14\nd: null\ne: [1, x]\nf: {g: 1.5}\nh: true\ni: 010\n"))
    assert tree == {"a": 2e-4, "b": "yes", "c": 12, "d": None, "e": [1, "x"], "f": {"g": 1.5}, "h": True, "i": 10}
    assert [type(tree[key]) for key in "abcdefhi"] == [float, str, int, type(None), list, dict, bool, int]


def test_tabs_in_yaml_indentation_are_expanded_with_a_notice(tmp_path: Path) -> None:
    tree, _, notices = read_file(put(tmp_path, "c.yaml", 'datasets:\n  - path: "a"\n\ttype: text\n\tsplit: train\n'))
    assert tree == {"datasets": [{"path": "a", "type": "text", "split": "train"}]}
    assert len(notices) == 1
    assert "line 3, 4" in notices[0]


def test_byte_order_mark_and_carriage_returns_are_fine(tmp_path: Path) -> None:
    tree, lines, _ = read_file(put(tmp_path, "c.toml", b"\xef\xbb\xbfmodel = 'x'\r\nsave_steps = 2\r\n"))
    assert tree == {"model": "x", "save_steps": 2}
    assert lines["save_steps"] == 2


@pytest.mark.parametrize(
    ("name", "text", "what", "where", "how"),
    [
        ("c.json", "{}", "neither TOML nor YAML", "c.json", ".toml"),
        ("c.toml", "a = 1\nmodel = x\n", "c.toml is not TOML: ", "c.toml:2", "quotes"),
        ("c.toml", "a = 1\na = 2\n", "c.toml is not TOML: ", "c.toml:2", "key = value"),
        ("c.toml", 'a = "', "c.toml is not TOML: ", "c.toml:1", "key = value"),
        ("c.yaml", "a: 1\nb: [1\n", "c.yaml is not YAML: ", "c.yaml:3", "key: value"),
        ("c.yaml", "a: 1\na: 2\n", "c.yaml is not YAML: ", "c.yaml:2", "key: value"),
        ("c.yaml", "- 1\n", "c.yaml holds no keys", "c.yaml:1", "key: value"),
        ("c.toml", b"a = '\xff'", "is not UTF-8", "c.toml", "UTF-8"),
    ],
)
def test_unreadable_files(tmp_path: Path, name: str, text: str | bytes, what: str, where: str, how: str) -> None:
    problem = refused(put(tmp_path, name, text))
    assert what in problem.what
    assert problem.where.endswith(where)
    assert how in problem.how


def test_missing_file_and_directory(tmp_path: Path) -> None:
    problem = refused(tmp_path / "no.toml")
    assert "there is no file" in problem.what
    assert "check the path" in problem.how
    (tmp_path / "d.toml").mkdir()
    assert "cannot be read" in refused(tmp_path / "d.toml").what


def test_one_key_in_two_spellings_is_a_problem() -> None:
    problems: list[Problem] = []
    flatten({"learning-rate": 1, "learning_rate": 2}, "f", {"learning_rate": 4}, problems, LAYOUT)
    assert [(p.what, p.where) for p in problems] == [("learning_rate is given twice", "f:4, key learning_rate")]


def flat(*trees: Any) -> dict[str, Any]:
    base: dict[str, Any] = {}
    for tree in trees:
        base = overlay(base, flatten(tree, "f", None, [], LAYOUT))
    return {key: given.value for key, given in base.items()}


def test_overlay_replaces_keys_of_tables_and_whole_lists() -> None:
    two = {"datasets": [{"path": "a", "type": "text"}, {"path": "b", "type": "text"}]}
    assert flat(two, {"datasets.1.path": "c"})["datasets.1.path"] == "c"
    replaced = override(flatten(two, "f", None, [], LAYOUT), [("datasets", [{"path": "c"}])], [], LAYOUT)
    assert {key: given.value for key, given in replaced.items()} == {"datasets.0.path": "c"}
    assert flat(two, {"datasets": None}) == {"datasets": None}
    assert flat({"datasets": None}, {"datasets.0.path": "a"}) == {"datasets.0.path": "a"}
    assert flat({"distributed": {"num-nodes": 1}}, {"distributed.num_nodes": 2}) == {"distributed.num_nodes": 2}


def test_the_last_override_wins_and_text_is_marked() -> None:
    found = override({}, [("save-steps", "1"), ("save_steps", "2"), ("lora", True)], [], LAYOUT)
    assert (found["save_steps"].value, found["save_steps"].text, found["lora"].text) == ("2", True, False)
    tables = override({}, [("datasets", '[{"path": "a"}]')], [], LAYOUT)
    assert tables["datasets.0.path"].value == "a"


def test_environment() -> None:
    problems: list[Problem] = []
    tree = {"a": "x-${ONE}", "b": "${ONE}", "c": ["${TWO}"], "d": "$${ONE} $ONE {ONE}", "e": "${HF_TOKEN}", "f": "${NOT_THERE}"}
    written = flatten(tree, "f", dict(zip("abcdef", range(1, 7), strict=True)), [], LAYOUT)
    given = expand(written, problems, {"ONE": "1", "TWO": "2", "HF_TOKEN": "s"})
    assert {key: entry.value for key, entry in given.items()} == {
        "a": "x-1",
        "b": "1",
        "c": ["2"],
        "d": "${ONE} $ONE {ONE}",
        "e": "s",
        "f": "",
    }
    assert [key for key, entry in given.items() if entry.text] == ["b", "e", "f"]
    assert given["a"].origin == "environment ONE at f:1"
    assert given["d"].origin == "f:4"
    assert (given["e"].shown, given["b"].shown) == ("${HF_TOKEN}", None)
    assert [(p.what, p.where) for p in problems] == [("f: the environment has no NOT_THERE", "f:6, key f")]
    assert "export NOT_THERE" in problems[0].how
