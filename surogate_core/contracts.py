"""What the objects built from offers must do, and what they are given. Protocols and frozen records; nothing to inherit from.

Shapes: B rows of a micro-batch, S positions of a row, T = B·S tokens, K inputs and N outputs of a linear layer.
torch is imported for type checking only: this module is read by plugins that are merely being listed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from attrs import field, fields, frozen

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from surogate_core.config.options import CoreOptions
    from surogate_core.offers import Offer


# ---------------------------------------------------------------- what a build function is given
@frozen(kw_only=True)
class Context:
    """For models, recipes, adapters, optimizers, schedules and parallelisms: the core's options and the device ("cpu", "cuda")."""

    config: CoreOptions
    device: str = "cpu"


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
    render     ``render(messages, tools=None, kind="conversation") -> Sample``, through the tokenizer's chat template
    weigh      ``weigh(text, spans, kind, marker, special=False) -> Sample``: tokens of a text, each with the weight of the last
               span (start, stop, weight), in characters, in which it starts; ``special`` adds the tokenizer's own tokens
    """

    tokenizer: Any
    system: str | None
    background: float
    render: Callable[..., Sample]
    weigh: Callable[..., Sample]


@frozen(kw_only=True)
class LoggerContext(Context):
    """For loggers. ``resumed`` is the step a continued run starts from, 0 for a new one. ``terminal`` is false when output is
    piped; ``quiet`` asks for problems only."""

    output_dir: Path
    run_name: str
    resumed: int
    terminal: bool
    quiet: bool


# ---------------------------------------------------------------- sites of a model
SiteKind = Literal["linear", "stacked_linear", "norm", "activation", "attention", "embedding", "head"]


@frozen(kw_only=True)
class Site:
    """A place in the model that offers may claim.

    name   the module's qualified name, ``model.layers.0.self_attn.q_proj``
    kind   only ``linear`` sites have the three slots storage, compute and adapter
    shape  (N, K) of a linear's weight; (E, ...) of stacked experts; the module's parameter shape otherwise
    layer  index of the decoder block, None outside of the blocks
    """

    name: str
    kind: SiteKind
    shape: tuple[int, ...]
    bias: bool = False
    layer: int | None = None

    @property
    def role(self) -> str:
        """Last part of the name: ``q_proj``."""
        return self.name.rpartition(".")[2]


@frozen(kw_only=True)
class Outline:
    """A model before its weights are read: its family, its sites, and the shapes of all of its parameters."""

    model_type: str
    sites: tuple[Site, ...]
    shapes: tuple[tuple[int, ...], ...]


# ---------------------------------------------------------------- what one optimizer step trains on
@frozen(eq=False)
class Batch:
    """One micro-batch, (B, S) each.

    input_ids     int64, padded with pad_id
    labels        int64, the token to predict at each position (already shifted); -100 where there is none or its weight is 0
    weights       float32, weight of the label; 0 where there is none
    position_ids  int64, from 0 in each piece, and in the padding
    document_ids  int32, number of the piece within its row from 0; padding is one document of its own
    """

    input_ids: Tensor
    labels: Tensor
    weights: Tensor
    position_ids: Tensor
    document_ids: Tensor

    def to(self, device: torch.device | str) -> Batch:
        return Batch(*(getattr(self, item.name).to(device, non_blocking=True) for item in fields(Batch)))


@frozen(eq=False)
class Step:
    """What one optimizer step trains on.

    batches  one per micro-batch, all of one shape
    weight   sum of weights over the whole step
    tokens   tokens in rows, padding not counted
    trained  labels with a weight above 0
    sources  the pieces in it
    epoch    epochs completed after this step
    """

    batches: tuple[Batch, ...]
    weight: float
    tokens: int
    trained: int
    sources: tuple[str, ...]
    epoch: float


# ---------------------------------------------------------------- what a build function returns
class Batches(Protocol):
    """Training or validation data. A pure function of the step number, so that the position in the data *is* the step."""

    rows: int
    """Rows of one epoch."""
    fill: float
    """Share of their positions in use."""

    def steps(self, epochs: int) -> int:
        """Optimizer steps of ``epochs`` epochs; the last one is padded with empty rows."""

    def step(self, index: int, epochs: int | None = None) -> Step:
        """Step ``index``, from 0. The stream of rows ends after ``epochs`` and empty rows follow; without it, it goes on."""

    def all_rows(self) -> Iterator[Batch]:
        """Every row once, in order, in micro-batches of one shape; the last one is padded with empty rows."""


class Data(Protocol):
    """What the data phase gives.

    ledger       plain values: rows and tokens in = kept + split + truncated + dropped, by reason
    fingerprint  of everything that changes what is trained on
    """

    ledger: Mapping[str, Any]
    fingerprint: str

    def training(self, batch_size: int, accumulation: int) -> Batches:
        """Steps of ``accumulation`` micro-batches of ``batch_size`` rows. The rows of a step depend on their product alone."""

    def validation(self, batch_size: int) -> Batches | None:
        """None when there are no validation data."""


class Pipeline(Protocol):
    """The data phase: rows of ``[[datasets]]`` → samples (through formats) → batches of fixed shape."""

    def prepare(self, tokenizer: Any, report: Callable[[str], None]) -> Data:
        """Read and encode everything. ``tokenizer`` is left as the run trains with it (its chat template), so that what is saved
        beside the weights serves what was trained. ``report`` gets lines of progress. Raises DataError."""


class ModelSource(Protocol):
    """Where models come from, and how they run on packed batches."""

    def outline(self) -> Outline:
        """Read the model's configuration alone, no weights. Raises ModelError."""

    def tokenizer(self) -> Any:
        """The model's tokenizer. Raises ModelError where there is none."""

    def load(
        self,
        computes: Mapping[str, Callable[..., Tensor]],
        adapters: Mapping[str, nn.Module],
        *,
        device: torch.device,
        weights: Path | None = None,
        notice: Callable[[str], None] = lambda text: None,
    ) -> nn.Module:
        """The model with its weights (those in the directory ``weights``, if given), in training mode, the compute and adapter
        slots of the named linear layers filled. Adapters come on the meta device and get memory, but no values. Raises
        ModelError."""

    def ready(self, model: nn.Module) -> str | None:
        """Called once when everything in the model has its values; may look how it behaves. Returns a remark for the user."""

    def blocks(self, model: nn.Module) -> Sequence[nn.Module]:
        """The decoder layers."""

    def recompute(self, model: nn.Module) -> None:
        """From now on keep only the inputs of each decoder layer for the backward pass. Raises ModelError."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Sum over the batch of weight × cross-entropy, nats: a differentiable scalar, float32 or wider. Documents that share a row
        must not see each other."""

    def save(self, model: nn.Module, tokenizer: Any, directory: Path) -> None:
        """Write model and tokenizer in the ecosystem's layout; ``load`` with ``weights`` reads them back bit for bit."""


