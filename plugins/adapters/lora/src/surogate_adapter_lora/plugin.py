"""The adapter ``lora`` and its options."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from attrs import field, frozen

from surogate_core.errors import Problem
from surogate_core.hookspecs import hookimpl
from surogate_core.offers import Offer, Range, doc, ge, gt, normal_name

if TYPE_CHECKING:
    from surogate_core.config import Config, CoreOptions
    from surogate_core.contracts import RunInfo
    from surogate_core.plan import Plan


def _not_empty(instance: object, attribute: Any, value: list[str]) -> None:
    if not value:
        raise ValueError('must name at least one layer, or "all"')


@frozen(kw_only=True)
class Options:
    """Options of `adapter = "lora"`."""

    lora_rank: int = field(default=16, validator=ge(1), metadata=doc("Rank of the update of each adapted layer."))
    lora_alpha: int = field(
        default=32, validator=gt(0), metadata=doc("Scale: the update is multiplied by `lora_alpha` / `lora_rank`.")
    )
    lora_dropout: float = field(
        default=0.05, validator=Range(low=0, below=1), metadata=doc("Dropout on the input of the adapter while training.")
    )
    lora_dtype: Literal["fp32", "bf16"] = field(
        default="fp32", metadata=doc("Precision of the trained weights and of the saved adapter.")
    )
    lora_use_rslora: bool = field(
        default=False, metadata=doc("Scale by `lora_alpha` / sqrt(`lora_rank`) instead, which suits high ranks (rsLoRA).")
    )
    lora_use_dora: bool = field(
        default=False, metadata=doc("Train the magnitude of each weight's rows apart from their direction (DoRA).")
    )
    adapter_path: str | None = field(
        default=None, metadata=doc("Directory of a PEFT adapter to put on the model before a new one is trained on top.")
    )
    adapter_mode: Literal["merge", "stack"] = field(
        default="merge",
        metadata=doc("`merge` adds the adapter of `adapter_path` to the weights; `stack` keeps it beside them, frozen."),
    )
    train_modules: list[str] = field(
        factory=list,
        metadata=doc(
            "Parts to train whole beside the adapter, by name, end of it or pattern (`lm_head`, `embed_tokens`, `*norm`)."
        ),
    )
    train_router: bool = field(
        default=False, metadata=doc("Train the routers of a mixture of experts whole, beside the adapter; they are saved in it.")
    )
    merge_adapter: bool = field(
        default=False,
        metadata=doc("At the end write the model with the adapter merged into it, to `output_dir`/merged."),
    )
    lora_target_modules: list[str] = field(
        factory=lambda: ["all"],
        validator=_not_empty,
        metadata=doc(
            "Layers to adapt, by last part or end of their name (`q_proj`, `layers.0.mlp.up_proj`); `all`: every linear layer."
        ),
    )


@hookimpl
def register_adapters() -> list[Offer]:
    return [
        Offer(
            "lora",
            Options,
            build="surogate_adapter_lora.lora:build",
            summary="Low-rank updates beside frozen linear layers, saved in PEFT's format.",
        )
    ]


@hookimpl
def register_commands() -> list[Offer]:
    home = "surogate_adapter_lora.commands"
    return [
        Offer("eval", None, build=f"{home}:eval_command", summary="Loss and perplexity on the validation data of a config."),
        Offer(
            "generate", None, build=f"{home}:generate_command", summary="Continue text with a model, adapter, checkpoint or run."
        ),
        Offer("merge", None, build=f"{home}:merge_command", summary="Add LoRA adapters to their base model's weights."),
        Offer("export", None, build=f"{home}:export_command", summary="PEFT's adapter or full weights of what was trained."),
    ]


def _in_force(core: CoreOptions) -> bool:
    return core.lora and normal_name(core.adapter) == "lora"


@hookimpl
def check_config(config: Config) -> list[Problem]:
    """What excludes what, and an adapter that is not there."""
    own, core = config.of(Options), config.core
    problems = []

    def problem(key: str, what: str, how: str) -> None:
        problems.append(Problem(what, where=f"{config.origins[key]}, key {key}", how=how))

    if own.train_modules and not _in_force(core):
        problem("train_modules", 'train_modules needs lora = true and adapter = "lora"', "set them, or train_modules = []")
    if own.train_router and not _in_force(core):
        what = 'train_router needs lora = true and adapter = "lora"; training all weights trains the routers too'
        problem("train_router", what, "set them, or train_router = false")
    if own.merge_adapter and not _in_force(core):
        problem("merge_adapter", 'merge_adapter needs lora = true and adapter = "lora"', "set them, or merge_adapter = false")
    if own.adapter_path is None:
        if own.adapter_mode != "merge":
            problem("adapter_mode", f'adapter_mode = "{own.adapter_mode}" needs adapter_path', "set adapter_path, or remove it")
        return problems
    if not _in_force(core):
        problem("adapter_path", 'adapter_path needs lora = true and adapter = "lora"', "set them, or remove adapter_path")
    if own.lora_use_dora and own.adapter_mode == "stack":
        what = 'lora_use_dora with adapter_mode = "stack": the norm of DoRA is that of the whole weight under it'
        problem("adapter_mode", what, 'set adapter_mode = "merge"')
    directory = Path(own.adapter_path).expanduser()
    if not (directory / "adapter_config.json").is_file():
        what = f"adapter_path = {json.dumps(own.adapter_path)}: there is no adapter_config.json in it"
        problem("adapter_path", what, "give a directory that PEFT or surogate wrote, such as output/last of a run")
    return problems


@hookimpl
def check_plan(plan: Plan, device: str) -> list[Problem]:
    core = plan.config.core
    if not _in_force(core):
        return []
    from surogate_adapter_lora.first import check_first
    from surogate_adapter_lora.parts import check_parts, check_router
    from surogate_adapter_lora.targets import check_targets

    own = plan.config.of(Options)
    parts = check_parts(own.train_modules, plan.outline.skeleton, plan.adapted(), plan.stored()) if own.train_modules else []
    return [
        *check_targets(own.lora_target_modules, plan.sites, own.lora_use_dora),
        *(check_router(plan.outline.skeleton) if own.train_router else ()),
        *parts,
        *check_first(plan.adapter, core.model, plan.outline, plan.adapted()),
    ]


@hookimpl
def run_finished(run: RunInfo, summary: dict[str, Any]) -> None:
    """``merge_adapter``. The base is read again as it is stored, so that nothing is rounded twice."""
    core = run.config.core
    if not _in_force(core) or not run.config.of(Options).merge_adapter:
        return
    from surogate_adapter_lora.merge import merge

    output = run.output_dir / "merged"
    merge(core.model, Path(summary["checkpoint"]), output, force=True)
    if not run.quiet:
        print(f"merged       {output}", flush=True)
