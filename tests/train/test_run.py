"""Whole runs on a tiny model: what is written, how a run is continued, and what is refused."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from surogate_command_plan import exhausted
from surogate_model_transformers.source import Transformers
from surogate_optimizer_adamw.update import State
from surogate_pipeline_packed.batches import Batches

import surogate_core
from surogate_core import testing
from surogate_core.config import load
from surogate_core.contracts import Summary
from surogate_core.errors import NonFiniteLoss, OutOfMemory, PlanError, Problem, ResumeError
from surogate_core.host import load_host
from surogate_core.train.run import execute

TEXT = [{"text": f"Number {number} is followed by {number + 1}; twice {number} is {2 * number}."} for number in range(60)]
PAIRS = [{"q": f"What is {number} + 1?", "a": f"It is {number + 1}."} for number in range(30)]


@pytest.fixture
def config(tiny: Path, tmp_path: Path) -> dict[str, Any]:
    return {
        "model": str(tiny),
        "output_dir": str(tmp_path / "out"),
        "model_dtype": "fp32",
        "sequence_len": 64,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "max_steps": 6,
        "save_steps": 2,
        "eval_steps": 3,
        "learning_rate": 3e-3,
        "recompute": False,
        "dataloader_num_workers": 0,
        "datasets": [{"path": str(testing.write_rows(tmp_path / "text.jsonl", TEXT)), "type": "text"}],
    }


def lora(config: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    rows = testing.write_rows(tmp_path / "pairs.jsonl", PAIRS)
    table = {"path": str(rows), "type": "instruction", "instruction_field": "q", "output_field": "a"}
    return {**config, "datasets": [table], "lora_rank": 4, "lora_dropout": 0.1, "sequence_len": 96}


def records(summary: Summary, kind: str) -> list[dict[str, Any]]:
    lines = (summary.output_dir / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


def losses_of(directory: Path) -> list[tuple[int, float]]:
    lines = map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())
    return [(record["step"], record["loss"]) for record in lines if record["kind"] == "step"]


def losses(summary: Summary) -> list[tuple[int, float, float, float]]:
    return [(record["step"], record["loss"], record["lr"], record["grad_norm"]) for record in records(summary, "step")]


def tensors(checkpoint: Path | None) -> dict[str, torch.Tensor]:
    assert checkpoint is not None
    found = {}
    for path in sorted(checkpoint.glob("*.safetensors")):
        found.update({f"{path.name}:{name}": tensor for name, tensor in load_file(path).items()})
    return found


def assert_same(one: Summary, two: Summary) -> None:
    assert losses(one) == losses(two)
    first, second = tensors(one.checkpoint), tensors(two.checkpoint)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def test_a_run_learns_and_leaves_all_that_is_needed(config: dict[str, Any]) -> None:
    summary = surogate_core.run(config)
    assert (summary.steps, summary.total_steps, summary.stopped) == (6, 6, None)
    steps = losses(summary)
    assert [step for step, *_ in steps] == list(range(1, 7))
    assert steps[-1][1] < steps[0][1] - 0.1
    assert [record["step"] for record in records(summary, "eval")] == [3, 6]
    assert [record["step"] for record in records(summary, "checkpoint")] == [2, 4, 6]
    assert summary.checkpoint == (summary.output_dir / "last").resolve() == (summary.output_dir / "checkpoint-00000006").resolve()
    state = json.loads((summary.checkpoint / "state.json").read_text())
    assert state["finished"]
    assert state["environment"]["plugins"]["surogate-optimizer-adamw-8bit"]
    assert state["ledger"]["rows"]["read"] == len(TEXT)
    assert not [path for path in summary.output_dir.rglob("*") if path.suffix in (".bin", ".pt", ".pkl")]
    ids = torch.arange(8)[None]
    exported = transformers.AutoModelForCausalLM.from_pretrained(summary.checkpoint)
    assert exported(ids).logits.shape == (1, 8, 264)
    assert transformers.AutoTokenizer.from_pretrained(summary.checkpoint).eos_token == "<|im_end|>"
    ledger = records(summary, "ledger")[0]
    assert ledger["rows"]["read"] == len(TEXT)
    assert ledger["pieces"] == {"of 33 to 64 tokens": len(TEXT) - 6}  # a tenth is held out


def test_waiting_for_data_is_counted_once(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The time split of the end, and the speed, from the seconds of the steps themselves."""
    step = Batches.step
    monkeypatch.setattr(Batches, "step", lambda *given: (time.sleep(0.05), step(*given))[1])
    summary = surogate_core.run({**config, "eval_steps": 100})
    steps = records(summary, "step")
    assert all(0.05 <= record["data_seconds"] <= record["seconds"] for record in steps)
    whole, waited = sum(record["seconds"] for record in steps), sum(record["data_seconds"] for record in steps)
    assert summary.seconds["data"] == pytest.approx(waited, abs=1e-3)
    assert summary.seconds["compute"] == pytest.approx(whole - waited, abs=1e-3)
    assert summary.tokens_per_s == pytest.approx(sum(record["tokens"] for record in steps) / whole, rel=1e-3)
    assert steps[0]["data_seconds"] < summary.first_step


