"""What this plugin offers: the pipeline `packed` with its options, and the commands `tokenizer`, `tokenize` and `cache`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from attrs import field, frozen

from surogate_core.errors import Problem
from surogate_core.hookspecs import hookimpl
from surogate_core.offers import Offer, between, doc, ge

if TYPE_CHECKING:
    from surogate_core.config import Config


@frozen(kw_only=True)
class Options:
    """Options of `data_pipeline = "packed"`."""

    sample_packing: bool = field(default=True, metadata=doc("Pack several samples into a row; they do not see each other."))
    validation_split_ratio: float = field(
        default=0.1,
        validator=between(0, 0.99),
        metadata=doc("Share of the training samples held out when there is no validation set."),
    )
    dataloader_num_workers: int | None = field(
        default=None,
        validator=ge(0),
        metadata=doc("Processes that tokenise; 0 is the main process. The batches never depend on it."),
    )
    cache_dir: str | None = field(
        default=None,
        metadata=doc("Where tokenised data are kept. Unset: `SUROGATE_CACHE`, or `surogate` in the user's cache directory."),
    )
    max_bad_rows: float = field(
        default=0.01, validator=between(0, 1), metadata=doc("Share of unusable rows above which the run stops.")
    )
    template: str | None = field(
        default=None, metadata=doc("Chat template by name or file. Unset: the tokenizer's own; needed where it has none.")
    )
    system: str | None = field(default=None, metadata=doc("System prompt for conversations that have none."))
    max_length: int | None = field(default=None, validator=ge(2), metadata=doc("Longest sample, tokens. Unset: `sequence_len`."))
    truncation_strategy: Literal["delete", "left", "right", "split"] = field(
        default="delete", metadata=doc("What happens to longer samples; text documents are always split.")
    )
    loss_scale: Literal["default", "last_round", "all"] = field(
        default="default", metadata=doc("Trained text: all assistant turns, the last one, or everything.")
    )


@hookimpl
def register_pipelines() -> list[Offer]:
    build = "surogate_pipeline_packed.pipeline:build"
    return [Offer("packed", Options, build=build, summary="Files and Hub data sets, several samples packed into a row.")]


@hookimpl
def register_commands() -> list[Offer]:
    package = "surogate_pipeline_packed"
    return [
        Offer("tokenizer", None, build=f"{package}.command:tokenizer", summary="Train a tokenizer of one's own."),
        Offer(
            "tokenize", None, build=f"{package}.commands.tokenize:tokenize", summary="Tokenise the data of a config ahead of a run."
        ),
        Offer("cache", None, build=f"{package}.commands.cache:cache", summary="Show and clean the cache of tokenised data."),
    ]


@hookimpl
def check_config(config: Config) -> list[Problem]:
    """Samples that fit no row, and weights of data that are not trained on."""
    problems = []
    longest, row = config.of(Options).max_length, config.core.sequence_len
    if longest is not None and longest > row:
        what = f"max_length = {longest} is longer than sequence_len = {row}: such a sample fits no row"
        place = f"{config.origins['max_length']}, key max_length"
        problems.append(Problem(what, where=place, how="lower max_length or raise sequence_len"))
    for index, options in enumerate(config.core.validation_datasets or ()):
        if options.weight != 1:
            key = f"validation_datasets.{index}.weight"
            what = f"weight = {options.weight:g}: validation data are read once each, whatever they weigh"
            problems.append(Problem(what, where=f"{config.origins[key]}, key {key}", how="remove weight"))
    return problems
