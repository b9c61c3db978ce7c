"""The adapters ``prompt`` and ``prefix`` and their option."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attrs import field, frozen

from surogate_core.errors import Problem
from surogate_core.hookspecs import hookimpl
from surogate_core.offers import Offer, doc, ge, normal_name

if TYPE_CHECKING:
    from surogate_core.plan import Plan


@frozen(kw_only=True)
class Options:
    """Options of `adapter = "prompt"` and `adapter = "prefix"`."""

    num_virtual_tokens: int = field(
        default=20,
        validator=ge(1),
        metadata=doc("Trained vectors in front of each document; they take as many positions of context."),
    )


@hookimpl
def register_adapters() -> list[Offer]:
    home = "surogate_adapter_prompt.tokens"
    return [
        Offer(
            "prompt", Options, build=f"{home}:build_prompt", summary="Prompt tuning: trained input embeddings before each document."
        ),
        Offer("prefix", Options, build=f"{home}:build_prefix", summary="Prefix tuning: trained keys and values in each layer."),
    ]


@hookimpl
def check_plan(plan: Plan, device: str) -> list[Problem]:
    """Virtual tokens and a row have to fit into the model's context, and be in sight of every position."""
    core = plan.config.core
    if not core.lora or normal_name(core.adapter) not in ("prompt", "prefix"):
        return []
    from surogate_model_transformers import context_length

    model = plan.outline.skeleton.config
    problems = []
    if _has_windows(model):
        what = "virtual tokens cannot be trained in a model with sliding windows: what is in sight would depend on the position"
        where, how = f"adapter, model_type {plan.outline.model_type!r}", 'use adapter = "lora" or "bottleneck"'
        problems.append(Problem(what, where=where, how=how))
    context, count = context_length(model), plan.config.of(Options).num_virtual_tokens
    if context and core.sequence_len + count > context:
        what = f"sequence_len = {core.sequence_len} and num_virtual_tokens = {count} are longer than the context of {context}"
        problems.append(Problem(what, where="num_virtual_tokens", how=f"set sequence_len to at most {context - count}"))
    return problems


def _has_windows(config: Any) -> bool:
    """Whether a transformers config has layers with sliding windows. The loaded model is asked once more (``set_tokens``)."""
    text = config.get_text_config()
    kinds = getattr(text, "layer_types", None)
    return any("sliding" in kind for kind in kinds) if kinds else bool(getattr(text, "sliding_window", None))