def test_the_first_loss_is_that_of_the_untrained_model(config: dict[str, Any], tiny: Path) -> None:
    """Against transformers' own model and loss on the same document."""
    text = TEXT[0]["text"]
    config["datasets"][0]["path"] = str(testing.write_rows(Path(config["output_dir"]).parent / "one.jsonl", [{"text": text}]))
    summary = surogate_core.run({**config, "max_steps": 1, "validation_split_ratio": 0.0, "sequence_len": 128})
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny)
    ids = torch.tensor([[*tokenizer(text)["input_ids"], tokenizer.eos_token_id]])
    reference = transformers.AutoModelForCausalLM.from_pretrained(tiny)
    assert losses(summary)[0][1] == pytest.approx(float(reference(ids, labels=ids).loss.detach()), abs=1e-5)


MASTERS: dict[str, dict[str, Any]] = {
    "full": {},
    "rounded": {"model_dtype": "bf16", "master_dtype": "bf16"},
    "masters": {"model_dtype": "bf16", "master_dtype": "fp32"},
}


@pytest.mark.parametrize("kind", [*MASTERS, "lora"])
@pytest.mark.parametrize("optimizer", ["adamw", "adamw_8bit", "normuon"])
def test_stopping_and_continuing_changes_nothing(config: dict[str, Any], tmp_path: Path, kind: str, optimizer: str) -> None:
    """With each optimizer, and with float32 weights, bfloat16 ones that are rounded, those with masters, and an adapter's."""
    config = {**(lora(config, tmp_path) if kind == "lora" else {**config, **MASTERS[kind]}), "optimizer": optimizer}
    whole = surogate_core.run({**config, "output_dir": str(tmp_path / "whole")})
    half = surogate_core.run({**config, "output_dir": str(tmp_path / "parts"), "save_steps": 4}, max_steps=6)
    for path in half.output_dir.glob("checkpoint-00000006*"):
        path.rename(half.output_dir / "gone")
    (half.output_dir / "last").unlink()
    parts = surogate_core.run({**config, "output_dir": str(tmp_path / "parts"), "save_steps": 4})
    assert [record["step"] for record in records(parts, "run")][-1] == 4
    assert_same(whole, parts)


