"""What a model directory or Hub repository says about itself: config.json, tokenizer, which files hold the weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from surogate_core.errors import ModelError
from surogate_model_transformers.held import read_form
from surogate_model_transformers.plugin import SCALED, Settings

CONFIG_FILES = ("*.json", "*.jinja", "tokenizer.model", "*.tiktoken", "merges.txt", "vocab.txt", "*.py")
SAFE_FILES = ("model.safetensors", "model.safetensors.index.json")
ROPE_KEPT = ("rope_theta", "partial_rotary_factor", "mrope_section", "mrope_interleaved")
PICKLE_FILES = ("pytorch_model.bin", "pytorch_model.bin.index.json")


def fetch(settings: Settings, source: str | Path | None = None, patterns: Sequence[str] = CONFIG_FILES) -> Path:
    """The directory that holds the files of ``source`` (default ``model``), downloaded first for a Hub repository. Raises
    ModelError where there is neither."""
    name = str(settings.core.model if source is None else source)
    if Path(name).is_dir():
        return Path(name)
    how = "give an existing directory, or owner/name of a Hugging Face repository"
    if Path(name).exists() or name.startswith(("/", ".", "~")) or name.count("/") > 1:
        raise ModelError(f"there is no model directory {name}", where="model", how=how)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=settings.own.revision, allow_patterns=list(patterns), ignore_patterns=["*/*"]))
    except Exception as error:  # the Hub client has dozens of kinds of failure; all mean the same here
        raise ModelError(
            f"there is no directory {name}, and no such Hugging Face repository can be read: {first_line(error)}",
            where="model" if settings.own.revision is None else f"model, revision {settings.own.revision!r}",
            how=how + "; for a private one, log in with `hf auth login`",
        ) from error


def read_config(settings: Settings) -> Any:
    """The transformers config of ``model`` with ``model_type``, ``rope_scaling`` and ``max_model_len`` applied.

    ``quantization_config`` is on it where the checkpoint is quantised already.

    Raises ModelError: no config.json, an unknown or contradicted model type, rows longer than the model's context, a checkpoint
    quantised in a form that cannot be read, or no weights beside it (unless ``from_scratch``)."""
    directory = fetch(settings)
    path = directory / "config.json"
    if not path.is_file():
        raise ModelError(
            f"{settings.core.model} has no config.json",
            where=str(directory),
            how="give the directory of a model in Hugging Face layout",
        )
    try:
        raw = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ModelError(f"config.json cannot be read: {error}", where=str(path)) from error
    config = _build(raw, _model_type(raw, settings, path), settings, path)
    if form := read_form(config, directory):
        config.quantization_config = form
    _apply_rope(config, settings, path)
    if not settings.core.from_scratch and settings.core.model == str(directory):
        weight_files(directory)
    return config


def load_tokenizer(settings: Settings, source: str | Path | None = None) -> Any:
    """The tokenizer of ``source`` (default ``model``). Raises ModelError where there is none."""
    from transformers import AutoTokenizer

    directory = fetch(settings, source)
    try:
        return AutoTokenizer.from_pretrained(directory, trust_remote_code=settings.own.trust_remote_code)
    except Exception as error:  # every tokenizer class fails in its own way
        raise ModelError(
            f"the tokenizer cannot be loaded: {first_line(error)}",
            where=str(directory),
            how="put tokenizer.json and tokenizer_config.json beside config.json; `surogate tokenizer train` makes them",
        ) from error


def weight_files(directory: Path) -> tuple[str, ...]:
    """Names of the weight files, safetensors before pickled ``.bin``. Raises ModelError where there are none."""
    for names in (SAFE_FILES, PICKLE_FILES):
        found = tuple(name for name in names if (directory / name).is_file())
        if found:
            return found
    raise ModelError(
        "the model directory has no weights",
        where=str(directory),
        how=f"put {' or '.join((SAFE_FILES[0], PICKLE_FILES[0]))} there, or set from_scratch = true to start from random ones",
    )


def context_length(config: Any) -> int | None:
    """Positions the model is made for, None where its config does not say."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def _model_type(raw: dict[str, Any], settings: Settings, path: Path) -> str:
    declared, wanted = raw.get("model_type"), settings.own.model_type
    if not declared and not wanted:
        raise ModelError("config.json names no model_type", str(path), "set model_type in the configuration, such as llama")
    if declared and wanted and not _plain(declared).startswith(_plain(wanted)):
        raise ModelError(
            f"the configuration says model_type {wanted!r}, the model's config.json {declared!r}",
            where=f"model_type; {path}",
            how=f"remove model_type or set it to {declared!r}",
        )
    return str(declared or wanted)


