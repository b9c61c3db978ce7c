from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

for name, value in {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "DO_NOT_TRACK": "1", "WANDB_MODE": "offline"}.items():
    os.environ.setdefault(name, value)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Directory of real corpora, tokenizers and a real model; see SUROGATE_TEST_DATA in CONTRIBUTING.md."""
    found = Path(os.environ.get("SUROGATE_TEST_DATA") or ROOT.parent / "shared" / "data")
    if not found.is_dir():
        pytest.skip(f"SUROGATE_TEST_DATA: {found} is not there")
    return found
