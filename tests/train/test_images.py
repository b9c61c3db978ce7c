"""Whole runs of a tiny vision-language model on coloured squares."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file
from surogate_adapter_lora.merge import merge
from surogate_model_transformers.testing import tiny_vision_model

from surogate_core import testing
from surogate_core.config import load
from surogate_core.contracts import Summary
from surogate_core.errors import ResumeError
from surogate_core.host import load_host
from surogate_core.train.run import execute

COLOURS = {"red": (255, 0, 0), "sky": (0, 255, 255)}
BLIND = math.log(2) / 4
"""Mean loss of the four tokens of an answer for who knows everything but the colour."""
Run = Callable[..., tuple[Summary, list[dict[str, Any]]]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_vision_model(tmp_path_factory.mktemp("seeing"))


@pytest.fixture
def run(model: Path, tmp_path: Path) -> Run:
    """``run(name, **keys)`` → summary and step records of a run in the directory ``name``."""
    random = np.random.default_rng(0)
    rows = []
    for i in range(32):
        name = ("red", "sky")[int(random.integers(2))]
        Image.new("RGB", (16, 8), COLOURS[name]).save(tmp_path / f"{i}.png")
        turns = [{"role": "user", "content": "<image>Colour?"}, {"role": "assistant", "content": name}]
        rows.append({"messages": turns, "images": [f"{i}.png"]})
    rows.append({"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi."}]})
    testing.write_rows(tmp_path / "rows.jsonl", rows)
    base = {
        "model": str(model),
        "cache_dir": str(tmp_path / "cache"),
        "model_dtype": "fp32",
        "sequence_len": 128,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-2,
        "optimizer": "adamw",
        "weight_decay": 0.0,
        "save_steps": 1000,
        "eval_steps": 1000,
        "datasets": [{"path": str(tmp_path / "rows.jsonl"), "type": "conversation"}],
    }
    host = load_host()

    def make(name: str, **keys: Any) -> tuple[Summary, list[dict[str, Any]]]:
        summary = execute(load({**base, "output_dir": str(tmp_path / name), **keys}, host), host, quiet=True)
        return summary, [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]

    return make


def losses(records: list[dict[str, Any]]) -> list[float]:
    return [record["loss"] for record in records if record["kind"] == "step"]


def test_a_model_learns_what_it_sees(run: Run, tmp_path: Path, model: Path) -> None:
    """No loss below BLIND can be reached without the image: the colours are drawn, and every square has the same size."""
    keys = {"sequence_len": 256, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "recompute": False}
    summary, records = run("full", lora=False, max_steps=60, lr_scheduler_type="cosine", **keys)
    found = losses(records)
    assert found[0] > 5
    assert found[-1] < 0.7 * BLIND
    assert summary.eval_loss is not None
    assert summary.eval_loss < 0.7 * BLIND
    (ledger,) = [record for record in records if record["kind"] == "ledger"]
    assert ledger["images"] == {"read": 32, "kept": 32, "dropped": 0}
    assert summary.checkpoint is not None
    _transformers_answers(summary.checkpoint, tmp_path)


def _transformers_answers(checkpoint: Path, directory: Path) -> None:
    """What was saved answers rightly in transformers, whose own generate finds the positions."""
    model = transformers.AutoModelForImageTextToText.from_pretrained(checkpoint)
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    processor = transformers.AutoImageProcessor.from_pretrained(checkpoint, backend="pil")
    for name, colour in COLOURS.items():
        images = processor(images=[Image.new("RGB", (16, 8), colour)], return_tensors="pt")
        said = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Colour?"}]}]
        text = tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
        text = text.replace("<|image_pad|>", "<|image_pad|>" * 2)
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        types = (ids == model.config.image_token_id).int()
        with torch.no_grad():
            out = model.generate(input_ids=ids, mm_token_type_ids=types, **images, max_new_tokens=4, do_sample=False,
                                 eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)  # fmt: skip
        assert tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True) == name


def test_an_adapter_trains_and_ahead_and_on_the_fly_give_equal_losses(run: Run) -> None:
    (one, fly), (other, ahead) = (run(f"lora{way}", max_steps=12, multimodal_on_the_fly=way) for way in (True, False))
    assert losses(fly)[-1] < losses(fly)[0] - 0.1
    assert losses(fly) == losses(ahead)
    assert one.eval_loss == other.eval_loss
    assert one.checkpoint is not None
    names = load_file(one.checkpoint / "adapter_model.safetensors").keys()
    assert names
    assert all("language_model" in name for name in names)  # the vision tower is frozen
    assert (one.checkpoint / "preprocessor_config.json").is_file()
    merge(None, one.checkpoint, one.output_dir / "merged")
    assert (one.output_dir / "merged" / "preprocessor_config.json").is_file()


def test_a_run_continues_with_the_same_bits_and_not_with_other_images(run: Run, tmp_path: Path) -> None:
    keys = {"lora": False, "model_dtype": "bf16", "lr_scheduler_type": "constant"}
    whole, records = run("whole", max_steps=6, **keys)
    run("parts", max_steps=3, **keys)
    parts, continued = run("parts", max_steps=6, **keys)
    assert losses(continued) == losses(records)
    assert whole.checkpoint is not None
    assert parts.checkpoint is not None
    one, other = (load_file(summary.checkpoint / "model.safetensors") for summary in (whole, parts) if summary.checkpoint)
    assert all(torch.equal(one[name], other[name]) for name in one)
    Image.new("RGB", (16, 8), (1, 2, 3)).save(tmp_path / "0.png")
    with pytest.raises(ResumeError):
        run("parts", max_steps=9, **keys)


def test_packing_changes_no_loss(run: Run) -> None:
    keys = {"max_steps": 1, "validation_split_ratio": 0.5, "learning_rate": 1e-12}
    (packed, _), (alone, _) = (run(f"packing{way}", sample_packing=way, **keys) for way in (True, False))
    assert packed.eval_loss == pytest.approx(alone.eval_loss, abs=1e-5)
