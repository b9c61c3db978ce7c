from __future__ import annotations

import json
import re
from pathlib import Path

import surogate_core


def test_the_second_step_is_counted_and_shown_beside_the_plan(deep: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 400)
    config = {
        "model": str(deep),
        "lora": True,
        "model_dtype": "fp32",
        "sequence_len": 64,
        "max_steps": 3,
        "optimizer": "adamw",
        "eval_steps": 100,
        "dataloader_num_workers": 0,
        "debug_memory_breakdown": True,
        "datasets": [{"path": str(text), "type": "text"}],
    }
    for breakdown in (False, True):
        out = tmp_path / str(breakdown)
        surogate_core.run({**config, "debug_memory_breakdown": breakdown, "output_dir": str(out)})
        records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        texts = [record["text"] for record in records if record["kind"] == "notice"]
        said = [re.search(r"peak memory of step 2: .* counted\), planned .* \(([+-][\d.]+)%\)", text) for text in texts]
        differences = [abs(float(found[1])) for found in said if found]
        assert len(differences) == breakdown
    assert differences[0] <= 5
    weights = next(text for text in texts if text.startswith("  weights"))
    assert len(set(re.findall(r"[\d.]+ kB", weights))) == 1, "the weights are not what was planned"
    for buffer in ("adapter", "optimizer", "activations", "gradients"):
        assert any(text.startswith(f"  {buffer}") for text in texts), buffer
