"""Models as the Hub has them: a revision of a repository, and code that comes with a model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
from surogate_model_transformers import read_config
from surogate_model_transformers.config import fetch

from surogate_core.errors import ModelError

CODE = """
from transformers import PretrainedConfig

class OwnConfig(PretrainedConfig):
    model_type = "{kind}"
"""


@pytest.fixture
def hub(tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Hub cache with two revisions of ``owner/tiny``; v2 has another context length."""
    repository = tmp_path / "hub" / "models--owner--tiny"
    for reference, commit, positions in (("main", "a" * 40, 64), ("v2", "b" * 40, 128)):
        directory = repository / "snapshots" / commit
        shutil.copytree(tiny("llama")[1], directory)
        raw = json.loads((directory / "config.json").read_text())
        (directory / "config.json").write_text(json.dumps({**raw, "max_position_embeddings": positions}))
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / reference).write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return repository


def test_the_revision_is_the_one_that_is_read(hub: Path, core: Any) -> None:
    assert fetch(core("owner/tiny")) == hub / "snapshots" / ("a" * 40)
    assert read_config(core("owner/tiny")).max_position_embeddings == 64
    assert read_config(core("owner/tiny", revision="v2")).max_position_embeddings == 128
    assert read_config(core("owner/tiny", revision="b" * 40)).max_position_embeddings == 128
    with pytest.raises(ModelError, match="no such Hugging Face repository") as caught:
        read_config(core("owner/tiny", revision="v3"))
    assert caught.value.problems[0].where == "model, revision 'v3'"


def test_code_of_the_model_runs_only_when_it_is_trusted(
    tiny: Any, core: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The module writes a file when it is imported: refusing must come before that."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    directory = tmp_path / "model"
    shutil.copytree(tiny("llama")[1], directory)
    trace = tmp_path / "it_ran"
    kind = "own_kind"
    (directory / "code_own.py").write_text(CODE.format(kind=kind) + f"\nopen({str(trace)!r}, 'w').close()\n")
    raw = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(
        json.dumps({**raw, "model_type": kind, "auto_map": {"AutoConfig": "code_own.OwnConfig"}})
    )
    with pytest.raises(ModelError, match="unknown architecture") as caught:
        read_config(core(directory))
    assert "trust_remote_code = true" in caught.value.problems[0].how
    assert not trace.exists()
    assert type(read_config(core(directory, trust_remote_code=True))).__name__ == "OwnConfig"
    assert trace.exists()
