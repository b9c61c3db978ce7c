"""What this plugin offers: the model source `transformers` and its options."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Literal

from attrs import field, frozen
from surogate_distributed_single.plugin import Sharding
from surogate_settings.nearest import did_you_mean

from surogate_core.errors import Problem
from surogate_core.hookspecs import hookimpl
from surogate_core.offers import Offer, doc, ge, normal_name

if TYPE_CHECKING:
    from surogate_core.config import Config, CoreOptions
    from surogate_core.contracts import RunInfo
    from surogate_core.plan import Plan

SCALED = ("linear", "dynamic", "yarn")


@frozen(kw_only=True)
class Options:
    """Options of `model_backend = "transformers"`."""

    model_type: str | None = field(
        default=None, metadata=doc("Family of the model, checked against its config.json; needed only where that names none.")
    )
    revision: str | None = field(default=None, metadata=doc("Branch, tag or commit of the model's repository."))
    trust_remote_code: bool = field(default=False, metadata=doc("Allow Python code that comes with the model to run."))
    max_model_len: int | None = field(
        default=None, validator=ge(2), metadata=doc("Context length to reach by `rope_scaling`. Unset: the model's own.")
    )
    rope_scaling: str | None = field(
        default=None,
        metadata=doc("`linear`, `dynamic` or `yarn` (with `max_model_len`), or a JSON object that replaces the model's."),
    )
    lmhead_chunks: int = field(
        default=1, validator=ge(1), metadata=doc("Parts in which head and loss go through the tokens, at least: less memory.")
    )
    attn_bwd_chunks: int = field(
        default=1,
        validator=ge(1),
        metadata=doc(
            "Parts, by heads and rows, in which attention goes through its backward pass, computed again there: less memory."
        ),
    )
    init_projections_to_zero: bool = field(
        default=False,
        metadata=doc("With `from_scratch`, start the last linear layers of attention and MLP at zero: each block is the identity."),
    )
    router_aux_loss_coef: float | None = field(
        default=None,
        validator=ge(0),
        metadata=doc("Weight of the load-balancing loss of a mixture of experts. Unset: as in the model's config."),
    )
    router_z_loss_coef: float | None = field(
        default=None,
        validator=ge(0),
        metadata=doc("Weight of the z-loss, the mean square of the routers' logsumexp. Unset: as in the model's config, or 0."),
    )
    qlora_selective_expert_dequant: bool = field(
        default=False,
        metadata=doc("Unpack only the quantised experts that a forward pass routes tokens to: less memory; waits for the router."),
    )
    qlora_offload_experts: bool = field(
        default=False,
        metadata=doc(
            "Keep quantised experts in pinned memory of the host; those of a layer come to the GPU while the layer before it is "
            "computed, and are there for as long as they are used."
        ),
    )
    persistent_quants: bool = field(
        default=False,
        metadata=doc(
            "Keep what the recipe makes of weights for their next use although weights are sharded, and of weights that are held "
            "quantised: more memory, no quantising again. Needs `shard_weights` or `zero_level` 3."
        ),
    )
    offload_quants: bool = field(
        default=False,
        metadata=doc(
            "Keep quantised weights, the recipe's and those of a quantised base, in pinned memory of the host; those of a layer "
            "come to the GPU while the layer before it is computed. Needs `persistent_quants`."
        ),
    )
    offload_residual: bool = field(
        default=False,
        metadata=doc("Keep what enters each decoder layer in pinned memory of the host until the backward pass needs it."),
    )
    torch_dtype: Literal["bfloat16", "float16", "float32"] | None = field(
        default=None, metadata=doc("Precision in which weights are read. Unset: as stored.")
    )


@frozen
class Settings:
    """All that decides about a model: the core's options and this plugin's own."""

    core: CoreOptions
    own: Options = Options()
    shards_weights: bool = False


@hookimpl
def register_models() -> list[Offer]:
    build = "surogate_model_transformers.source:build"
    return [Offer("transformers", Options, build=build, summary="Causal language models of the transformers library.")]


@hookimpl
def check_config(config: Config) -> list[Problem]:
    """Projections of weights that are read, and a way to reach further that cannot be meant."""
    own = config.of(Options)
    if own.init_projections_to_zero and not config.core.from_scratch:
        what = "init_projections_to_zero = true would overwrite weights of the model: it is for from_scratch = true"
        place = f"{config.origins['init_projections_to_zero']}, key init_projections_to_zero"
        return [Problem(what, where=place, how="set from_scratch = true, or init_projections_to_zero = false")]
    if own.attn_bwd_chunks > 1 and config.core.compile:
        what = "attn_bwd_chunks above 1 with compile = true: the compiler does not see into a backward pass in parts"
        place = f"{config.origins['attn_bwd_chunks']}, key attn_bwd_chunks"
        return [Problem(what, where=place, how="set attn_bwd_chunks = 1, or compile = false")]
    for key, needed, given, what in (
        ("persistent_quants", "shard_weights = true or zero_level = 3", config.of(Sharding).weights, "weights that are sharded"),
        ("offload_quants", "persistent_quants = true", own.persistent_quants, "quantised weights that are kept"),
    ):
        if getattr(own, key) and not given:
            said = f"{key} = true needs {what}; this run has none"
            return [Problem(said, where=_place(config, key), how=f"set {needed}, or {key} = false")]
    value = own.rope_scaling
    if value is None:
        return []
    if value.lstrip().startswith("{"):
        try:
            json.loads(value)
        except ValueError as error:
            what = f"rope_scaling is not a JSON object: {error}"
            return [Problem(what, where=_place(config), how="""write it like '{"rope_type": "yarn", "factor": 2.0}'""")]
    elif value not in SCALED:
        what = f'rope_scaling = "{value}": wanted one of {", ".join(SCALED)}, or a JSON object'
        return [Problem(what, where=_place(config), how=did_you_mean(value, SCALED))]
    elif own.max_model_len is None:
        what = f'rope_scaling = "{value}" needs max_model_len, the context length to reach'
        return [Problem(what, where=_place(config), how="set max_model_len")]
    return []


@hookimpl
def check_plan(plan: Plan, device: str) -> list[Problem]:
    if normal_name(plan.config.core.model_backend) != "transformers":
        return []
    from surogate_model_transformers.routing import check_experts

    own = plan.config.of(Options)
    return [*_check_held(plan), *check_experts(own, plan, device), *_offloads(plan.config, device), *_check_quants(plan)]


@hookimpl
def part_finished(run: RunInfo, name: str) -> None:
    """The clock of the routers' figures: they are those of a step, not of a micro-batch."""
    routing = getattr(run.plan.model_source, "routing", None) if name == "optimizer" else None
    if routing is not None:
        routing.seal()


