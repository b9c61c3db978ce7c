"""Trained models put to use: evaluated as they were trained, or generating text through transformers' own ``generate``."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import surogate_model_transformers as models
import torch
from attrs import evolve, frozen
from surogate_model_transformers.plugin import Options as ModelOptions
from surogate_model_transformers.plugin import Settings

from surogate_adapter_lora.combine import plain_only
from surogate_adapter_lora.layer import Several, put_together
from surogate_adapter_lora.parts import put_in
from surogate_adapter_lora.peft_format import CONFIG, Stored, is_lora, misfits, read, read_config
from surogate_core.config import Config, CoreOptions, load
from surogate_core.contracts import Context, Site, Storage
from surogate_core.errors import DataError, ModelError, ResumeError
from surogate_core.host import load_host
from surogate_core.plan import make_plan
from surogate_core.train.evaluate import Evaluation, evaluate
from surogate_core.train.setup import build

RECORDS = "metrics.jsonl"
SHORTEST = 2
"""Rows are not used here: the smallest length fits every model's context."""


# ---------------------------------------------------------------- eval
def evaluate_config(path: Path, checkpoint: Path | None, report: Callable[[str], None]) -> tuple[Evaluation, str]:
    """The loss on the validation data of a configuration, and what was evaluated. Reads only."""
    host = load_host()
    config = load(path, host)
    plan = make_plan(config, host)
    core = config.core
    found = newest_checkpoint(config) if checkpoint is None else checkpoint_at(checkpoint)
    if found is not None and (found / CONFIG).is_file() is (plan.adapter is None):
        holds = "an adapter" if plan.adapter is None else "a whole model"
        raise ResumeError(
            f"the checkpoint holds {holds}, the configuration has lora = {str(core.lora).lower()}",
            where=str(found),
            how="use the configuration of that run",
        )
    data = plan.pipeline.prepare(plan.model_source.tokenizer(), report)
    batches = data.validation(core.per_device_train_batch_size)
    if batches is None:
        raise DataError(
            "there are no validation data", where=str(path), how="add [[validation_datasets]] or set validation_split_ratio above 0"
        )
    trainee = build(plan, weights=found if plan.adapter is None else None, notice=report)
    if found is not None and plan.adapter is not None:
        plan.adapter.load(trainee.adapters, found)
    return evaluate(trainee.model, batches, plan.parallelism, plan.model_source.loss), str(found or core.model)


def newest_checkpoint(config: Config) -> Path | None:
    return _newest(Path(config.core.checkpoint_dir or config.core.output_dir), config.core.checkpoint_store)


def checkpoint_at(path: Path) -> Path:
    """A checkpoint directory, or the newest checkpoint of a run's directory."""
    if (path / "state.json").is_file():
        return path.resolve()
    saved = _newest(path)
    if saved is None:
        raise ResumeError(f"there is no checkpoint {path}", where=str(path), how="give a directory checkpoint-NNNNNNNN of a run")
    return saved


def _newest(root: Path, store: str = "local") -> Path | None:
    offer = load_host().offer("checkpoints", store)
    context = Context(config=CoreOptions(model="", checkpoint_store=store))
    saved = offer.load()(offer.options() if offer.options else None, context)(root, 1).newest()
    return saved.path if saved else None


def run_of(source: str) -> tuple[Path, Path] | None:
    """The directory of the run and the checkpoint that ``source`` stands for: a run's config file, its directory or one of its
    checkpoints. None for a model that is no run's output."""
    path, checkpoint = Path(source), None
    if path.is_file():
        config = load(path, load_host(), need_data=False)
        path, checkpoint = Path(config.core.output_dir), newest_checkpoint(config)
    elif (path / "state.json").is_file() or (path / RECORDS).is_file():
        checkpoint = checkpoint_at(path)
        path = path if (path / RECORDS).is_file() else checkpoint.parent
    return (path, checkpoint) if checkpoint and (path / RECORDS).is_file() else None


