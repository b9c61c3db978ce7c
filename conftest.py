from __future__ import annotations

import atexit
import itertools
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent

for name, value in {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "DO_NOT_TRACK": "1", "WANDB_MODE": "offline"}.items():
    os.environ.setdefault(name, value)
if "SUROGATE_CACHE" not in os.environ:  # worker processes share the first one's
    os.environ["SUROGATE_CACHE"] = tempfile.mkdtemp(prefix="surogate-cache-")
    atexit.register(shutil.rmtree, os.environ["SUROGATE_CACHE"], ignore_errors=True)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """``@pytest.mark.prove("300 kills take half an hour")`` runs only in ``make prove``. Groups: pytest-xdist 3.8 writes an item's
    behind `@` into an attribute that pytest 9.2 does not read; without this, tests that must not run at once do."""
    for item in items:
        mark = item.get_closest_marker("prove")
        if mark and mark.args and not os.environ.get("SUROGATE_PROVE"):
            item.add_marker(pytest.mark.skip(reason=f"{mark.args[0]}: make prove (SUROGATE_PROVE=1)"))
        grouped = getattr(item, "_nodeid", item.nodeid)
        if grouped != item.nodeid:
            item._id = type(item.id).parse(grouped)  # type: ignore[attr-defined]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen3 of 27,000 parameters with a byte tokenizer."""
    from surogate_model_transformers import testing as models_testing

    return models_testing.tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Directory of real corpora, tokenizers and a real model; see SUROGATE_TEST_DATA in CONTRIBUTING.md. Where that is set, as by
    ``.ci/run``, they have to be there."""
    named = os.environ.get("SUROGATE_TEST_DATA")
    found = Path(named or ROOT.parent / "shared" / "data")
    if not (found / "models").is_dir():
        missing = f"no test data in {found}: SUROGATE_TEST_DATA has to name the directory that holds models/, pretrain/, chat/"
        pytest.fail(missing) if named else pytest.skip(missing)
    return found


@pytest.fixture(scope="session")
def byte_starts() -> Callable[[Any, list[int], bytes], list[int]]:
    """(tokenizer, ids, text) → where each token starts in the text, from the spelling of the tokens alone."""

    def starts(tokenizer: Any, ids: list[int], text: bytes) -> list[int]:
        added = {str(token) for token in tokenizer.added_tokens_decoder.values()}
        spelt = tokenizer.convert_ids_to_tokens(ids)
        pieced = any("▁" in token for token in spelt)
        sizes = []
        for token in spelt:
            if token in added:
                sizes.append(len(token.encode()))
            elif pieced:
                sizes.append(1 if re.fullmatch(r"<0x[0-9A-F]{2}>", token) else len(token.replace("▁", " ").encode()))
            else:
                sizes.append(len(token))  # byte-level: one character a byte
        extra = sum(sizes) - len(text)
        assert extra == (1 if pieced else 0)  # sentencepiece puts a space before the text
        return [max(0, start - extra) for start in [0, *itertools.accumulate(sizes)][:-1]]

    return starts