@hookimpl
def step_finished(run: RunInfo, record: dict[str, Any]) -> None:
    routing = getattr(run.plan.model_source, "routing", None)
    if routing is not None:
        record.update(routing.take())


def _check_held(plan: Plan) -> list[Problem]:
    """Weights that a checkpoint holds quantised cannot be trained, and there is nothing to start over from."""
    core, held = plan.config.core, plan.outline.held
    if held is None or core.lora or core.from_scratch:
        return []
    method = held.settings["quant_method"]
    what = f"the checkpoint's weights are quantised already ({method}): they cannot be trained, only an adapter on top of them"
    how = "set lora = true, or train what `surogate export MODEL --output DIRECTORY` writes: the same weights as numbers"
    return [Problem(what, where=f"quantization_config of {core.model}; lora = false", how=how)]


def _offloads(config: Config, device: str) -> list[Problem]:
    own = config.of(Options)
    return [
        Problem(
            f"{key} = true needs a GPU: this run computes on the CPU, whose memory is the host's",
            where=_place(config, key),
            how=f"set {key} = false, or run on a GPU",
        )
        for key in ("offload_residual", "offload_quants")
        if getattr(own, key) and device != "cuda"
    ]


def _check_quants(plan: Plan) -> list[Problem]:
    """`persistent_quants` where nothing is quantised that would not be kept anyway."""
    own = plan.config.of(Options)
    if not own.persistent_quants:
        return []
    import torch

    from surogate_core.contracts import KeepsCopies

    computed = next((site for site in plan.sites if site.name in plan.slots and plan.slots[site.name].compute), None)
    with torch.device("meta"):
        copies = computed is not None and isinstance(plan.recipe.linear(computed.parts[0]), KeepsCopies)
    if copies or (own.offload_quants and plan.stored()):
        return []
    what = f'persistent_quants = true changes nothing: recipe = "{plan.config.core.recipe}" makes no quantised copies of weights'
    how = "choose a recipe that does, or set persistent_quants = false"
    if plan.stored():
        what += ", and weights that are held quantised are kept anyway"
        how += ", or offload_quants = true"
    return [Problem(what, where=_place(plan.config, "persistent_quants"), how=how)]


def _place(config: Config, key: str = "rope_scaling") -> str:
    return f"{config.origins[key]}, key {key}"
