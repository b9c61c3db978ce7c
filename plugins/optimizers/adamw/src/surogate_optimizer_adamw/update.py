"""torch's fused AdamW. float32 parameters are updated in place; bfloat16 ones in a float32 scratch copy that is rounded back
stochastically, or whose remainder is kept (``masters.py``). Both moments are float32 in either case."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from attrs import frozen
from torch import Tensor
from torch.optim.adamw import adamw

from surogate_core.contracts import Context, ParamGroup
from surogate_optimizer_adamw.fill import fill
from surogate_optimizer_adamw.masters import keeps_masters, restore_, split_
from surogate_optimizer_adamw.rounding import step_generator, stochastic_round_

CHUNK = {"cpu": 1 << 18, "cuda": 1 << 26}
"""Values of bfloat16 parameters in the scratch copy at a time."""


@frozen(kw_only=True)
class AdamW:
    beta1: float
    beta2: float
    epsilon: float
    masters: bool = False

    def state_bytes(self, shape: tuple[int, ...], name: str = "") -> int:
        return (10 if self.masters else 8) * math.prod(shape)

    def bind(self, groups: Sequence[ParamGroup], seed: int) -> State:
        return State(self, groups, seed)


def build(options: None, context: Context) -> AdamW:
    core = context.config
    return AdamW(beta1=core.adamw_beta1, beta2=core.adamw_beta2, epsilon=core.adamw_epsilon, masters=keeps_masters(core))


class State:
    """Moments of bound parameters, in the parameters' shapes."""

    def __init__(self, rule: AdamW, groups: Sequence[ParamGroup], seed: int):
        self._rule, self._groups, self._seed = rule, groups, seed
        self._moments = {
            name: tuple(torch.zeros_like(param, dtype=torch.float32, requires_grad=False) for _ in range(2))
            for group in groups
            for name, param in zip(group.names, group.params, strict=True)
        }
        self._remainders = {
            name: torch.zeros_like(param, dtype=torch.int16, requires_grad=False)
            for group in groups
            for name, param in zip(group.names, group.params, strict=True)
            if rule.masters and param.dtype == torch.bfloat16
        }

    @torch.no_grad()
    def step(self, lr: Tensor, step: int) -> None:
        generators: dict[torch.device, torch.Generator] = {}
        for group in self._groups:
            exact: list[tuple[Tensor, ...]] = []
            pieces: list[tuple[Tensor, ...]] = []
            for name, param in zip(group.names, group.params, strict=True):
                if param.grad is None:
                    continue
                m, v = self._moments[name]
                if param.dtype == torch.float32:
                    exact.append((param.detach(), param.grad, m, v))
                else:
                    pieces += _cut(param.detach(), param.grad, m, v, *self._remainder(name))
            self._fused(exact, lr, step, group.weight_decay)
            for batch in _batches(pieces):
                device = batch[0][0].device
                generator = generators.setdefault(device, step_generator(device, self._seed, step))
                sizes = [param.numel() for param, *_ in batch]
                scratch, grads = (_float([entry[index] for entry in batch]) for index in (0, 1))
                remainder = torch.cat([entry[4] for entry in batch]) if self._rule.masters else None
                if remainder is not None:
                    restore_(scratch, remainder)
                moments = [entry[2] for entry in batch], [entry[3] for entry in batch]
                self._fused(
                    list(zip(scratch.split(sizes), grads.split(sizes), *moments, strict=True)), lr, step, group.weight_decay
                )
                if remainder is None:
                    rounded = stochastic_round_(torch.empty_like(scratch, dtype=torch.bfloat16), scratch, generator)
                else:
                    rounded = split_(scratch, remainder)
                    torch._foreach_copy_([entry[4] for entry in batch], list(remainder.split(sizes)))
                torch._foreach_copy_([param for param, *_ in batch], list(rounded.split(sizes)))

    def _fused(self, entries: Sequence[tuple[Tensor, ...]], lr: Tensor, step: int, weight_decay: float) -> None:
        if not entries:
            return
        params, grads, m, v = (list(column) for column in zip(*entries, strict=True))
        adamw(
            params,
            grads,
            m,
            v,
            [],
            list(torch.full((len(params),), step - 1.0, device=params[0].device).unbind()),
            fused=True,
            amsgrad=False,
            beta1=self._rule.beta1,
            beta2=self._rule.beta2,
            lr=lr,
            weight_decay=weight_decay,
            eps=self._rule.epsilon,
            maximize=False,
        )

    def state_dict(self) -> dict[str, Tensor]:
        """For each parameter ``NAME.m`` and ``NAME.v``, float32 in its shape; with masters ``NAME.remainder``, int16."""
        moments = {
            f"{name}.{moment}": tensor for name, pair in self._moments.items() for moment, tensor in zip("mv", pair, strict=True)
        }
        return {**moments, **{f"{name}.remainder": tensor for name, tensor in self._remainders.items()}}

    def _remainder(self, name: str) -> tuple[Tensor, ...]:
        return (self._remainders[name],) if name in self._remainders else ()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        fill(self.state_dict(), state, "adamw")


def _chunk(tensor: Tensor) -> int:
    return CHUNK.get(tensor.device.type, CHUNK["cuda"])


def _cut(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Flat pieces of at most one chunk, of tensors of one shape."""
    return zip(*(tensor.view(-1).split(_chunk(tensor)) for tensor in tensors), strict=True)


def _float(pieces: Sequence[Tensor]) -> Tensor:
    """The pieces one after another, in float32."""
    whole = pieces[0].new_empty(sum(piece.numel() for piece in pieces), dtype=torch.float32)
    torch._foreach_copy_(list(whole.split([piece.numel() for piece in pieces])), list(pieces))
    return whole


def _batches(pieces: Sequence[tuple[Tensor, ...]]) -> Iterator[list[tuple[Tensor, ...]]]:
    """Consecutive pieces, together at most one chunk: small parameters share the cost of the calls."""
    batch: list[tuple[Tensor, ...]] = []
    for piece in pieces:
        if batch and sum(entry[0].numel() for entry in batch) + piece[0].numel() > _chunk(piece[0]):
            yield batch
            batch = []
        batch.append(piece)
    if batch:
        yield batch
