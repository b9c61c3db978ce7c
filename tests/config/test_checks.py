from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from surogate_core.config.checks import findings, looks_local
from surogate_core.config.options import CoreOptions, DatasetOptions

DATA = [DatasetOptions(path="owner/name", type="text")]


def found(need_data: bool = True, **options: Any) -> list[tuple[tuple[str, ...], str, str]]:
    core = CoreOptions(**{"model": "owner/model", "datasets": DATA, **options})
    return list(findings(core, need_data=need_data))


@pytest.mark.parametrize(
    ("options", "key", "what", "how"),
    [
        ({"datasets": None}, "datasets", "there are no datasets", "[[datasets]]"),
        (
            {"max_steps": 10, "warmup_steps": 6, "cooldown_steps": 5},
            "cooldown_steps",
            "longer than max_steps (10)",
            "raise max_steps",
        ),
        ({"max_steps": 10, "warmup_ratio": 0.6, "cooldown_steps": 5}, "cooldown_steps", "warmup (6 steps)", "lower warmup_ratio"),
        ({"from_scratch": True, "lora": True}, "from_scratch", "from_scratch = true with lora = true", "set lora = false"),
        ({"master_dtype": "bf16", "model_dtype": "fp32"}, "master_dtype", "coarser than the weights", "remove master_dtype"),
        ({"model": "./nowhere"}, "model", "no such directory", "looked up from"),
        (
            {"task": "pt", "datasets": [DatasetOptions(path="a/b", type="chat")]},
            "datasets.0.type",
            'type = "text" only',
            'task = "sft"',
        ),
    ],
)
def test_each_conflict_is_found(options: dict[str, Any], key: str, what: str, how: str) -> None:
    ((keys, said, mend),) = found(**options)
    assert keys[0] == key
    assert what in said
    assert how in mend


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_steps": 11, "warmup_steps": 6, "cooldown_steps": 5},
        {"max_steps": -1, "warmup_steps": 600, "cooldown_steps": 5},
        {"from_scratch": True, "lora": False},
        {"validation_datasets": DATA},
    ],
)
def test_what_fits_is_left_alone(options: dict[str, Any]) -> None:
    assert found(**options) == []


def test_data_are_not_needed_by_every_command() -> None:
    assert found(need_data=False, datasets=None) == []


def test_a_missing_path_names_its_nearest_neighbour(tmp_path: Path) -> None:
    (tmp_path / "stories.jsonl").write_text("")
    ((keys, what, how),) = found(datasets=[DATA[0], DatasetOptions(path=f"{tmp_path}/storis.jsonl", type="text")])
    assert keys == ("datasets.1.path",)
    assert "there is no such file" in what
    assert 'did you mean "stories.jsonl"?' in how
    assert found(datasets=[DatasetOptions(path=f"{tmp_path}/stories.jsonl", type="text")], model=str(tmp_path)) == []


def test_a_file_with_a_mistyped_suffix_is_not_looked_for_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "chat.jsonl").write_text("")
    monkeypatch.chdir(tmp_path)
    ((_, _, how),) = found(datasets=[DatasetOptions(path="chat.jsnl", type="text")])
    assert 'did you mean "chat.jsonl"?' in how
    assert found(datasets=[DatasetOptions(path="squad", type="text"), DatasetOptions(path="other.v2", type="text")]) == []


@pytest.mark.parametrize(
    ("path", "local"),
    [
        ("Qwen/Qwen3-0.6B", False),
        ("gpt2", False),
        ("s3://bucket/x/y.jsonl", False),
        ("./x", True),
        ("../x", True),
        ("/x", True),
        ("~/x", True),
        ("a/b/c", True),
        ("train.jsonl", True),
        ("data/train.txt", True),
        ("dir/", True),
    ],
)
def test_what_can_only_be_a_path(path: str, local: bool) -> None:
    assert looks_local(path) is local
