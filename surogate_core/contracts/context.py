"""What a build function is given, and what observers see and say."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import field, frozen

if TYPE_CHECKING:
    from surogate_core.config.options import CoreOptions
    from surogate_core.contracts.data import Sample
    from surogate_core.offers import Offer


@frozen(kw_only=True)
class Context:
    """For models, recipes, adapters, optimizers, schedules and parallelisms: the core's options and the device ("cpu", "cuda").
    ``of`` gives the options of another plugin, by their class; only the plan knows them, elsewhere they are the defaults."""

    config: CoreOptions
    device: str = "cpu"
    of: Callable[[type[Any]], Any] = field(default=lambda options: options())


@frozen(kw_only=True)
class PipelineContext(Context):
    """For pipelines. ``format`` gives the offer of a data set format by the name that ``type`` has in ``[[datasets]]``."""

    format: Callable[[str], Offer]


@frozen(kw_only=True)
class FormatContext(Context):
    """For dataset formats; made by the pipeline.

    tokenizer  a transformers tokenizer
    system     the system prompt for conversations that have none
    background  weight of text that is not the answer: 0, or 1 where everything is trained
    render     ``render(messages, tools=None, kind="conversation") -> Sample``, through the tokenizer's chat template. Content is
               text, or a list of parts: ``{"type": "text", "text": ...}``, ``{"type": "image", "image": ...}`` with a path, bytes,
               a data URL or a PIL image, and ``{"type": "bbox", "bbox": [x, y, ...], "image_id": 0, "bbox_type": "real"}``
    weigh      ``weigh(text, spans, kind, marker, special=False) -> Sample``: tokens of a text, each with the weight of the last
               span (start, stop, weight[, why]), in characters, in which it starts; ``special`` is for texts without a template: it
               adds the tokenizer's own tokens, and an answer's first token may begin in white space before it
    """

    tokenizer: Any
    system: str | None
    background: float
    render: Callable[..., Sample]
    weigh: Callable[..., Sample]


@frozen(kw_only=True)
class LoggerContext(Context):
    """For loggers. ``resumed`` is the step a continued run starts from, 0 for a new one. ``terminal`` is false when output is
    piped; ``quiet`` asks for problems only. ``state`` is what the logger's ``state()`` said (:class:`KeepsState`) when the
    checkpoint that is continued was saved, empty for a new run. ``notice`` tells the user a sentence."""

    output_dir: Path
    run_name: str
    resumed: int
    terminal: bool
    quiet: bool
    state: Mapping[str, Any] = field(factory=dict)
    notice: Callable[[str], None] = field(default=lambda text: None)


@frozen(kw_only=True)
class ObserverContext(Context):
    """For observers. ``state`` as in :class:`LoggerContext`. ``log`` sends a record to the loggers and to ``metrics.jsonl``; one
    with a ``step`` is dropped when that step is run again."""

    plan: Any
    log: Callable[[dict[str, Any]], None]
    state: Mapping[str, Any] = field(factory=dict)


@frozen(kw_only=True)
class Decision:
    """Returned by ``step_finished`` or ``evaluated``: the loop applies it and logs it with its owner. ``scale_lr`` multiplies the
    rate from the next step on. Without a ``reason`` it carries out an earlier one, step by step, and is not logged. ``epochs`` is
    for ``data_ready``."""

    reason: str
    stop: bool = False
    scale_lr: float = field(default=1.0)
    epochs: int | None = None


@frozen(kw_only=True)
class RunInfo:
    """What every observer is told about the run. ``model`` and ``optimizer`` are to be looked at, never changed."""

    config: Any
    plan: Any
    output_dir: Path
    resumed: int
    total_steps: int
    terminal: bool
    quiet: bool
    model: Any = None
    optimizer: Any = None