class Recipe(Protocol):
    """Fills the compute slot: the three GEMMs of a linear layer, their rounding and scales."""

    def claim(self, site: Site) -> str | None:
        """None to take the site; otherwise a short reason why it stays in the model's own dtype."""

    def linear(self, site: Site) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
        """The compute of one claimed site: ``f(x, weight, bias) -> y`` with x (..., K), weight (N, K), y (..., N).
        A ``torch.nn.Module`` becomes part of the model, so that its buffers (scales) are in the checkpoint."""


class Adapter(Protocol):
    """Fills the adapter slot of the linears that it claims. The base weights are frozen."""

    def claim(self, site: Site) -> str | None:
        """None to take the site; otherwise why not (it is printed when a requested target matches nothing)."""

    def linear(self, site: Site) -> nn.Module:
        """A module called as ``adapter(x, y) -> y'`` with the input and the base output of the layer. Its parameters are the
        trainable ones. It is made on the meta device when the plan is made, and given its initial values by ``reset``."""

    def reset(self, module: nn.Module, generator: torch.Generator) -> None:
        """Fill the module's parameters in place with their initial values, drawn from ``generator`` alone."""

    def save(self, modules: Mapping[str, nn.Module], directory: Path, base_model: str) -> None:
        """Write the adapter in the ecosystem's format (PEFT). ``modules`` maps site names to adapter modules."""

    def load(self, modules: Mapping[str, nn.Module], directory: Path) -> None:
        """Read back what ``save`` wrote, bit for bit."""

    def delta(self, module: nn.Module) -> Tensor:
        """What merging adds to the base weight: (N, K), in float32."""