def test_a_finished_run_says_so_and_a_larger_max_steps_extends_it(
    config: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    first = surogate_core.run(config)
    capsys.readouterr()
    again = surogate_core.run(config)
    assert "already finished" in capsys.readouterr().out
    assert again.checkpoint == first.checkpoint
    longer = surogate_core.run({**config, "max_steps": 8})
    assert [step for step, *_ in losses(longer)] == list(range(1, 9))


def test_drift_is_listed_field_by_field_and_refused(config: dict[str, Any]) -> None:
    surogate_core.run({**config, "max_steps": 2})
    with pytest.raises(ResumeError) as caught:
        surogate_core.run({**config, "max_steps": 4, "learning_rate": 1e-2, "weight_decay": 0.0})
    whats = [problem.what for problem in caught.value.problems]
    assert "learning_rate: 0.003 in the checkpoint, 0.01 now" in whats
    assert "weight_decay: 0.1 in the checkpoint, 0.0 now" in whats
    assert len(whats) == 2
    assert "--allow-drift" in caught.value.problems[0].how


@pytest.mark.parametrize(("then", "now"), [("adamw", "adamw_8bit"), ("adamw_8bit", "normuon"), ("normuon", "adamw")])
def test_a_checkpoint_of_another_optimizer_is_refused_by_name(config: dict[str, Any], then: str, now: str) -> None:
    surogate_core.run({**config, "optimizer": then, "max_steps": 2})
    with pytest.raises(ResumeError) as caught:
        surogate_core.run({**config, "optimizer": now, "max_steps": 4})
    assert f'optimizer: "{then}" in the checkpoint, "{now}" now' in [problem.what for problem in caught.value.problems]
    host = load_host()
    with pytest.raises(ResumeError, match=f"the optimizer state is not one of {now} for these parameters: "):
        execute(load({**config, "optimizer": now, "max_steps": 4}, host), host, allow_drift=True)


@pytest.mark.parametrize("given", [{"warmup_steps": 500}, {"warmup_steps": 3, "cooldown_steps": 498}])
def test_a_warmup_longer_than_what_the_data_give_is_refused(config: dict[str, Any], given: dict[str, int]) -> None:
    with pytest.raises(PlanError, match=r"are longer than the run: the data give \d+ steps") as caught:
        surogate_core.run({**config, "max_steps": -1, "num_epochs": 1, **given})
    assert f"warmup ({given['warmup_steps']} steps)" in str(caught.value)
    assert not (Path(config["output_dir"]) / "checkpoint-00000001").exists()


def test_what_cannot_change_the_result_is_no_drift(config: dict[str, Any]) -> None:
    surogate_core.run({**config, "max_steps": 2})
    changed = {"run_name": "other", "save_steps": 3, "eval_steps": 2, "save_total_limit": 2, "dataloader_num_workers": 1}
    assert surogate_core.run({**config, **changed, "max_steps": 4}).steps == 4


def test_changed_data_are_drift(config: dict[str, Any], tmp_path: Path) -> None:
    surogate_core.run({**config, "max_steps": 2})
    testing.write_rows(tmp_path / "text.jsonl", TEXT[:-1])
    with pytest.raises(ResumeError, match=r"^data: "):
        surogate_core.run({**config, "max_steps": 4})


def test_resume_from_checkpoint_false_never_overwrites(config: dict[str, Any]) -> None:
    surogate_core.run({**config, "max_steps": 2})
    with pytest.raises(ResumeError, match="resume_from_checkpoint is false"):
        surogate_core.run({**config, "resume_from_checkpoint": False})


def test_the_newest_complete_checkpoint_is_found_past_a_torn_one(
    config: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    first = surogate_core.run(config)
    whole = losses(first)
    path = first.output_dir / "checkpoint-00000006" / "optimizer.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    capsys.readouterr()
    again = surogate_core.run(config)
    out = capsys.readouterr().out
    assert "checkpoint-00000006 is not complete and is passed over" in out
    assert "continuing from" in out
    assert losses(again) == whole


def test_a_changed_byte_in_a_checkpoint_is_noticed(config: dict[str, Any]) -> None:
    summary = surogate_core.run({**config, "max_steps": 2})
    path = summary.output_dir / "checkpoint-00000002" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(ResumeError, match=r"model\.safetensors"):
        surogate_core.run({**config, "max_steps": 4})


def test_old_checkpoints_go_and_best_and_last_stay(config: dict[str, Any]) -> None:
    summary = surogate_core.run({**config, "save_steps": 1, "save_total_limit": 2, "eval_steps": 2})
    names = {path.name for path in summary.output_dir.glob("checkpoint-*")}
    assert len(names) == 2
    assert (summary.output_dir / "last").resolve().name in names
    assert (summary.output_dir / "best").resolve().name in names
    best = min(records(summary, "eval"), key=lambda record: record["loss"])
    assert (summary.output_dir / "best").resolve().name == f"checkpoint-{best['step']:08d}"


def test_epochs_and_seeds(config: dict[str, Any], tmp_path: Path) -> None:
    config.pop("max_steps")
    one = surogate_core.run({**config, "num_epochs": 1, "output_dir": str(tmp_path / "one")})
    two = surogate_core.run({**config, "num_epochs": 2, "output_dir": str(tmp_path / "two")})
    assert one.total_steps < two.total_steps <= 2 * one.total_steps
    other = surogate_core.run({**config, "num_epochs": 1, "train_seed": 5, "output_dir": str(tmp_path / "other")})
    assert losses(one)[0][1] != losses(other)[0][1]


def test_a_non_finite_loss_names_step_rate_and_samples(config: dict[str, Any], tiny: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in tiny.iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"][0] = math.nan
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(NonFiniteLoss, match=r"loss nan .* at step 1, learning rate 0.003") as caught:
        surogate_core.run({**config, "model": str(broken), "validation_split_ratio": 0.0})
    assert "text.jsonl:" in caught.value.problems[0].where
    assert not list(Path(config["output_dir"]).glob("checkpoint-*"))


PARTS = {"forward": (Transformers, "loss", 4), "backward": (torch.Tensor, "backward", 4), "optimizer": (State, "step", 2)}
"""What is called in a part, and which call of it is in the second step, in its second micro-batch."""


@pytest.mark.parametrize(
    "said", ["CUDA out of memory. Tried to allocate 2.00 GiB", "DefaultCPUAllocator: can't allocate memory: 9"]
)
@pytest.mark.parametrize("part", PARTS)
def test_out_of_memory_names_step_and_part_and_asks_plugins(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch, part: str, said: str
) -> None:
    """What a plugin says of it takes the place of the general advice."""
    owner, name, fatal = PARTS[part]
    original, calls = getattr(owner, name), 0

    def fails(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == fatal:
            raise (torch.OutOfMemoryError if "CUDA" in said else RuntimeError)(said)
        return original(*arguments, **named)

    monkeypatch.setattr(owner, name, fails)
    asked: list[tuple[str, int]] = []
    monkeypatch.setattr(exhausted, "explain", lambda run, part, step: asked.append((part, step)))
    given = {**config, "optimizer": "adamw", "save_steps": 1, "max_steps": 3}
    with pytest.raises(OutOfMemory) as caught:
        surogate_core.run(given)
    assert caught.value.exit_code == 1
    (problem,) = caught.value.problems
    assert (problem.what, problem.where) == (f"out of memory in step 2, {part}", said)
    assert "recompute = true" in problem.how
    assert asked == [(part, 2)]
    assert (Path(config["output_dir"]) / "checkpoint-00000001").is_dir()
    calls = 0
    monkeypatch.setattr(exhausted, "explain", lambda run, part, step: Problem("planned", "here", "so"))
    with pytest.raises(OutOfMemory, match="planned"):
        surogate_core.run({**given, "output_dir": config["output_dir"] + "-again"})


def test_other_errors_of_torch_are_not_taken_for_it(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(Transformers, "loss", broken)
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        surogate_core.run(config)


def test_two_runs_cannot_share_a_directory(config: dict[str, Any]) -> None:
    from surogate_loop_standard.lock import OutputLock

    code = f"from pathlib import Path\nfrom surogate_loop_standard.lock import OutputLock\nimport sys\n\
with OutputLock(Path({config['output_dir']!r})):\n    print('held', flush=True)\n    sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(ResumeError, match=f"process {other.pid}"):
            surogate_core.run(config)
        other.kill()
    with OutputLock(Path(config["output_dir"])):
        pass


def start(config: dict[str, Any], tmp_path: Path) -> subprocess.Popen[str]:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    code = f"import json, surogate_core; surogate_core.run(json.load(open({str(path)!r})))"
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


def test_a_signal_saves_and_the_run_continues_where_it_was(config: dict[str, Any], tmp_path: Path) -> None:
    out = Path(config["output_dir"])
    config = {**config, "max_steps": 400, "save_steps": 400, "eval_steps": 400}
    with start(config, tmp_path) as process:
        wait_for(lambda: (out / "metrics.jsonl").exists() and '"step": 5,' in (out / "metrics.jsonl").read_text())
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=60)[0]
    assert "SIGTERM: stopping after this step; once more aborts" in said
    assert "Interrupted" in said
    assert "continue with: surogate run" in said
    (saved,) = out.glob("checkpoint-*")
    reached = int(saved.name[-8:])
    assert 5 <= reached < 400
    assert [step for step, *_ in losses_of(out)] == list(range(1, reached + 1))


def test_a_trigger_file_saves_on_demand(config: dict[str, Any], tmp_path: Path) -> None:
    out = Path(config["output_dir"])
    config = {**config, "max_steps": 400, "save_steps": 400, "eval_steps": 400}
    with start(config, tmp_path) as process:
        wait_for(lambda: (out / "metrics.jsonl").exists() and '"kind": "step"' in (out / "metrics.jsonl").read_text())
        (out / "SAVE").touch()
        wait_for(lambda: bool(list(out.glob("checkpoint-*"))))
        process.kill()
    assert not (out / "SAVE").exists()


def test_a_secret_reaches_no_file(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefghijklmnopqrstuvwxyz0123")
    summary = surogate_core.run({**config, "max_steps": 2, "run_name": "with ${HF_TOKEN}"})
    for path in summary.output_dir.rglob("*"):
        if path.is_file():
            assert b"abcdefghijklmnop" not in path.read_bytes(), path