# ---------------------------------------------------------------- generate
@frozen
class Opened:
    """A model in evaluation mode with transformers' own attention, its tokenizer, and the adapters on it."""

    model: Any
    tokenizer: Any
    adapters: tuple[tuple[Path, Stored], ...] = ()

    def use(self, *numbers: int) -> None:
        """Put these adapters (by number, in the order in which they were given) in use, all at once, and no other; without numbers
        the base model. Nothing is loaded or copied. Raises ModelError for a DoRA adapter among several."""
        plain_only([self.adapters[number][1] for number in numbers], "adapters in use")
        if not numbers and any(adapter.parts for _, adapter in self.adapters):
            raise ModelError("the base model was changed by modules trained whole", where="adapters in use", how="open it alone")
        for module in self.model.modules():
            if isinstance(module, Several):
                module.active = numbers


def open_model(source: str, adapters: Sequence[Path] = (), dtype: Literal["fp32", "bf16"] | None = None) -> Opened:
    """Load ``source``: a model, an adapter, a checkpoint, a run's directory, or a run's config file; ``adapters`` go on top, beside
    each other. The first is in use. With a config file the base is held as that run holds it, quantised or not."""
    settings = settings_of(source, dtype)
    places = [adapter_at(adapter) for adapter in adapters]
    if Path(settings.core.model, CONFIG).is_file():
        if not places and Path(settings.core.model, "surogate.json").is_file() and not is_lora(Path(settings.core.model)):
            return _of_a_run(Path(settings.core.model), dtype)
        places.insert(0, Path(settings.core.model))
        settings = _with(settings, model=str(read_config(places[0]).get("base_model_name_or_path") or ""))
    hf_config = models.read_config(settings)
    settings = _with(settings, sequence_len=models.context_length(hf_config) or SHORTEST)
    sites = models.list_sites(models.skeleton(hf_config, settings)) if places else ()
    stored = tuple((place, adapter_for(place, sites)) for place in places)
    if any(adapter.parts for _, adapter in stored):
        plain_only([adapter for _, adapter in stored], "--adapter")
    storages, device = _storages_of(source), "cuda" if torch.cuda.is_available() else "cpu"
    model = models.load_model(hf_config, settings, device=device, prepare=lambda made: models.fill_slots(made, {}, {}, storages))
    for place, adapter in stored:
        put_in(model, adapter.parts, str(place))
    put_together(model, [adapter for _, adapter in stored])
    own_tokenizer = next((place for place in places if (place / "tokenizer_config.json").is_file()), None)
    tokenizer = models.load_tokenizer(settings, own_tokenizer)
    _plain_attention(model)
    return Opened(model.eval(), tokenizer, stored)


def _of_a_run(checkpoint: Path, dtype: Literal["fp32", "bf16"] | None) -> Opened:
    """Another kind of adapter: virtual tokens are put on the base model by PEFT, others built by their own plugin from the
    configuration in the checkpoint. Raises ModelError where PEFT is wanted and missing."""
    written = json.loads((checkpoint / "surogate.json").read_text(encoding="utf-8"))
    kept = {key: value for key, value in written.items() if key.split(".")[0] not in ("datasets", "validation_datasets")}
    changes = {"recompute": False, "compile": False, **({"model_dtype": dtype} if dtype else {})}
    host = load_host()
    plan = make_plan(load({**kept, **changes}, host, need_data=False), host)
    tokenizer = models.load_tokenizer(models.Settings(plan.config.core), checkpoint)
    if plan.adapted():
        trainee = build(plan)
        assert plan.adapter is not None
        plan.adapter.load(trainee.adapters, checkpoint)
        _plain_attention(trainee.model)
        return Opened(trainee.model.eval(), tokenizer)
    try:
        import peft
    except ImportError as error:
        raise ModelError("virtual tokens generate through PEFT", where=str(checkpoint), how="pip install peft") from error
    model: Any = plan.model_source.load({}, {}, {}, device=plan.parallelism.device())
    _plain_attention(model)
    return Opened(peft.PeftModel.from_pretrained(model, checkpoint).eval(), tokenizer)


