"""Every refusal of a run that a user can cause, through the program with the installed plugins: its three lines, exit code 2, and
nothing but the lock left behind. Those that the configuration alone tells come before torch is imported."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from attrs import Factory, frozen
from click.testing import CliRunner
from surogate_model_transformers import testing as models_testing

from surogate_core import __version__
from surogate_core.cli.main import main

TEXTS = {"path": "rows.jsonl", "type": "text"}
LOCK = {".surogate.lock", ".surogate.lock.json"}
"""Taken before the data are read; not removed, because another run may have opened it."""


@frozen
class Row:
    """Keys beside those of :func:`write`, or the whole text of the file; the three lines, in which HERE is the directory."""

    name: str
    lines: tuple[str, str, str]
    keys: dict[str, Any] = Factory(dict)
    data: dict[str, Any] = Factory(dict)
    text: str | None = None
    hidden: str = ""


CONFIG_TELLS = [
    Row(
        "a typo of a key",
        ("there is no key learning_rat", "c.toml:5, key learning_rat", "did you mean learning_rate (surogate)?"),
        {"learning_rat": 1e-4},
    ),
    Row(
        "a typo that is as near to two keys",
        (
            "there is no key qlora_fp",
            "c.toml:5, key qlora_fp",
            f"did you mean qlora_fp4 (surogate-quantizer-nvfp4 {__version__}) or qlora_fp8 (surogate-quantizer-fp8-block "
            f"{__version__})?",
        ),
        {"qlora_fp": True},
    ),
    Row(
        "a typo in a table",
        (
            'there is no key sample in a table of type = "text"',
            "c.toml:8, key datasets.0.sample",
            "did you mean samples (surogate)?",
        ),
        data={"sample": 3},
    ),
    Row(
        "a wrong type",
        (
            'learning_rate = "fast": wanted a number',
            "c.toml:5, key learning_rate",
            "set learning_rate to a number > 0, for example 0.0002 (the default)",
        ),
        {"learning_rate": "fast"},
    ),
    Row(
        "out of range",
        (
            "lora_rank = 0: wanted a whole number >= 1",
            "c.toml:5, key lora_rank",
            "set lora_rank to a whole number >= 1, for example 16 (the default)",
        ),
        {"lora_rank": 0},
    ),
    Row("a missing configuration", ("there is no file HERE/c.toml", "working directory HERE", "check the path"), text=""),
    Row(
        "a missing data file",
        (
            'datasets.0.path = "rws.jsonl": there is no such file or directory',
            "c.toml:6, key datasets.0.path",
            'did you mean "rows.jsonl"? (looked in HERE)',
        ),
        data={"path": "rws.jsonl"},
    ),
    Row(
        "not TOML",
        ("c.toml is not TOML: Invalid value", "c.toml:2", 'write key = value, with text in "quotes"'),
        text='model = "owner/model"\nlora = True\n',
    ),
    Row(
        "a key of a plugin that is not installed",
        (
            "wandb_project needs surogate-logger-wandb, which is not installed",
            "c.toml:5, key wandb_project",
            "pip install surogate-logger-wandb",
        ),
        {"wandb_project": "mine"},
        hidden="surogate-logger-wandb",
    ),
    Row(
        "conflicting keys",
        (
            "qlora_bnb = true and qlora_fp8 = true: the frozen weights are held in one format",
            "c.toml:5, key qlora_bnb",
            "keep one of qlora_bnb, qlora_fp8",
        ),
        {"qlora_bnb": True, "qlora_fp8": True},
    ),
    Row(
        "from_scratch with lora",
        (
            "from_scratch = true with lora = true would adapt random weights",
            "c.toml:5, key from_scratch",
            "set lora = false to train all weights from scratch, or from_scratch = false to adapt the model's own",
        ),
        {"from_scratch": True, "lora": True},
    ),
    Row(
        "an unknown recipe",
        ('recipe = "bf61" is not installed: no plugin offers it', "c.toml:5, key recipe", 'did you mean "bf16"?'),
        {"recipe": "bf61"},
    ),
    Row(
        "a key that is not built yet",
        (
            "use_all_to_all_reduce = true is not available in this version",
            "c.toml:5, key use_all_to_all_reduce",
            "remove use_all_to_all_reduce, or leave it at false",
        ),
        {"use_all_to_all_reduce": True},
    ),
]
MODEL_OR_DATA_TELL = [
    Row(
        "a target that matches nothing",
        (
            "'q_prj' matches no layer of this model",
            "lora_target_modules",
            "did you mean q_proj or v_proj or o_proj? there are down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj, "
            'or "all"',
        ),
        {"lora": True, "lora_target_modules": ["q_prj"]},
    ),
    Row(
        "an empty data set",
        ("the data set is empty", 'datasets[0].path = "HERE/empty.jsonl"', "give a data set with at least one row"),
        data={"path": "HERE/empty.jsonl"},
    ),
    Row(
        "a data set without a trained token",
        (
            'no sample of kind "conversation" has a trained token (1 samples): assistant text was not found in them',
            "datasets",
            "check the roles and fields of the rows, `loss` in messages, and the chat template",
        ),
        data={"path": "HERE/questions.jsonl", "type": "conversation"},
    ),
    Row(
        "a model directory without weights",
        (
            "the model directory has no weights",
            "HERE/bare",
            "put model.safetensors or pytorch_model.bin there, or set from_scratch = true to start from random ones",
        ),
        {"model": "HERE/bare"},
    ),
]
RUNNER = """
import importlib.metadata, json, os, sys
from click.testing import CliRunner
from surogate_core.cli.main import main