@frozen(kw_only=True)
class ParamGroup:
    """Parameters that share a weight decay, with their names in the model, in the model's order."""

    names: tuple[str, ...]
    params: tuple[Tensor, ...]
    weight_decay: float


class Optimizer(Protocol):
    """An update rule. Unbound until the model exists, so that the plan can ask for its memory."""

    def state_bytes(self, shape: tuple[int, ...]) -> int:
        """Bytes of state for one parameter of this shape."""

    def bind(self, groups: Sequence[ParamGroup], seed: int) -> OptimizerState:
        """Allocate zero states for these parameters. ``seed`` feeds every random choice of the rule."""


class OptimizerState(Protocol):
    def step(self, lr: Tensor, step: int) -> None:
        """Update all parameters in place from their ``.grad``. ``lr`` is a float32 scalar on the device (gradients are already
        clipped); ``step`` counts from 1. Must not read a value back from the device."""

    def state_dict(self) -> dict[str, Tensor]:
        """Flat names → tensors, all that is needed to continue bit for bit."""

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Raises ResumeError naming what is missing or has another shape."""


Schedule = Callable[[float], float]
"""Progress through the decay phase in [0, 1] → the factor between 1 (base rate) and 0 (``final_lr_fraction``)."""


@frozen(kw_only=True)
class Sample:
    """What a format makes of a row: tokens, and for each token the weight of predicting it (0: not trained).

    ``weights[0]`` has no effect: nothing precedes the first token. ``kind`` names the class of the sample for the gate that
    refuses data in which a kind has no trained token. ``marker`` names what the weights were found by (for its message).
    """

    input_ids: Sequence[int] | NDArray[Any]
    weights: Sequence[float] | NDArray[Any]
    kind: str = "sample"
    marker: str = ""


class Format(Protocol):
    """Turns rows of one data set into samples."""

    overlong: Literal["split", "truncate"]
    """``split``: longer documents are cut into pieces, nothing is lost. ``truncate``: they follow ``truncation_strategy``."""

    def encode(self, row: Mapping[str, Any]) -> Sequence[Sample]:
        """The samples of one row (usually one). Raises BadRow for a row that cannot be used."""


class Logger(Protocol):
    def log(self, record: Mapping[str, Any]) -> None:
        """One record of plain JSON values. ``record["kind"]`` is "run", "ledger", "step", "eval", "checkpoint", "notice",
        "decision" or "end"; see ``docs/metrics.md``."""

    def close(self) -> None: ...


class Parallelism(Protocol):
    """Where processes run and how state is sharded. Exactly one per run; the built-in ``single`` does nothing, so the loop has
    no "if distributed"."""

    rank: int
    world_size: int

    def device(self) -> torch.device: ...

    def wrap(self, model: nn.Module) -> nn.Module: ...

    def sum(self, value: Tensor) -> Tensor:
        """Sum over all ranks, on the device."""

    def rows(self, rows: Sequence[Any]) -> Iterator[Any]:
        """This rank's share of the rows of one optimizer step."""


# ---------------------------------------------------------------- what observers see and say
@frozen(kw_only=True)
class Decision:
    """Returned by ``step_finished`` or ``evaluated``: the loop applies it and logs it with its owner."""

    reason: str
    stop: bool = False
    scale_lr: float = field(default=1.0)


@frozen(kw_only=True)
class RunInfo:
    """What every observer is told about the run."""

    config: Any
    plan: Any
    output_dir: Path
    resumed: int
    total_steps: int
    terminal: bool
    quiet: bool
