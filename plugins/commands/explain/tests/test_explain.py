from __future__ import annotations

import importlib.util
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from surogate_command_explain.rows import NOBODY, READ_BY, rows

from surogate_core.cli.main import main
from surogate_core.config import load
from surogate_core.config.catalogue import CHOSEN_BY
from surogate_core.errors import ConfigError
from surogate_core.host import Host, load_host

MINIMAL: dict[str, Any] = {"model": "owner/model", "datasets": [{"path": "owner/name", "type": "conversation"}]}
LORA = "surogate-adapter-lora 0.1.0.dev0+src"


@pytest.fixture(scope="module")
def host() -> Host:
    return load_host()


@pytest.fixture
def surogate() -> Callable[..., Result]:
    return lambda *words: CliRunner().invoke(main, [str(word) for word in words])


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "c.toml"
    path.write_text('model = "owner/model"\nsave_steps = 7\n[[datasets]]\npath = "owner/name"\ntype = "conversation"\n')
    return path


def test_value_origin_owner_and_documentation(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hush")
    config = load({**MINIMAL, "run_name": "${HF_TOKEN}", "normuon_beta2": 0.5}, host, [("lora-rank", "8")])
    (row,) = rows(host, config, "lora-rank")
    wanted = ("lora_rank", "8", "command line", LORA, "a whole number >= 1")
    assert (row.key, row.value, row.origin, row.owner, row.wanted) == wanted
    (row,) = rows(host, config, "run_name")
    assert row.value == '"${HF_TOKEN}"'
    (row,) = rows(host, config, "normuon_beta2")  # not in force, still explained
    assert (row.value, row.origin) == ("0.5", "mapping")
    assert [row.key for row in rows(host, config, "messages_field")] == ["datasets.0.messages_field"]
    assert {row.key for row in rows(host, config, "datasets.0")} >= {"datasets.0.path", "datasets.0.type", "datasets.0.split"}
    assert len({row.key for row in rows(host, config)}) == len(rows(host, config))


def test_without_a_configuration(host: Host) -> None:
    (row,) = rows(host, None, "save_steps")
    assert (row.value, row.origin, row.owner) == ("50", "", "surogate")
    assert rows(host, None, "model")[0].value == "required"
    assert rows(host, None, "gpus")[0].doc == "Not available in this version."
    with pytest.raises(ConfigError, match='did you mean "save_steps"'):
        rows(host, None, "save_step")


def test_one_key(surogate: Callable[..., Result], config: Path) -> None:
    done = surogate("explain", config, "save-steps")
    assert done.stdout.splitlines() == [
        "save_steps = 7 (c.toml:2)",
        "  owner: surogate",
        "  consumer: surogate-loop-standard",
        "  wants: a whole number >= 1",
        "  Steps between checkpoints. One is always written at the end.",
    ]
    assert "save_steps = 9 (command line)" in surogate("explain", config, "save_steps", "--save-steps", "9").stdout
    assert f"  owner: {LORA}\n" in surogate("explain", config, "lora_rank").stdout


def test_all_keys(surogate: Callable[..., Result], config: Path) -> None:
    lines = surogate("explain", config).stdout.splitlines()
    assert lines[0].split() == ["key", "value", "origin", "owner", "consumer"]
    found = {line.split()[0]: line.split()[1:] for line in lines[1:]}
    assert found["save_steps"] == ["7", "c.toml:2", "surogate", "surogate-loop-standard"]
    assert found["datasets.0.type"] == ['"conversation"', "c.toml:5", "surogate", "surogate-dataset-conversation"]


def test_the_consumer_is_what_reads_a_key_in_this_run(host: Host) -> None:
    given = {**MINIMAL, "optimizer": "normuon", "lr_scheduler_type": "cosine", "lora": False, "report_to": ["aim", "wandb"]}
    found = {row.key: row.consumer for row in rows(host, load({**given, "fp8_amax_history": 4, "model_dtype": "fp32"}, host))}
    assert found["optimizer"] == found["adamw_beta1"] == found["normuon_beta2"] == "surogate-optimizer-normuon"
    assert found["lr_scheduler_type"] == "surogate-schedule-standard"
    assert found["report_to"] == "surogate-logger-aim, surogate-logger-wandb"
    assert found["fp8_amax_history"] == found["adapter"] == found["lora_rank"] == NOBODY
    assert found["lora"] == found["weight_decay"] == "surogate"
    assert found["datasets.0.path"] == found["sequence_len"] == "surogate-pipeline-packed"
    assert found["datasets.0.messages_field"] == found["datasets.0.type"] == "surogate-dataset-conversation"


@pytest.mark.parametrize("chooser", READ_BY)
def test_what_is_said_to_read_the_keys_of_the_core_reads_them(host: Host, chooser: str) -> None:
    """Looked up in the sources of the offer that is chosen by default."""
    offer = host.offer(CHOSEN_BY[chooser], getattr(load(MINIMAL, host).core, chooser))
    spec = importlib.util.find_spec(offer.build.partition(".")[0])
    assert spec
    assert spec.origin
    source = "".join(path.read_text() for path in Path(spec.origin).parent.rglob("*.py"))
    assert [key for key in READ_BY[chooser] if not re.search(rf"(config|core)\.{key}\b", source)] == []


def test_without_a_file_and_without_data(surogate: Callable[..., Result], tmp_path: Path) -> None:
    assert surogate("explain", "lora_rank").stdout.startswith(f"lora_rank = 16\n  owner: {LORA}\n")
    assert surogate("explain").stdout.splitlines()[0].split() == ["key", "default", "owner", "meaning"]
    done = surogate("explain", "save_step")
    assert done.exit_code == 2
    assert "there is no key save_step" in done.stderr
    assert 'did you mean "save_steps"?' in done.stderr
    assert surogate("explain", "--save-steps", "3").exit_code == 2
    (tmp_path / "c.toml").write_text('model = "owner/model"\n')
    assert surogate("explain", tmp_path / "c.toml", "model").exit_code == 0


ROOT = Path(__file__).resolve().parents[4]
EXAMPLES = [
    *(pytest.param(path.read_text(), id=path.stem) for path in sorted((ROOT / "examples").rglob("*.toml"))),
    *(
        pytest.param(block, id=f"{page.parent.name}-{number}")
        for page in sorted([ROOT / "README.md", ROOT / "docs/images.md", *ROOT.glob("plugins/*/*/README.md")])
        for number, block in enumerate(re.findall(r"^```toml\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL))
    ),
]
"""The configurations of the examples and of the documents, and the parts of one that the READMEs of plugins show."""


def completed(text: str) -> str:
    """With a model and a data set, where the text has none."""
    given = tomllib.loads(text)
    head = "" if "model" in given else 'model = "owner/model"\n'
    return head + text + ("" if "datasets" in given else '[[datasets]]\npath = "owner/name"\ntype = "conversation"\n')


@pytest.mark.parametrize("text", EXAMPLES)
def test_every_resolved_key_of_every_example_has_origin_owner_and_consumer(
    host: Host, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Installed plugins; a key that the file sets comes from its line, found here by reading the file anew."""
    text = completed(text)
    monkeypatch.chdir(tmp_path)
    for name in re.findall(r'^model = "(.+)"', text, re.MULTILINE):
        (tmp_path / name).mkdir(parents=True)
    for name in re.findall(r'^path = "(.+)"', text, re.MULTILINE):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}\n")
    (tmp_path / "example.toml").write_text(text)
    config = load(tmp_path / "example.toml", host)
    owners = {str(plugin.owner) for plugin in host.plugins} | {"surogate"}
    found = {row.key: row for row in rows(host, config)}
    assert set(config.resolved()) <= set(found) | {"datasets", "validation_datasets"}
    for row in found.values():
        assert row.origin, row.key
        assert row.owner in owners, row.key
        assert row.consumer, row.key
        assert row.consumer == NOBODY or set(row.consumer.split(", ")) <= {owner.split()[0] for owner in owners}, row.key
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("["):
            break
        key, equals, _ = line.partition("=")
        if equals and not line.startswith("#") and key.strip().isidentifier():
            assert found[key.strip()].origin.endswith(f"example.toml:{number}"), key
    assert {row.origin for row in found.values()} > {"default"}