def _plain(name: str) -> str:
    return name.lower().replace("-", "_")


def _build(raw: dict[str, Any], model_type: str, settings: Settings, path: Path) -> Any:
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    own_code = "auto_map" in raw and settings.own.trust_remote_code
    if model_type not in CONFIG_MAPPING_NAMES and not own_code:
        near = get_close_matches(model_type, CONFIG_MAPPING_NAMES, n=1)
        how = f"did you mean {near[0]!r}? or upgrade transformers" if near else "upgrade transformers"
        if "auto_map" in raw:
            how = "the model comes with its own Python code: set trust_remote_code = true if you trust it"
        raise ModelError(f"unknown architecture: model_type {model_type!r}", where=str(path), how=how)
    try:
        if own_code or raw.get("model_type"):
            return AutoConfig.from_pretrained(path.parent, trust_remote_code=settings.own.trust_remote_code)
        return AutoConfig.for_model(model_type, **raw)
    except Exception as error:  # config classes validate in their own ways
        raise ModelError(f"config.json is not a valid {model_type} config: {first_line(error)}", where=str(path)) from error


def _apply_rope(config: Any, settings: Settings, path: Path) -> None:
    text = config.get_text_config()
    own = context_length(config)
    limit = own
    if settings.own.rope_scaling is not None:
        limit = _scale_rope(text, own, settings, path)
    elif settings.own.max_model_len is not None:
        if own is not None and settings.own.max_model_len > own:
            raise ModelError(
                f"max_model_len is {settings.own.max_model_len}, the model is made for {own} positions",
                where="max_model_len",
                how='add rope_scaling = "yarn" (or linear, dynamic) to reach further',
            )
        limit = settings.own.max_model_len
    if limit is not None and settings.core.sequence_len > limit:
        raise ModelError(
            f"sequence_len is {settings.core.sequence_len}, the model's context length is {limit}",
            where="sequence_len",
            how=f"lower it to {limit}, or reach further with rope_scaling and max_model_len",
        )


def _scale_rope(text: Any, own: int | None, settings: Settings, path: Path) -> int:
    """Put ``rope_scaling`` into ``rope_parameters`` and return the context length reached."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    wanted = str(settings.own.rope_scaling).strip()
    old = getattr(text, "rope_parameters", None)
    if not old or own is None:
        raise ModelError("this model has no rotary positions to scale", where=f"rope_scaling; {path}", how="remove rope_scaling")
    nested = isinstance(old.get("full_attention"), dict)
    current: dict[str, Any] = old["full_attention"] if nested else old
    if wanted.startswith("{"):
        try:
            new = json.loads(wanted)
        except ValueError as error:
            raise ModelError(f"rope_scaling is not valid JSON: {error}", where="rope_scaling") from error
        new["rope_type"] = new.pop("type", None) or new.get("rope_type", "default")
    else:
        new = {"rope_type": wanted}
    kind = new["rope_type"]
    if kind not in (SCALED if not wanted.startswith("{") else ("default", *ROPE_INIT_FUNCTIONS)):
        raise ModelError(f"rope_scaling {kind!r} is unknown", "rope_scaling", f"use {', '.join(SCALED)} or a JSON object")
    original = new.get("original_max_position_embeddings") or current.get("original_max_position_embeddings") or own
    if kind in SCALED and "factor" not in new:
        if settings.own.max_model_len is None:
            raise ModelError(
                f"rope_scaling {kind!r} needs max_model_len", "rope_scaling", "set max_model_len to the context length"
            )
        new["factor"] = settings.own.max_model_len / original
    reached = settings.own.max_model_len or int(original * new.get("factor", 1))
    if kind in SCALED and new["factor"] < 1:
        raise ModelError(f"max_model_len {reached} is below the model's own {original}", "max_model_len", "remove rope_scaling")
    kept = {key: current[key] for key in ROPE_KEPT if key in current}
    if kind in ("yarn", "longrope"):
        new.setdefault("original_max_position_embeddings", original)
    new = {**kept, **new}
    text.rope_parameters = {**old, "full_attention": new} if nested else new
    text.max_position_embeddings = original if kind == "dynamic" else reached
    return reached
