"""Models: their sites, where they come from, and what fills the slots of their linear layers.

Shapes: B rows of a micro-batch, S positions of a row, K inputs and N outputs of a linear layer.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from attrs import evolve, frozen

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from surogate_core.contracts.data import Batch


SiteKind = Literal["linear", "stacked_linear", "norm", "activation", "attention", "mlp", "embedding", "head"]


@frozen(kw_only=True)
class Site:
    """A place in the model that offers may claim.

    name   the module's qualified name, ``model.layers.0.self_attn.q_proj``
    kind   only ``linear`` and ``stacked_linear`` sites have the three slots storage, compute and adapter
    shape  (N, K) of a linear's weight; (E, N, K) of stacked experts; the module's parameter shape otherwise
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

    @property
    def parts(self) -> tuple[Site, ...]:
        """The linears with a compute and a storage of their own: itself, or each expert of a stack as ``name.0``, ``name.1``."""
        if self.kind != "stacked_linear":
            return (self,)
        return tuple(evolve(self, name=f"{self.name}.{at}", kind="linear", shape=self.shape[1:]) for at in range(self.shape[0]))


@frozen(kw_only=True)
class Held:
    """Weights that a checkpoint holds quantised already: its ``quantization_config``, the names of the sites that it is about."""

    settings: Mapping[str, Any]
    sites: frozenset[str]


@frozen(kw_only=True)
class Outline:
    """A model before its weights are read: its family, its sites, and the model itself on the meta device."""

    model_type: str
    sites: tuple[Site, ...]
    skeleton: nn.Module
    held: Held | None = None


class ModelSource(Protocol):
    """Where models come from, and how they run on packed batches."""

    def outline(self) -> Outline:
        """Read the model's configuration alone, no weights. Raises ModelError."""

    def tokenizer(self) -> Any:
        """The model's tokenizer. Of a model that takes images a processor: a record with ``tokenizer``, ``image_processor``,
        ``image_token_id``, ``marker_ids`` (what may stand around an image) and the tokenizer's ``save_pretrained``. Raises
        ModelError where there is none."""

    def load(
        self,
        computes: Mapping[str, Callable[..., Tensor]],
        adapters: Mapping[str, nn.Module],
        storages: Mapping[str, Storage],
        *,
        device: torch.device,
        weights: Path | None = None,
        notice: Callable[[str], None] = lambda text: None,
    ) -> nn.Module:
        """The model with its weights (those in the directory ``weights``, if given), in training mode, the slots of the
        named linear layers filled. Adapters come on the meta device and get memory, but no values. Storages come empty, on the
        meta device: each packs its layer's weight as it is read, so that no two of these weights are in memory at once. Raises
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


@runtime_checkable
class Rehearses(Protocol):
    """A model source whose models can be made without values, so that the memory of a step is known before anything is read."""

    def blank(
        self, computes: Mapping[str, Callable[..., Tensor]], adapters: Mapping[str, nn.Module], storages: Mapping[str, Storage]
    ) -> nn.Module:
        """What ``load`` gives, on the meta device."""


@runtime_checkable
class NamesKernels(Protocol):
    """A model source that can say what computes a step."""

    def kernels(self, model: nn.Module) -> Sequence[str]:
        """A few words for each part that has a choice, for the ``run`` record: "attention document by document"."""


class Recipe(Protocol):
    """Fills the compute slot: the three GEMMs of a linear layer, their rounding and scales."""

    def claim(self, site: Site) -> str | None:
        """None to take the site; otherwise a short reason why it stays in the model's own dtype."""

    def linear(self, site: Site) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
        """The compute of one claimed site: ``f(x, weight, bias) -> y`` with x (..., K), weight (N, K), y (..., N).
        A ``torch.nn.Module`` becomes part of the model, so that its buffers (scales) are in the checkpoint. A weight that is no
        ``torch.nn.Parameter`` was unpacked from a storage for this call: nothing of its size may be kept."""


