"""AdamW with both moments in the dynamic 8-bit format; the rule is in ``surogate_native_adam8.reference``. Tensors below 4,096
values keep float32 moments.

The states of all parameters lie in flat arenas, each parameter at a multiple of 256. The native update goes through them at once.
In plain torch it is a stretch at a time, so that float32 moments exist for one stretch only and small parameters share one
vectorised update. With ``offload_optimizer`` the arenas lie in the memory of the host (``offload.py``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from attrs import field, frozen
from surogate_native_adam8 import BLOCK, Codebook, Rates, States, Update, codebook, native_on, update_
from surogate_native_kit import addressable
from surogate_optimizer_adamw.fill import fill
from surogate_optimizer_adamw.masters import keeps_masters, restore_, split_
from surogate_optimizer_adamw.rounding import draw, round_, spread, step_generator
from torch import Tensor

from surogate_core.contracts import Context, ParamGroup
from surogate_optimizer_adamw_8bit.offload import Store
from surogate_optimizer_adamw_8bit.places import SMALL, Stretch, of_grad, of_param, padded, place, stretches
from surogate_optimizer_adamw_8bit.plugin import Options

CHUNK = {"cpu": 1 << 18, "cuda": 1 << 23}
"""Values updated at a time: on the CPU the working set stays in the cache, on a GPU the launches must not dominate."""


@frozen(kw_only=True)
class AdamW8bit:
    beta1: float
    beta2: float
    epsilon: float
    masters: bool = False
    wide_sums: bool = False
    """Gradients are sums of several micro-batches in float32."""
    kernels: str = "auto"
    offload: Options = field(factory=Options)

    @property
    def holds_gradients(self) -> bool:
        """Whether the bound state takes them off the device."""
        return self.offload.offload_grads

    def state_bytes(self, shape: tuple[int, ...], name: str = "") -> int:
        """On the device."""
        count = math.prod(shape)
        moments = 8 * count if count < SMALL else 2 * padded(count) + 2 * 4 * padded(count) // BLOCK
        remainder = 2 * count if self.masters else 0
        return (0 if self.offload.offload_optimizer else moments) + (0 if self.offload.offload_master else remainder)

    def bind(self, groups: Sequence[ParamGroup], seed: int) -> State:
        return State(self, groups, seed)


def build(options: Options | None, context: Context) -> AdamW8bit:
    core = context.config
    return AdamW8bit(
        beta1=core.adamw_beta1,
        beta2=core.adamw_beta2,
        epsilon=core.adamw_epsilon,
        masters=keeps_masters(core),
        wide_sums=core.master_dtype == "fp32" and core.gradient_accumulation_steps > 1,
        kernels=core.kernels,
        offload=options or Options(),
    )


class State:
    """Moments of bound parameters. With ``offload_grads`` also a :class:`surogate_core.contracts.HoldsGradients`: then there is a
    ``clip``."""

    clip: Callable[[Sequence[Tensor], float], Tensor]

    def __init__(self, rule: AdamW8bit, groups: Sequence[ParamGroup], seed: int):
        self._rule, self._seed = rule, seed
        self._device = next((param.device for group in groups for param in group.params), torch.device("cpu"))
        self._places, coded = place(groups)
        self._end = self._places[-1].end if self._places else 0
        self._books: tuple[Codebook, Codebook] = codebook(True, self._device), codebook(False, self._device)
        self._store = Store(rule.offload, self._device)
        self._states = self._store.states(coded, self._end, rule.masters)
        for codes, book in zip(self._states.codes, self._books, strict=True):
            codes.fill_(book.zero)  # the padding between parameters stays 0 also where a loaded block has a scale
        self._rounds = not rule.masters and any(one.param.dtype == torch.bfloat16 for one in self._places)
        self._stretches = list(stretches(self._places, coded, CHUNK.get(self._device.type, CHUNK["cuda"])))
        self._native: Update | None = None
        kind = torch.device("cuda") if self._device.type == "meta" else self._device  # a GPU, planned where there is none
        native = bool(self._places) and native_on(kind, rule.kernels)
        self._blank = native and not addressable(self._places[0].param)  # the kernel has no values to work on, and takes no memory
        if native and not self._blank:
            self._native = Update(
                blocks=self._end // BLOCK,
                coded=coded // BLOCK,
                params=[one.param for one in self._places],
                starts=[one.start for one in self._places],
                decays=[one.weight_decay for one in self._places],
                books=self._books,
                device=self._device,
            )

        self._store.take_gradients(self._places, rule.wide_sums)
        if self._store.gradients is not None:
            self.clip = self._store.gradients.clip

    @torch.no_grad()
    def step(self, lr: Tensor, step: int) -> None:
        rates = Rates(beta1=self._rule.beta1, beta2=self._rule.beta2, epsilon=self._rule.epsilon, step=step)
        noise = draw(self._end, step_generator(self._device, self._seed, step), self._device) if self._rounds else None
        if self._blank:
            for _ in self._store.walk(self._states, self._stretches) if self._store.walks else ():
                pass  # what comes and goes takes memory also where nothing is computed
            return
        if self._native is None:
            for stretch, states in self._store.walk(self._states, self._stretches):
                self._update(stretch, states, lr, rates, noise)
            return
        self._native.prepare(lr, rates, noise)
        if self._store.walks:
            for stretch, states in self._store.walk(self._states, self._stretches):
                if self._store.gradients is not None:
                    self._native.gradients(self._store.gradients.addresses(stretch))
                self._native.launch(states, stretch.start // BLOCK, stretch.stop // BLOCK)
        else:
            self._native.launch(self._states, 0, self._end // BLOCK)
        self._native.release()

    def _update(self, stretch: Stretch, states: States, lr: Tensor, rates: Rates, noise: tuple[Tensor, Tensor] | None) -> None:
        """One stretch in plain torch."""
        held = self._store.gradients
        grad = stretch.gather(of_grad if held is None else held.piece, self._device)
        param = stretch.gather(of_param, self._device)
        if states.remainder is not None:
            restore_(param, states.remainder)
        if states.coded:
            coded = list(zip(self._books, states.codes, states.absmax, strict=True))
            m, v = (book.dequantize(codes, absmax) for book, codes, absmax in coded)
            update_(param, grad, m, v, lr, rates, stretch.weight_decay)
            for moment, (book, codes, absmax) in zip((m, v), coded, strict=True):
                book.quantize_(moment, codes, absmax)
        else:
            update_(param, grad, *states.exact, lr, rates, stretch.weight_decay)
        self._scatter(stretch, param, states.remainder, noise)

    def _scatter(self, stretch: Stretch, values: Tensor, remainder: Tensor | None, noise: tuple[Tensor, Tensor] | None) -> None:
        rounded = None if remainder is None else split_(values, remainder)
        for param, first, last, offset in stretch.pieces:
            target = param.detach().view(-1)[first:last]
            if param.dtype == torch.bfloat16:
                if rounded is None:
                    assert noise is not None
                    own = spread(noise, stretch.start, stretch.stop)
                    rounded = round_(torch.empty_like(values, dtype=torch.bfloat16), values, own)
                target.copy_(rounded[offset : offset + last - first])
            else:
                target.copy_(values[offset : offset + last - first])
                if remainder is not None:
                    remainder[offset : offset + last - first] = 0

    def state_dict(self) -> dict[str, Tensor]:
        """For each parameter ``NAME.m`` and ``NAME.v`` in its shape (uint8 codes, or float32 if small), and ``NAME.m_absmax`` and
        ``NAME.v_absmax`` (one float32 a block) beside codes; with masters ``NAME.remainder`` (int16). Views."""
        self._store.settle()
        return dict(self._entries())

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        fill(self.state_dict(), state, "adamw_8bit")

    def _entries(self) -> Iterator[tuple[str, Tensor]]:
        for one in self._places:
            count = one.param.numel()
            own = self._states.part(one.start // BLOCK, one.end // BLOCK)
            for moment, codes, absmax, exact in zip(("m", "v"), own.codes, own.absmax, own.exact, strict=True):
                values = codes if own.coded else exact
                yield f"{one.name}.{moment}", values[:count].view(one.param.shape)
                if own.coded:
                    yield f"{one.name}.{moment}_absmax", absmax
            if own.remainder is not None and one.param.dtype == torch.bfloat16:
                yield f"{one.name}.remainder", own.remainder[:count].view(one.param.shape)
