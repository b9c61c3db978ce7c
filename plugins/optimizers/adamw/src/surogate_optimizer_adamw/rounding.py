"""Stochastic rounding of float32 to bfloat16, so that updates smaller than half a bfloat16 step are not lost."""

from __future__ import annotations

import torch
from torch import Tensor

_MIX = 0x9E3779B97F4A7C15
"""2^64 divided by the golden ratio: spreads consecutive steps over the 64-bit seeds (Steele, Lea, Flood, "SplitMix", 2014)."""


ROW = 4096
"""Random numbers drawn for a tensor, and one more for each time that they are used."""


def step_generator(device: torch.device, seed: int, step: int) -> torch.Generator:
    """A generator that depends on (seed, step) alone: a resumed run draws what the uninterrupted one did."""
    mixed = (seed + step * _MIX) % 2**64
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) % 2**64
    where = "cpu" if device.type == "meta" else device  # there are no random numbers without values
    return torch.Generator(where).manual_seed((mixed ^ (mixed >> 31)) % 2**63)


def draw(count: int, generator: torch.Generator, device: torch.device) -> tuple[Tensor, Tensor]:
    """Noise on ``device`` for ``count`` values, int16: a row (4096,) and a number for each repetition of it (:func:`spread`)."""
    rows = -(-count // ROW)
    drawn = torch.empty(-(-(ROW + rows) // 4), dtype=torch.int64, device=generator.device)
    drawn = drawn.random_(-(2**63), None, generator=generator).view(torch.int16).to(device)
    return drawn[:ROW], drawn[ROW : ROW + rows]


def spread(noise: tuple[Tensor, Tensor], start: int, stop: int) -> Tensor:
    """(stop - start,) int16, uniform: the row of random numbers, repeated with a random number added to each repetition (modulo
    2^16). Two numbers at different places of the row, or in different repetitions, are independent; drawing all of them one by one
    takes longer than the rest of an update."""
    first = start // ROW
    rows = noise[1][first : -(-stop // ROW)]
    return (noise[0] + rows[:, None]).view(-1)[start - first * ROW : stop - first * ROW]


def stochastic_round_(target: Tensor, source: Tensor, generator: torch.Generator) -> Tensor:
    """:func:`round_` with noise drawn for this tensor. Any two values are rounded independently of each other, so the variance of a
    sum is that of independent roundings."""
    count = source.numel()
    return round_(target, source, spread(draw(count, generator, source.device), 0, count).view(source.shape))


def round_(target: Tensor, source: Tensor, noise: Tensor) -> Tensor:
    """Write ``source`` (float32) to ``target`` (bfloat16, same shape), up or down with probabilities that keep the mean.

    Adds 16 random bits (``noise``, int16) below the bfloat16 mantissa and truncates. Values that bfloat16 holds, infinities and NaN
    are kept.
    """
    bits = noise.to(torch.int32).add_(source.view(torch.int32)).add_(2**15).bitwise_right_shift_(16)
    target.view(torch.int16).copy_(bits)
    # the carry of a NaN with all mantissa bits set (as CUDA makes it) would end in -0; on the CPU a look at one sum is cheaper
    if source.device.type != "cpu" or not torch.isfinite(source.sum()):
        target.masked_fill_(source.isnan(), torch.nan)
    return target
