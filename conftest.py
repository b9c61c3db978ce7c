from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent

for name, value in {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "DO_NOT_TRACK": "1", "WANDB_MODE": "offline"}.items():
    os.environ.setdefault(name, value)
if "SUROGATE_CACHE" not in os.environ:  # worker processes share the first one's
    os.environ["SUROGATE_CACHE"] = tempfile.mkdtemp(prefix="surogate-cache-")
    atexit.register(shutil.rmtree, os.environ["SUROGATE_CACHE"], ignore_errors=True)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen3 of 27,000 parameters with a byte tokenizer."""
    from surogate_model_transformers import testing as models_testing

    return models_testing.tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Directory of real corpora, tokenizers and a real model; see SUROGATE_TEST_DATA in CONTRIBUTING.md."""
    found = Path(os.environ.get("SUROGATE_TEST_DATA") or ROOT.parent / "shared" / "data")
    if not found.is_dir():
        pytest.skip(f"SUROGATE_TEST_DATA: {found} is not there")
    return found
