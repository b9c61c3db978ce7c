"""A host with a few offers of its own, so that the tests of the configuration do not depend on what is installed;
the options of models and data are the real ones."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, Literal

import pytest
from attrs import field, frozen
from surogate_model_transformers.plugin import Options as ModelOptions
from surogate_pipeline_packed.plugin import Options as PipelineOptions

from surogate_core.hookspecs import hookimpl
from surogate_core.host import Host, load_host
from surogate_core.offers import Offer, Owner, between, doc, ge

OWNER = Owner("surogate-stand-in", "3.1")


@frozen(kw_only=True)
class LoraOptions:
    lora_rank: int = field(default=16, validator=ge(1), metadata=doc("Rank."))
    lora_alpha: int = field(default=32, validator=ge(1), metadata=doc("Alpha."))
    lora_dropout: float = field(default=0.05, validator=between(0, 1), metadata=doc("Dropout."))
    lora_dtype: Literal["fp32", "bf16"] = field(default="fp32", metadata=doc("Precision."))
    lora_target_modules: list[str] = field(factory=lambda: ["all"], metadata=doc("Names."))


@frozen(kw_only=True)
class Fp8Options:
    fp8_window: int = field(default=16, validator=ge(1), metadata=doc("Window."))


@frozen(kw_only=True)
class TextOptions:
    text_field: str = field(default="text", metadata=doc("Column."))


@frozen(kw_only=True)
class InstructionOptions:
    instruction_field: str = field(metadata=doc("Column of the question."))
    output_field: str = field(metadata=doc("Column of the answer."))
    input_field: str | None = field(default=None, metadata=doc("Column of more input."))
    system_prompt_type: Literal["field", "fixed"] | None = field(default=None, metadata=doc("Kind of system prompt."))
    system_prompt_field: str | None = field(default=None, metadata=doc("Column of the system prompt."))
    system_prompt: str | None = field(default=None, metadata=doc("The system prompt."))
    prompt_format: str | None = field(default=None, metadata=doc("Form."))
    prompt_format_no_input: str | None = field(default=None, metadata=doc("Form without input."))


@frozen(kw_only=True)
class ConversationOptions:
    messages_field: str = field(default="messages", metadata=doc("Column."))
    system_field: str | None = field(default=None, metadata=doc("Column."))
    tools_field: str | None = field(default=None, metadata=doc("Column."))
    message_property_mappings: dict[str, str] | None = field(default=None, metadata=doc("Names in a message."))


@frozen(kw_only=True)
class LogOptions:
    log_file: str | None = field(default=None, metadata=doc("File."))


def offers(kind: str) -> list[Offer]:
    found: dict[str, list[tuple[str, type | None]]] = {
        "models": [("transformers", ModelOptions)],
        "pipelines": [("packed", PipelineOptions)],
        "checkpoints": [("local", None)],
        "loops": [("standard", None)],
        "recipes": [("bf16", None), ("fp8_test", Fp8Options)],
        "adapters": [("lora", LoraOptions)],
        "schedules": [("linear", None), ("cosine", None), ("wsd", None)],
        "optimizers": [("adamw_8bit", None), ("adamw", None)],
        "datasets": [("text", TextOptions), ("instruction", InstructionOptions), ("conversation", ConversationOptions)],
        "loggers": [("console", None), ("jsonl", LogOptions)],
    }
    return [Offer(name, options, build="nowhere:build", summary=f"The {name}.") for name, options in found.get(kind, ())]


def stand_in(**more: Any) -> SimpleNamespace:
    """A plugin module with these offers and ``more`` hooks."""

    def register(kind: str) -> Any:
        return hookimpl(lambda: offers(kind))

    kinds = ("models", "pipelines", "checkpoints", "loops", "schedules", "recipes", "adapters", "optimizers", "datasets", "loggers")
    return SimpleNamespace(
        **{f"register_{kind}": register(kind) for kind in kinds}, **{name: hookimpl(f) for name, f in more.items()}
    )


@pytest.fixture(scope="session")
def host() -> Host:
    return load_host([("stand-in", stand_in(), OWNER)], discover=False)


@pytest.fixture
def options() -> SimpleNamespace:
    """The classes of options of the stand-in's offers."""
    return SimpleNamespace(
        lora=LoraOptions,
        text=TextOptions,
        conversation=ConversationOptions,
        fp8=Fp8Options,
        pipeline=PipelineOptions,
        stand_in=stand_in,
    )
