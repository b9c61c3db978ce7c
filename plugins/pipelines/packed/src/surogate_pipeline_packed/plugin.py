"""What this plugin offers: the pipeline `packed` with its options, and the commands `tokenizer`, `tokenize` and `cache`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from attrs import field, frozen

from surogate_core.errors import Problem
from surogate_core.hookspecs import hookimpl
from surogate_core.offers import Offer, between, doc, ge
from surogate_pipeline_packed.scale import valid

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
    streaming: bool = field(
        default=False,
        metadata=doc(
            "Read data sets of the Hub, and directories with a data set card, as they arrive, with no copy of them on disk. All "
            "other sources always are."
        ),
    )
    max_bad_rows: float = field(
        default=0.01, validator=between(0, 1), metadata=doc("Share of unusable rows above which the run stops.")
    )
    use_chat_template: bool = field(
        default=True,
        metadata=doc(
            "Render conversations with the chat template. False: the contents one after the other with nothing between, and EOS "
            "after each of the assistant's, as base models are trained."
        ),
    )
    template: str | None = field(
        default=None, metadata=doc("Chat template by name or file. Unset: the tokenizer's own; needed where it has none.")
    )
    agent_template: Literal["hermes", "react", "llama3"] | None = field(
        default=None,
        metadata=doc("Write tools, calls and results as text in this form, for models whose chat template knows no tools."),
    )
    response_prefix: str | None = field(
        default=None,
        metadata=doc(
            "Text that every answer is given to start with: part of the generation prompt, of the saved chat template and of each "
            "assistant turn, and not trained."
        ),
    )
    system: str | None = field(default=None, metadata=doc("System prompt for conversations that have none."))
    max_length: int | None = field(default=None, validator=ge(2), metadata=doc("Longest sample, tokens. Unset: `sequence_len`."))
    truncation_strategy: Literal["delete", "left", "right", "split"] = field(
        default="delete", metadata=doc("What happens to longer samples; text documents are always split.")
    )
    loss_scale: str = field(
        default="default",
        validator=valid,
        metadata=doc(
            "Trained text: `default` (all assistant turns), `last_round` (those after the last user message) or `all`; with `+`, "
            "`ignore_empty_think` and JSON files that map regular expressions to weights. `loss` in a message overrides it."
        ),
    )
    padding_side: Literal["left", "right"] = field(default="right", metadata=doc("Where a row that is not full is padded."))
    padding_free: bool = field(
        default=False,
        metadata=doc(
            "Lay the rows of a micro-batch end to end in one row without padding. Documents stay apart; the shapes of batches vary."
        ),
    )
    multimodal_on_the_fly: bool | None = field(
        default=None,
        metadata=doc(
            "Read images when they are trained on: true, and the default. False: prepare them with the tokens and keep them in "
            "the cache, about 6 kB a patch, for faster steps. Both train the same."
        ),
    )
    max_pixels: int | None = field(
        default=None,
        validator=ge(1),
        metadata=doc("Larger images are made smaller to this many pixels. Unset: as the model's image processor has it."),
    )
    norm_bbox: Literal["norm1000", "none"] | None = field(
        default=None,
        metadata=doc(
            "How boxes in `objects` are written: `norm1000` in thousandths of the image, `none` in pixels of the image as the "
            "model gets it. Unset: rows with boxes are refused."
        ),
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
        Offer("tokenize", None, build=f"{package}.commands.tokenize:tokenize", summary="Tokenise a config's data ahead of a run."),
        Offer("cache", None, build=f"{package}.commands.cache:cache", summary="Show and clean the cache of tokenised data."),
    ]


@hookimpl
def check_config(config: Config) -> list[Problem]:
    """Samples that fit no row, options that exclude each other, and weights of data that are not trained on."""
    own = config.of(Options)
    problems = []

    def refuse(key: str, what: str, how: str) -> None:
        problems.append(Problem(what, where=f"{config.origins[key]}, key {key}", how=how))

    longest, row = own.max_length, config.core.sequence_len
    if longest is not None and longest > row:
        what = f"max_length = {longest} is longer than sequence_len = {row}: such a sample fits no row"
        refuse("max_length", what, "lower max_length or raise sequence_len")
    if own.template is not None and not own.use_chat_template:
        what = f'template = "{own.template}" has no effect beside use_chat_template = false'
        refuse("template", what, "remove one of the two")
    if own.padding_free and own.padding_side == "left":
        what = 'padding_side = "left" has no effect beside padding_free = true: there is no padding'
        refuse("padding_side", what, "remove one of the two")
    if own.response_prefix == "":
        refuse("response_prefix", 'response_prefix = "" is no text', "remove it")
    for index, options in enumerate(config.core.validation_datasets or ()):
        if options.weight != 1:
            key = f"validation_datasets.{index}.weight"
            what = f"weight = {options.weight:g}: validation data are read once each, whatever they weigh"
            refuse(key, what, "remove weight")
    return problems
