"""``eval``, ``generate`` and ``merge`` as commands, on a model trained for a few steps."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from surogate_adapter_lora.commands import eval_command, export_command, generate_command, merge_command
from surogate_adapter_lora.plugin import register_commands
from transformers import AutoModelForCausalLM, AutoTokenizer

import surogate_core
from surogate_core.errors import ModelError, ResumeError

PROMPT = "Once upon a time"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, stories: Path) -> Path:
    """A run of six LoRA steps; its directory holds ``c.toml`` and ``output``."""
    directory = tmp_path_factory.mktemp("run")
    (directory / "text.txt").write_text("The cat sat on the mat and looked at the moon. " * 120)
    (directory / "c.toml").write_text(
        f"""
model = "{stories}"
model_dtype = "fp32"
output_dir = "{directory / "output"}"
sequence_len = 64
max_steps = 6
learning_rate = 2e-2
lora = true
lora_dropout = 0.0
recompute = false
validation_split_ratio = 0.3
[[datasets]]
path = "{directory / "text.txt"}"
type = "text"
"""
    )
    surogate_core.run(directory / "c.toml")
    return directory


def run(command: object, *arguments: str) -> str:
    result = CliRunner().invoke(command, list(arguments), catch_exceptions=False)  # type: ignore[arg-type]
    assert result.exit_code == 0, result.output
    return result.stdout


def test_eval_gives_the_loss_that_the_run_recorded(trained: Path) -> None:
    records = [json.loads(line) for line in (trained / "output" / "metrics.jsonl").read_text().splitlines()]
    recorded = next(record for record in records if record["kind"] == "eval")
    before = sorted(trained.rglob("*"))
    shown = dict(line.split(maxsplit=1) for line in run(eval_command, str(trained / "c.toml")).splitlines())
    assert shown["loss"] == f"{recorded['loss']:.4f}"
    assert shown["tokens"] == str(recorded["tokens"])
    assert shown["perplexity"] == f"{recorded['perplexity']:.2f}"
    assert sorted(trained.rglob("*")) == before
    again = run(eval_command, str(trained / "c.toml"), "--checkpoint", str(trained / "output" / "last"))
    assert f"loss        {recorded['loss']:.4f}" in again
    with pytest.raises(ResumeError, match="there is no checkpoint"):
        run(eval_command, str(trained / "c.toml"), "--checkpoint", str(trained / "nothing"))


def greedy(source: Path, prompt: str, count: int) -> str:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32), AutoTokenizer.from_pretrained(source)
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        for _ in range(count):
            ids = torch.cat([ids, model(input_ids=ids).logits[:, -1:].argmax(-1)], dim=1)
    return str(tokenizer.decode(ids[0, -count:], skip_special_tokens=True))


def test_generate_is_greedy_decoding_of_the_model(stories: Path) -> None:
    assert run(generate_command, str(stories), "--prompt", PROMPT, "--max-new-tokens", "20").rstrip("\n") == greedy(
        stories, PROMPT, 20
    )


def test_generate_opens_runs_checkpoints_adapters_and_merged_models_alike(trained: Path, stories: Path, tmp_path: Path) -> None:
    output = trained / "output"
    run(merge_command, "--adapter", str(output / "last"), "--output", str(tmp_path / "merged"))
    wanted = greedy(tmp_path / "merged", PROMPT, 20)
    assert wanted != greedy(stories, PROMPT, 20)
    for arguments in (
        (str(trained / "c.toml"),),
        (str(output),),
        (str(output / "last"),),
        (str(stories), "--adapter", str(output / "last")),
        (str(tmp_path / "merged"),),
    ):
        assert run(generate_command, *arguments, "--prompt", PROMPT, "--max-new-tokens", "20").rstrip("\n") == wanted


def test_what_a_runs_output_generates_is_kept_in_its_directory(trained: Path, stories: Path, tmp_path: Path) -> None:
    output, copied = trained / "output", tmp_path / "copied"
    kept = output / "generations.jsonl"
    kept.unlink(missing_ok=True)
    few, stories_before = ("--max-new-tokens", "4"), sorted(stories.iterdir())
    run(generate_command, str(stories), "--adapter", str(output / "last"), "--prompt", PROMPT, *few)
    shutil.copytree(output / "last", copied)
    run(generate_command, str(copied), "--prompt", PROMPT, *few)  # a checkpoint that is in no run's directory
    assert not kept.exists()
    assert sorted(stories.iterdir()) == stories_before
    assert not list(tmp_path.rglob("generations.jsonl"))
    shown = []
    for number, source in enumerate((output / "last", output, trained / "c.toml")):
        shown.append(run(generate_command, str(source), "--prompt", f"{PROMPT} {number}", "--seed", "5", *few).rstrip("\n"))
    records = [json.loads(line) for line in kept.read_text().splitlines()]
    assert [(record["prompt"], record["text"]) for record in records] == [(f"{PROMPT} {n}", shown[n]) for n in range(3)]
    settings = {"max_new_tokens": 4, "temperature": 0.0, "chat": False, "seed": 5}
    for record in records:
        assert record["checkpoint"] == "checkpoint-00000006"
        assert record["adapters"]
        assert {name: record[name] for name in settings} == settings


def test_generations_that_cannot_be_kept_are_told(trained: Path) -> None:
    kept = trained / "output" / "generations.jsonl"
    kept.unlink(missing_ok=True)
    kept.mkdir()
    words = [str(trained / "output"), "--prompt", PROMPT, "--max-new-tokens", "4"]
    done = CliRunner().invoke(generate_command, words, catch_exceptions=False)
    kept.rmdir()
    assert done.exit_code == 0
    assert done.stderr == f"not kept in {kept}: Is a directory\n"


def test_sampling_depends_on_the_seed(stories: Path) -> None:
    def sample(seed: str) -> str:
        return run(
            generate_command, str(stories), "--prompt", PROMPT, "--temperature", "1.5", "--seed", seed, "--max-new-tokens", "20"
        )

    assert sample("1") == sample("1") != sample("2")


def test_generate_refuses_what_it_cannot_do(stories: Path, trained: Path, qwen: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no chat template"):
        run(generate_command, str(stories), "--prompt", PROMPT, "--chat")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ResumeError, match="there is no checkpoint"):
        run(generate_command, str(tmp_path / "empty"), "--prompt", PROMPT)
    with pytest.raises(ModelError, match="layers that this model does not have"):
        run(generate_command, str(qwen), "--adapter", str(trained / "output" / "last"), "--prompt", PROMPT)


def test_the_offers_name_the_commands() -> None:
    assert {offer.name: offer.load() for offer in register_commands()} == {
        "eval": eval_command,
        "generate": generate_command,
        "merge": merge_command,
        "export": export_command,
    }
