"""NorMuon (Li et al., arXiv 2510.05491, algorithm 1) on hidden matrices, ``adamw_8bit`` on everything else.

For a matrix W (m, n) with rows as outputs, gradient G and learning rate lr::

    M = b1 M + (1 - b1) G                   momentum, kept in 8 bits where the matrix has 4,096 values or more
    O = orthogonalize(M)                    Polar Express in bfloat16 (the paper has five Newton-Schulz steps)
    v = b2 v + (1 - b2) mean_j O_ij^2       for each row i
    U = O / (sqrt(v) + 1e-8)
    U = 0.2 lr sqrt(m n) / |U|_F U          the one factor of shape: the root mean square of U is 0.2 lr
    W = W - lr wd W - U                     with cautious decay only where U_ij W_ij >= 0

The update is as large as AdamW's usually is, so both parts of the model share one learning rate. A matrix whose gradient is not
finite keeps its value; its momentum fades as if the gradient were zero. bfloat16 weights are rounded stochastically, or have
masters.

Matrices of one shape lie in one bank and are worked through together, a chunk of the bank at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from attrs import frozen
from surogate_native_adam8.codes import BLOCK, Codebook, codebook
from surogate_optimizer_adamw.fill import fill
from surogate_optimizer_adamw.masters import restore_, split_
from surogate_optimizer_adamw.rounding import step_generator, stochastic_round_
from surogate_optimizer_adamw_8bit.update import SMALL, AdamW8bit
from surogate_optimizer_adamw_8bit.update import build as build_adamw
from torch import Tensor

from surogate_core.contracts import Context, OptimizerState, ParamGroup
from surogate_optimizer_normuon.matrices import Cut, cuts, is_hidden
from surogate_optimizer_normuon.orthogonal import orthogonalize
from surogate_optimizer_normuon.plugin import Options

UPDATE_RMS = 0.2
EPSILON = 1e-8
CHUNK = {"cpu": 1 << 20, "cuda": 1 << 24}
"""Values worked on at a time (a larger matrix alone)."""
SEED = 0x4D75
"""Added to the seed, so that matrices and the AdamW part do not round by the same numbers."""


def _padded(count: int) -> int:
    return -(-count // BLOCK) * BLOCK


@frozen(kw_only=True)
class NorMuon:
    """``work`` is the precision of the orthogonalisation."""

    momentum: float
    beta2: float
    cautious: bool
    adamw: AdamW8bit
    work: torch.dtype = torch.bfloat16

    def state_bytes(self, shape: tuple[int, ...], name: str = "") -> int:
        if not is_hidden(name, shape):
            return self.adamw.state_bytes(shape)
        count = math.prod(shape[-2:])
        momentum = 4 * count if count < SMALL else _padded(count) + 4 * _padded(count) // BLOCK
        remainder = 2 * count if self.adamw.masters else 0
        return math.prod(shape[:-2]) * (momentum + 4 * shape[-2] + remainder)

    def bind(self, groups: Sequence[ParamGroup], seed: int) -> State:
        return State(self, groups, seed)


def build(options: Options, context: Context) -> NorMuon:
    return NorMuon(
        momentum=options.normuon_momentum,
        beta2=options.normuon_beta2,
        cautious=options.normuon_cautious_wd,
        adamw=build_adamw(None, context),
    )


def normalize_rows(o: Tensor, v: Tensor, beta2: float) -> Tensor:
    """Divide each row of ``o`` (B, m, n) by the root of its mean square over past steps, ``v`` (B, m), which is updated."""
    v.lerp_(o.square().mean(dim=2), 1 - beta2)
    return o.div_(v.sqrt().add_(EPSILON).unsqueeze(2))


@frozen(eq=False)
class Piece:
    """The matrices of one cut of a parameter; they lie in their bank from ``start``."""

    name: str
    param: Tensor
    cut: Cut
    start: int
    count: int

    def within(self, first: int, last: int) -> tuple[slice, slice] | None:
        """Where slots ``first`` to ``last`` of the bank meet this piece: as a slice of the piece and of the slots."""
        low, high = max(first, self.start), min(last, self.start + self.count)
        return (slice(low - self.start, high - self.start), slice(low - first, high - first)) if low < high else None


class Bank:
    """All matrices of one shape, dtype and weight decay, with their states: ``v`` (slots, m), and the momentum as float32 values
    ``exact`` (slots, m n), or as ``codes`` (slots, m n rounded up to whole blocks) with ``absmax``; with
    masters their ``remainder`` (slots, m, n)."""

    def __init__(self, shape: tuple[int, int], weight_decay: float, device: torch.device):
        self.shape, self.weight_decay, self.device = shape, weight_decay, device
        self.values = math.prod(shape)
        self.small = self.values < SMALL
        self.pieces: list[Piece] = []
        self.slots = 0

    def add(self, name: str, param: Tensor, cut: Cut) -> None:
        count = cut.of(param).shape[0]
        self.pieces.append(Piece(f"{name}.{cut.label}" if cut.label else name, param, cut, self.slots, count))
        self.slots += count

    def allocate(self, zero: int, masters: bool) -> None:
        masters = masters and self.pieces[0].param.dtype == torch.bfloat16
        self.remainder = torch.zeros(self.slots, *self.shape, dtype=torch.int16, device=self.device) if masters else None
        self.v = torch.zeros(self.slots, self.shape[0], device=self.device)
        if self.small:
            self.exact = torch.zeros(self.slots, self.values, device=self.device)
        else:
            width = _padded(self.values)
            self.codes = torch.full((self.slots, width), zero, dtype=torch.uint8, device=self.device)
            self.absmax = torch.zeros(self.slots, width // BLOCK, device=self.device)

    def chunks(self) -> Iterator[tuple[int, int]]:
        size = max(1, CHUNK.get(self.device.type, CHUNK["cuda"]) // self.values)
        return ((first, min(first + size, self.slots)) for first in range(0, self.slots, size))

    def gather(self, kind: str, first: int, last: int) -> Tensor:
        """Parameters (``kind`` "param") or gradients ("grad") of slots ``first`` to ``last`` in float32, missing gradients 0."""
        matrices = torch.zeros(last - first, *self.shape, device=self.device)
        for piece in self.pieces:
            values = piece.param.detach() if kind == "param" else piece.param.grad
            if (place := piece.within(first, last)) and values is not None:
                matrices[place[1]].copy_(piece.cut.of(values)[place[0]])
        if kind == "param" and self.remainder is not None:
            restore_(matrices, self.remainder[first:last])
        return matrices

    def scatter(self, matrices: Tensor, first: int, last: int, generator: torch.Generator) -> None:
        dtype = self.pieces[0].param.dtype
        if self.remainder is not None:
            matrices = split_(matrices, self.remainder[first:last])
        elif dtype == torch.bfloat16:
            matrices = stochastic_round_(torch.empty_like(matrices, dtype=dtype), matrices, generator)
        for piece in self.pieces:
            if place := piece.within(first, last):
                piece.cut.of(piece.param.detach())[place[0]].copy_(matrices[place[1]])

    def entries(self) -> Iterator[tuple[str, Tensor]]:
        for piece in self.pieces:
            slots = slice(piece.start, piece.start + piece.count)
            momentum = self.exact if self.small else self.codes
            yield f"{piece.name}.m", momentum[slots, : self.values].view(piece.count, *self.shape)
            if not self.small:
                yield f"{piece.name}.m_absmax", self.absmax[slots]
            yield f"{piece.name}.v", self.v[slots]
            if self.remainder is not None:
                yield f"{piece.name}.remainder", self.remainder[slots]


class State:
    """Momentum and row-wise second moments of the hidden matrices, and the AdamW state of the other parameters."""

    def __init__(self, rule: NorMuon, groups: Sequence[ParamGroup], seed: int):
        self._rule, self._seed = rule, seed + SEED
        device = next((param.device for group in groups for param in group.params), torch.device("cpu"))
        shapes = {name: tuple(param.shape) for group in groups for name, param in zip(group.names, group.params, strict=True)}
        banks: dict[tuple[object, ...], Bank] = {}
        others = []
        for group in groups:
            left = []
            for name, param in zip(group.names, group.params, strict=True):
                parts = cuts(name, shapes)
                for cut in parts:
                    rows, columns = cut.of(param).shape[1:]
                    key = rows, columns, param.dtype, group.weight_decay
                    banks.setdefault(key, Bank((rows, columns), group.weight_decay, device)).add(name, param, cut)
                if not parts:
                    left.append((name, param))
            if left:
                names, params = zip(*left, strict=True)
                others.append(ParamGroup(names=names, params=params, weight_decay=group.weight_decay))
        self._book: Codebook = codebook(True, device)
        self._banks = list(banks.values())
        for bank in self._banks:
            bank.allocate(self._book.zero, rule.adamw.masters)
        self._others: OptimizerState = rule.adamw.bind(others, seed)
        self._device = device

    @torch.no_grad()
    def step(self, lr: Tensor, step: int) -> None:
        self._others.step(lr, step)
        generator = step_generator(self._device, self._seed, step)
        for bank in self._banks:
            for first, last in bank.chunks():
                grad = bank.gather("grad", first, last)
                good = torch.isfinite(grad.abs().amax(dim=(1, 2), keepdim=True))
                update = self._update(bank, first, last, torch.where(good, grad, 0))
                rate = torch.where(good, lr, 0)
                param = bank.gather("param", first, last)
                self._apply(param, update, rate, bank.weight_decay)
                bank.scatter(param, first, last, generator)

    def _update(self, bank: Bank, first: int, last: int, grad: Tensor) -> Tensor:
        """The update of slots ``first`` to ``last`` for learning rate 1, from gradients of the same shape (B, m, n)."""
        rule = self._rule
        if bank.small:
            momentum = bank.exact[first:last].view_as(grad)
            momentum.lerp_(grad, 1 - rule.momentum)
            o = orthogonalize(momentum, rule.work)
        else:
            codes, absmax = bank.codes[first:last].view(-1), bank.absmax[first:last].view(-1)
            flat = self._book.dequantize(codes, absmax)
            momentum = flat.view(last - first, -1)[:, : bank.values].view_as(grad)
            momentum.lerp_(grad, 1 - rule.momentum)
            o = orthogonalize(momentum, rule.work)
            self._book.quantize_(flat, codes, absmax)
        o = normalize_rows(o.to(torch.float32, copy=True), bank.v[first:last], rule.beta2)
        norm = torch.linalg.vector_norm(o, dim=(1, 2), keepdim=True).clamp_min(EPSILON)  # 0 without any gradient so far
        return o.mul_(UPDATE_RMS * math.sqrt(bank.values) / norm)

    def _apply(self, param: Tensor, update: Tensor, rate: Tensor, weight_decay: float) -> None:
        """``param`` (B, m, n) after the update at ``rate`` (B, 1, 1), in place."""
        if weight_decay:
            decay = param * (rate * weight_decay)
            if self._rule.cautious:
                decay.mul_(update * param >= 0)
            param.sub_(decay)
        param.sub_(update.mul_(rate))

    def state_dict(self) -> dict[str, Tensor]:
        """For each hidden matrix ``NAME.m`` (E, m, n), uint8 codes with ``NAME.m_absmax`` or float32, and ``NAME.v`` (E, m); a
        part of a joined weight has its name between, ``NAME.gate.m``. For other parameters what ``adamw_8bit`` has."""
        return {**self._others.state_dict(), **{name: tensor for bank in self._banks for name, tensor in bank.entries()}}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        fill(self.state_dict(), state, "normuon")
