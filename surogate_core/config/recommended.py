"""``apply_recommended_values``: values that most runs do well with, in place of the defaults of keys that the user left alone."""

from __future__ import annotations

import json
from typing import Any

from surogate_core.config.resolve import Reading

ALWAYS: dict[str, Any] = {"max_grad_norm": 1.0, "warmup_ratio": 0.03, "lr_scheduler_type": "cosine"}
WITH_LORA: dict[str, Any] = {"weight_decay": 0.01}


def recommend(reading: Reading, flat: dict[str, Any], origins: dict[str, str]) -> None:
    """Change what is neither given nor derived, with a notice for each. ``warmup_steps`` speaks for ``warmup_ratio`` too."""
    given = {*reading.given, *(["warmup_ratio"] if "warmup_steps" in reading.given else [])}
    for key, value in {**ALWAYS, **(WITH_LORA if flat["lora"] else {})}.items():
        if key not in given and flat[key] != value:
            reading.notices.append(f"{key} = {json.dumps(value)} is recommended (the default is {json.dumps(flat[key])})")
            flat[key], origins[key] = value, "recommended"