def adapter_at(path: Path) -> Path:
    """An adapter's own directory: this one, or the newest checkpoint of a run's directory."""
    return path if (path / CONFIG).is_file() else checkpoint_at(path)


def settings_of(source: str, dtype: Literal["fp32", "bf16"] | None) -> Settings:
    path = Path(source)
    chosen = dtype or ("bf16" if torch.cuda.is_available() else "fp32")
    if path.is_file():
        config = load(path, load_host(), need_data=False)
        found = newest_checkpoint(config)
        kept = evolve(config.core, model_dtype=dtype or config.core.model_dtype, from_scratch=False, sequence_len=SHORTEST)
        return Settings(kept if found is None else evolve(kept, model=str(found)), config.of(ModelOptions))
    if path.is_dir() and not (path / "config.json").is_file() and not (path / CONFIG).is_file():
        path = checkpoint_at(path)
    core = CoreOptions(model=str(path) if path.is_dir() else source, lora=False, model_dtype=chosen, sequence_len=SHORTEST)
    return Settings(core)


def _storages_of(source: str) -> dict[str, Storage]:
    """What holds the weights in the run of a config file; nothing for another source."""
    if not Path(source).is_file():
        return {}
    host = load_host()
    plan = make_plan(load(Path(source), host, need_data=False), host)
    with torch.device("meta"):
        parts = [part for site in plan.stored() for part in site.parts]
        return {part.name: plan.quantizer.storage(part) for part in parts} if plan.quantizer else {}


def _with(settings: Settings, **changes: Any) -> Settings:
    return evolve(settings, core=evolve(settings.core, **changes))


def adapter_for(directory: Path, sites: tuple[Site, ...]) -> Stored:
    """The adapter of a directory. Raises ModelError when it is none of a model with these sites."""
    stored = read(directory)
    if wrong := misfits(stored, sites):
        raise ModelError(
            f"the adapter adapts layers that this model does not have: {wrong[0]}",
            where=str(directory),
            how="use the base model that it was made with",
        )
    return stored


def _plain_attention(model: Any) -> None:
    """transformers' own attention: sdpa, or eager for families that do not have it."""
    try:
        model.set_attn_implementation("sdpa")
    except (ValueError, ImportError):
        model.set_attn_implementation("eager")


def generate(opened: Opened, prompt: str, *, max_new_tokens: int, temperature: float, chat: bool, seed: int) -> str:
    """The continuation of ``prompt`` without it. Greedy at temperature 0, else sampled with ``seed``."""
    tokenizer, model = opened.tokenizer, opened.model
    if chat:
        if not tokenizer.chat_template:
            raise ModelError(
                "the tokenizer has no chat template", where="--chat", how="leave --chat out, or train with template = ..."
            )
        text = tokenizer.apply_chat_template([{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True)
        inputs = tokenizer(text, return_tensors="pt", add_special_tokens=False)
    else:
        inputs = tokenizer(prompt, return_tensors="pt")
    ids = inputs["input_ids"].to(model.device)
    if not ids.shape[1]:
        raise ModelError("the prompt has no tokens", where="--prompt", how="give some text")
    torch.manual_seed(seed)
    how = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature > 0 else {"do_sample": False}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Position ids are not supported")  # PEFT's, of its own doing
        output = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            generation_config=_generation_config(model, tokenizer, max_new_tokens=max_new_tokens, **how),
        )
    return str(tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True))


def _generation_config(model: Any, tokenizer: Any, **settings: Any) -> Any:
    """Only what is asked for here; from the model's own settings just the tokens that end a text."""
    from transformers import GenerationConfig

    own = model.generation_config
    ends = own.eos_token_id if own.eos_token_id is not None else tokenizer.eos_token_id
    if tokenizer.eos_token_id is not None:
        ends = sorted({tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])})
    pad = tokenizer.pad_token_id
    if pad is None:
        pad = ends[0] if isinstance(ends, list) else ends
    return GenerationConfig(eos_token_id=ends, pad_token_id=pad, **settings)