installed, told = importlib.metadata.distributions, {}
for name, (directory, hidden) in json.loads(sys.argv[1]).items():
    os.chdir(directory)
    importlib.metadata.distributions = lambda: [found for found in installed() if found.metadata["Name"] != hidden]
    done = CliRunner().invoke(main, ["run", os.path.join(directory, "c.toml")])
    told[name] = done.exit_code, done.stdout, done.stderr
assert "torch" not in sys.modules
print(json.dumps(told))
"""


def write(row: Row, here: Path, **keys: Any) -> Path:
    """The configuration of a row, with ``rows.jsonl`` beside it."""
    (here / "rows.jsonl").write_text('{"text": "one two three"}\n')
    given = {"model": "owner/model", "output_dir": str(here / "out"), "max_steps": 1, "sequence_len": 64, **keys, **row.keys}
    parts = [given, {**TEXTS, **row.data}]
    lines = [[f"{key} = {json.dumps(value)}" for key, value in part.items()] for part in parts]
    text = "\n".join([*lines[0], "[[datasets]]", *lines[1]]) + "\n" if row.text is None else row.text
    if text:
        (here / "c.toml").write_text(text.replace("HERE", str(here)))
    return here / "c.toml"


def assert_said(row: Row, here: Path, exit_code: int, stdout: str, stderr: str) -> None:
    what, where, how = (line.replace("HERE", str(here)) for line in row.lines)
    assert stderr.splitlines() == [f"error: {what}", f"  where: {where}", f"  how: {how}"]
    assert (exit_code, stdout) == (2, "")


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, list[Any]]]:
    """Name of a row → its directory and what the program said; all from one process, which has not imported torch."""
    places = {row.name: tmp_path_factory.mktemp("refused") for row in CONFIG_TELLS}
    for row in CONFIG_TELLS:
        write(row, places[row.name])
    asked = json.dumps({row.name: (str(places[row.name]), row.hidden) for row in CONFIG_TELLS})
    done = subprocess.run([sys.executable, "-c", RUNNER, asked], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {name: (places[name], said) for name, said in json.loads(done.stdout).items()}


@pytest.mark.parametrize("row", CONFIG_TELLS, ids=lambda row: row.name)
def test_what_the_configuration_alone_tells(row: Row, told: dict[str, tuple[Path, list[Any]]]) -> None:
    here, said = told[row.name]
    assert_said(row, here, *said)
    assert not (here / "out").exists()


@pytest.mark.parametrize("row", MODEL_OR_DATA_TELL, ids=lambda row: row.name)
def test_what_the_model_or_the_data_tell(row: Row, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "questions.jsonl").write_text(json.dumps({"messages": [{"role": "user", "content": "Why?"}]}) + "\n")
    models_testing.tiny_model(tmp_path / "bare", weights=False)
    config = write(row, tmp_path, model=str(tiny), dataloader_num_workers=0)
    done = CliRunner().invoke(main, ["run", str(config)])
    assert_said(row, tmp_path, done.exit_code, done.stdout, done.stderr)
    assert {path.name for path in (tmp_path / "out").glob("**/*")} <= LOCK