class Copies(Protocol):
    """Where one compute keeps what it makes of its weight."""

    def get(self, weight: Tensor, state: Hashable, make: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """What ``make`` gave for this weight in this ``state``, or gives now. Nobody else may hold on to it after a use."""

    def forget(self) -> None:
        """The weight has changed."""


@runtime_checkable
class KeepsCopies(Protocol):
    """A compute that quantises its weight once for several uses, its backward pass among them. It asks ``copies`` each time; the
    model source may put another in its place, which keeps them elsewhere, for longer, or not at all."""

    copies: Copies


@runtime_checkable
class Tells(Protocol):
    """A recipe that has something to say about the run before it starts."""

    @property
    def notices(self) -> Sequence[str]:
        """Sentences for the user, shown with the plan's."""


@runtime_checkable
class FollowsSteps(Protocol):
    """A recipe whose scales or copies of weights live for one optimizer step."""

    def stepped(self, computes: Mapping[str, nn.Module]) -> None:
        """Called after every optimizer step with the compute modules that it made, by site. Must not read a value back from the
        device; what a resumed run needs is in the modules' buffers."""


class Storage(Protocol):
    """How one frozen weight is held: a ``torch.nn.Module`` whose buffers are all the memory that it takes. Made on the meta device
    its buffers have the shapes that ``pack`` gives them, so that the plan counts their bytes."""

    def pack(self, weight: Tensor) -> None:
        """Replace the buffers by ``weight`` (N, K), floating point, in this format, on its device."""

    def unpack(self, dtype: torch.dtype) -> Tensor:
        """The weight (N, K) in a new tensor. Equal values at every call: the backward pass asks again instead of keeping it."""

    def state_dict(self) -> dict[str, Tensor]:
        """The buffers by name, as ``torch.nn.Module`` gives them."""


class Quantizer(Protocol):
    """Fills the storage slot of the linears that it claims. Their weights are frozen."""

    def claim(self, site: Site) -> str | None:
        """None to take the site; otherwise a short reason why its weight stays in the model's own dtype."""

    def storage(self, site: Site) -> Storage:
        """An empty storage for one claimed site."""


@runtime_checkable
class ReadsCheckpoints(Protocol):
    """A quantizer in whose format there are checkpoints. No key is needed to choose it for them."""

    def reading(self, held: Held) -> Quantizer | None:
        """The quantizer with the settings of this checkpoint; it claims sites that are held so alone. None for another format. Its
        storages have ``adopt(tensors: Mapping[str, Tensor]) -> bool``: take a layer's tensors by the end of their names in the
        file (``weight_scale_inv``), and say whether they are in this format."""


class Adapter(Protocol):
    """Fills the adapter slot of the linears that it claims. The base weights are frozen."""

    def claim(self, site: Site) -> str | None:
        """None to take the site; otherwise why not (it is printed when a requested target matches nothing)."""

    def linear(self, site: Site) -> nn.Module:
        """A module called as ``adapter(x, y) -> y'`` with the input and the base output of the layer; that of stacked experts as
        ``adapter(x, y, ends)``, rows sorted by expert, ends (E,) int32. Its parameters are the trainable ones. It is made on the
        meta device when the plan is made, and given its initial values by ``reset``."""

    def reset(self, module: nn.Module, generator: torch.Generator) -> None:
        """Fill the module's parameters in place with their initial values, drawn from ``generator`` alone."""

    def save(self, modules: Mapping[str, nn.Module], directory: Path, base_model: str) -> None:
        """Write the adapter in the ecosystem's format (PEFT). ``modules`` maps site names to adapter modules."""

    def load(self, modules: Mapping[str, nn.Module], directory: Path) -> None:
        """Read back what ``save`` wrote, bit for bit."""

    def delta(self, module: nn.Module) -> Tensor:
        """What merging adds to the base weight: (N, K), in float32."""


@runtime_checkable
class Attaches(Protocol):
    """An adapter that reaches beyond its slots: into the base weights, or to the whole model."""

    def attached(self, outline: Outline) -> Mapping[str, nn.Module]:
        """What will be trained beside the slots, for the plan's figures; called and made on the meta device."""

    def attach(self, model: nn.Module, modules: Mapping[str, nn.Module], generator: torch.Generator) -> Mapping[str, nn.Module]:
        """Called once, when the weights are read, all of them are frozen, and ``modules`` (site name → module) have their initial
        values. May change weights and forward functions. Returns what is trained besides, name → module on the model's device
        with its initial values, whose parameters are the model's; ``save`` and ``load`` get them together with ``modules``."""


@runtime_checkable
class ChangesWeights(Protocol):
    """An adapter that changes weights of the base on their way into a storage."""

    def over(self, site: Site, storage: Storage) -> Storage:
        """What ``pack`` is called on instead; ``unpack`` and the buffers are those of the storage."""


class Fusion(Protocol):
    """Replaces the forward function of modules that are not linear layers. Their parameters stay theirs, with their names."""

    def claim(self, site: Site, module: nn.Module) -> str | None:
        """None to take the site; otherwise why not. ``module`` is on the meta device: to see what it computes, run a copy of it."""

    def forward(self, module: nn.Module) -> Callable[..., Tensor]:
        """What is called in place of ``module.forward``, with its arguments. ``module`` has its weights, on its device."""
