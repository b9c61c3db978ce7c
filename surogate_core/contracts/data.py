"""Data: from the rows of a data set to what one optimizer step trains on.

Shapes: B rows of a micro-batch, S positions of a row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

from attrs import field, fields, frozen

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from torch import Tensor


@frozen(kw_only=True)
class Sample:
    """What a format makes of a row: tokens, and for each token the weight of predicting it (0: not trained).

    ``weights[0]`` has no effect: nothing precedes the first token. ``kind`` names the class of the sample for the gate that
    refuses data in which a kind has no trained token. ``marker`` names what the weights were found by (for its message).
    ``reasons`` say, for people, why tokens weigh what they do: the first token of each run, ascending from 0, and its reason.
    ``images`` is what some of the tokens stand for: made by ``render``, and handed on as it is.
    """

    input_ids: Sequence[int] | NDArray[Any]
    weights: Sequence[float] | NDArray[Any]
    kind: str = "sample"
    marker: str = ""
    reasons: Sequence[tuple[int, str]] = ()
    images: Sequence[Any] = ()


class Format(Protocol):
    """Turns rows of one data set into samples.

    A format that is not settled before rows are seen has ``settle(rows)`` besides, which returns an object with ``type``,
    ``options`` and ``why``: the format to go on with.
    """

    overlong: Literal["split", "truncate"]
    """``split``: longer documents are cut into pieces, nothing is lost. ``truncate``: they follow ``truncation_strategy``."""

    def encode(self, row: Mapping[str, Any]) -> Sequence[Sample]:
        """The samples of one row (usually one). Raises BadRow for a row that cannot be used."""


@frozen(eq=False)
class Batch:
    """One micro-batch, (B, S) each.

    input_ids     int64, padded with pad_id
    labels        int64, the token to predict at each position (already shifted); -100 where there is none or its weight is 0
    weights       float32, weight of the label; 0 where there is none
    position_ids  int64, from 0 in each piece, and in the padding
    document_ids  int32, number of the piece within its row from 0; padding is one document of its own
    inputs        further inputs of the model by name, as those of images are; not all are (B, S)
    """

    input_ids: Tensor
    labels: Tensor
    weights: Tensor
    position_ids: Tensor
    document_ids: Tensor
    inputs: Mapping[str, Tensor] = field(factory=dict)

    def to(self, device: torch.device | str) -> Batch:
        own = {item.name: getattr(self, item.name).to(device, non_blocking=True) for item in fields(Batch)[:-1]}
        return Batch(**own, inputs={name: value.to(device, non_blocking=True) for name, value in self.inputs.items()})


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

    def prepare(self, tokenizer: Any, report: Callable[[str], None], live: bool = False) -> Data:
        """Read and encode everything. ``tokenizer`` is left as the run trains with it (its chat template), so that what is saved
        beside the weights serves what was trained; where the model takes images it is a processor (``ModelSource.tokenizer``).
        ``report`` gets notices; ``live`` allows to show progress on stderr. Raises DataError."""
