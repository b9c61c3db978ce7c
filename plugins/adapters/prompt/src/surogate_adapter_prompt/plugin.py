"""The adapters ``prompt`` and ``prefix`` and their option."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
    """Virtual tokens and a row have to fit into the model's context."""
    core = plan.config.core
    if not core.lora or normal_name(core.adapter) not in ("prompt", "prefix"):
        return []
    from surogate_model_transformers import context_length

    context, count = context_length(plan.outline.skeleton.config), plan.config.of(Options).num_virtual_tokens
    if not context or core.sequence_len + count <= context:
        return []
    what = f"sequence_len = {core.sequence_len} and num_virtual_tokens = {count} are longer than the model's context of {context}"
    return [Problem(what, where="num_virtual_tokens", how=f"set sequence_len to at most {context - count}")]
