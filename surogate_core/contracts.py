"""What the objects built from offers must do, and what they are given. Protocols and frozen records; nothing to inherit from.

Shapes: B rows of a micro-batch, S positions of a row, T = B·S tokens, K inputs and N outputs of a linear layer.
torch is imported for type checking only: this module is read by plugins that are merely being listed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from attrs import field, frozen

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from surogate_core.config.options import CoreOptions


# ---------------------------------------------------------------- what a build function is given
@frozen(kw_only=True)
class Context:
    """For recipes, adapters, optimizers, schedules and parallelisms: the core's options and the device ("cpu", "cuda")."""

    config: CoreOptions
    device: str = "cpu"


@frozen(kw_only=True)
class FormatContext(Context):
    """For dataset formats. ``tokenizer`` is a transformers tokenizer; ``render`` turns messages into a :class:`Sample` through
    its chat template (see ``surogate_core.data.chat``)."""

    tokenizer: Any
    render: Callable[..., Sample]


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


# ---------------------------------------------------------------- what a build function returns
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


class Fusion(Protocol):
    """Replaces the forward function of modules that are not linear layers. Their parameters stay theirs, with their names."""

    def claim(self, site: Site, module: nn.Module) -> str | None:
        """None to take the site; otherwise why not. ``module`` is on the meta device: to see what it computes, run a copy of it."""

    def forward(self, module: nn.Module) -> Callable[..., Tensor]:
        """What is called in place of ``module.forward``, with its arguments. ``module`` has its weights, on its device."""


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
