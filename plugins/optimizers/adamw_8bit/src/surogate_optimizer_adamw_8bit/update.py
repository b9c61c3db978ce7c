"""AdamW (Loshchilov and Hutter, arXiv 1711.05101) with both moments in the dynamic 8-bit format of ``codes.py``.

For a gradient g at step t, in float32::

    m = b1 m + (1 - b1) g        v = b2 v + (1 - b2) g^2
    p = (p - lr sqrt(1 - b2^t) / (1 - b1^t) * m / (sqrt(v) + eps sqrt(1 - b2^t))) * (1 - lr wd)

as bitsandbytes' CUDA kernel has it, weight decay last. An element whose gradient is not finite (or whose square is not) keeps its
value and starts over with m = v = 0. Tensors below 4,096 values keep float32 moments.

The moments of all parameters lie in flat arenas, each parameter at a multiple of 256. The arenas are worked through in chunks, so
that float32 moments exist for one chunk at a time and small parameters share one vectorised update.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from attrs import frozen
from surogate_optimizer_adamw.fill import fill
from surogate_optimizer_adamw.masters import keeps_masters, restore_, split_
from surogate_optimizer_adamw.rounding import step_generator, stochastic_round_
from torch import Tensor

from surogate_core.contracts import Context, ParamGroup
from surogate_native_adam8.codes import BLOCK, Codebook, codebook

SMALL = 4096
"""Tensors below this many values keep float32 moments."""
CHUNK = {"cpu": 1 << 18, "cuda": 1 << 23}
"""Values updated at a time: on the CPU the working set stays in the cache, on a GPU the launches must not dominate."""


def _padded(count: int) -> int:
    return -(-count // BLOCK) * BLOCK


@frozen(kw_only=True)
class AdamW8bit:
    beta1: float
    beta2: float
    epsilon: float
    masters: bool = False

    def state_bytes(self, shape: tuple[int, ...], name: str = "") -> int:
        count = math.prod(shape)
        moments = 8 * count if count < SMALL else 2 * _padded(count) + 2 * 4 * _padded(count) // BLOCK
        return moments + (2 * count if self.masters else 0)

    def bind(self, groups: Sequence[ParamGroup], seed: int) -> State:
        return State(self, groups, seed)


def build(options: None, context: Context) -> AdamW8bit:
    core = context.config
    return AdamW8bit(beta1=core.adamw_beta1, beta2=core.adamw_beta2, epsilon=core.adamw_epsilon, masters=keeps_masters(core))


@frozen(eq=False)
class Place:
    """Where the moments of one parameter lie: from ``start`` in the 8-bit or in the float32 arena."""

    name: str
    param: Tensor
    start: int
    small: bool


@frozen(eq=False)
class Chunk:
    """A stretch [start, stop) of one arena with one weight decay. ``pieces`` are (parameter, from, to, offset in the chunk)."""

    start: int
    stop: int
    small: bool
    weight_decay: float
    pieces: tuple[tuple[Tensor, int, int, int], ...]

    def gather(self, kind: str, device: torch.device) -> Tensor:
        """Parameters (``kind`` "param") or gradients ("grad") of this chunk in float32, padding and missing gradients 0."""
        flat = torch.zeros(self.stop - self.start, device=device)
        for param, first, last, offset in self.pieces:
            values = param.detach() if kind == "param" else param.grad
            if values is not None:
                flat[offset : offset + last - first].copy_(values.reshape(-1)[first:last])
        return flat


class State:
    """Moments of bound parameters."""

    def __init__(self, rule: AdamW8bit, groups: Sequence[ParamGroup], seed: int):
        self._rule, self._seed = rule, seed
        self._places: list[Place] = []
        self._chunks: list[Chunk] = []
        device = next((param.device for group in groups for param in group.params), torch.device("cpu"))
        self._device = device
        ends = {True: 0, False: 0}
        for group in groups:
            for small in (False, True):
                first = len(self._places)
                for name, param in zip(group.names, group.params, strict=True):
                    if (param.numel() < SMALL) is small:
                        self._places.append(Place(name, param, ends[small], small))
                        ends[small] += _padded(param.numel())
                self._chunks += _cut(self._places[first:], group.weight_decay, small, CHUNK.get(device.type, CHUNK["cuda"]))
        self._maps: tuple[Codebook, Codebook] = codebook(True, device), codebook(False, device)
        # the padding between parameters must stay 0 also where a loaded block has a scale
        self._codes = tuple(torch.full((ends[False],), book.zero, dtype=torch.uint8, device=device) for book in self._maps)
        self._absmax = tuple(torch.zeros(ends[False] // BLOCK, device=device) for _ in range(2))
        self._exact = tuple(torch.zeros(ends[True], device=device) for _ in range(2))
        self._remainders = (
            {small: torch.zeros(end, dtype=torch.int16, device=device) for small, end in ends.items()} if rule.masters else None
        )

    @torch.no_grad()
    def step(self, lr: Tensor, step: int) -> None:
        generator = step_generator(self._device, self._seed, step)
        for chunk in self._chunks:
            grad = chunk.gather("grad", self._device)
            param = chunk.gather("param", self._device)
            remainder = self._remainders[chunk.small][chunk.start : chunk.stop] if self._remainders else None
            if remainder is not None:
                restore_(param, remainder)
            if chunk.small:
                m, v = (moment[chunk.start : chunk.stop] for moment in self._exact)
                self._update(param, grad, m, v, lr, step, chunk.weight_decay)
            else:
                states = [
                    (book, codes[chunk.start : chunk.stop], absmax[chunk.start // BLOCK : chunk.stop // BLOCK])
                    for book, codes, absmax in zip(self._maps, self._codes, self._absmax, strict=True)
                ]
                m, v = (book.dequantize(codes, absmax) for book, codes, absmax in states)
                self._update(param, grad, m, v, lr, step, chunk.weight_decay)
                for moment, (book, codes, absmax) in zip((m, v), states, strict=True):
                    book.quantize_(moment, codes, absmax)
            self._scatter(chunk, param, remainder, generator)

    def _update(self, param: Tensor, grad: Tensor, m: Tensor, v: Tensor, lr: Tensor, step: int, weight_decay: float) -> None:
        """One AdamW update of float32 tensors (n,), in place."""
        rule = self._rule
        correction2 = math.sqrt(1 - rule.beta2**step)
        m.mul_(rule.beta1).add_(grad, alpha=1 - rule.beta1)
        v.mul_(rule.beta2).addcmul_(grad, grad, value=1 - rule.beta2)
        # v holds a square of every gradient: it tells what is not finite
        bad = self._not_finite(v)
        if bad is not None:
            m.masked_fill_(bad, 0)
            v.masked_fill_(bad, 0)
        change = m / v.sqrt().add_(rule.epsilon * correction2)
        param.sub_(change.mul_(lr * (correction2 / (1 - rule.beta1**step))))
        if weight_decay:
            kept = 1 - lr * weight_decay
            param.mul_(kept if bad is None else torch.where(bad, 1.0, kept))

    @staticmethod
    def _not_finite(v: Tensor) -> Tensor | None:
        """Where v >= 0 is infinite or NaN. None on the CPU, where looking at a value costs nothing, when there is no such place."""
        if v.device.type == "cpu" and math.isfinite(v.amax()):
            return None
        return (v <= torch.finfo(v.dtype).max).logical_not_()

    def _scatter(self, chunk: Chunk, values: Tensor, remainder: Tensor | None, generator: torch.Generator) -> None:
        rounded = None if remainder is None else split_(values, remainder)
        for param, first, last, offset in chunk.pieces:
            target = param.detach().view(-1)[first:last]
            if param.dtype == torch.bfloat16:
                if rounded is None:
                    rounded = stochastic_round_(torch.empty_like(values, dtype=torch.bfloat16), values, generator)
                target.copy_(rounded[offset : offset + last - first])
            else:
                target.copy_(values[offset : offset + last - first])
                if remainder is not None:
                    remainder[offset : offset + last - first] = 0

    def state_dict(self) -> dict[str, Tensor]:
        """For each parameter ``NAME.m`` and ``NAME.v`` in its shape (uint8 codes, or float32 if small), and ``NAME.m_absmax`` and
        ``NAME.v_absmax`` (one float32 a block) beside codes; with masters ``NAME.remainder`` (int16). Views."""
        return dict(self._entries())

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        fill(self.state_dict(), state, "adamw_8bit")

    def _entries(self) -> Iterator[tuple[str, Tensor]]:
        for place in self._places:
            count = place.param.numel()
            for moment, codes, absmax, exact in zip(("m", "v"), self._codes, self._absmax, self._exact, strict=True):
                arena = exact if place.small else codes
                yield f"{place.name}.{moment}", arena[place.start : place.start + count].view(place.param.shape)
                if not place.small:
                    first = place.start // BLOCK
                    yield f"{place.name}.{moment}_absmax", absmax[first : first + _padded(count) // BLOCK]
            if self._remainders and place.param.dtype == torch.bfloat16:
                remainder = self._remainders[place.small][place.start : place.start + count]
                yield f"{place.name}.remainder", remainder.view(place.param.shape)


def _cut(places: Sequence[Place], weight_decay: float, small: bool, size: int) -> Iterator[Chunk]:
    """Chunks of at most ``size`` values over parameters that lie one behind the other."""
    if not places:
        return
    end = places[-1].start + _padded(places[-1].param.numel())
    for start in range(places[0].start, end, size):
        stop = min(start + size, end)
        pieces = []
        for place in places:
            first, last = max(0, start - place.start), min(place.param.numel(), stop - place.start)
            if first < last:
                pieces.append((place.param, first, last, place.start + first - start))
        yield Chunk(start, stop, small, weight_decay, tuple(pieces))
