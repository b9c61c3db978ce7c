"""Random bits that are a pure function of a key and a counter: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as
1, 2, 3", 2011), the generator of CUDA's curand. The same on every device, and continued exactly from a saved counter."""

from __future__ import annotations

import torch
from torch import Tensor

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
WORD = 0xFFFFFFFF
CHUNK = 1 << 15
"""Counters worked on at once: their words stay in a processor's cache."""


def philox(counter: tuple[Tensor, ...], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Four words of 32 random bits for each counter, which is four such words; int64 tensors that broadcast."""
    zero, one, two, three = torch.broadcast_tensors(*counter)
    first, second = key
    for _ in range(10):
        product, other = zero * MULTIPLIERS[0], two * MULTIPLIERS[1]  # modulo 2**64: the shifts below see the bits, not the sign
        zero = other.bitwise_right_shift(32).bitwise_and_(WORD).bitwise_xor_(one).bitwise_xor_(first)
        two = product.bitwise_right_shift(32).bitwise_and_(WORD).bitwise_xor_(three).bitwise_xor_(second)
        one, three = other.bitwise_and_(WORD), product.bitwise_and_(WORD)
        first, second = (first + WEYL[0]) & WORD, (second + WEYL[1]) & WORD
    return zero, one, two, three


def words(count: int, key: tuple[int, int], stream: int, step: Tensor) -> Tensor:
    """``count`` words of 32 random bits, int64: those of the counters (0, stream, step), (1, stream, step), ... in order.
    ``step`` is an int64 scalar on the device that the words are wanted on; it is not read."""
    found = torch.empty(-(-count // 4), 4, dtype=torch.int64, device=step.device)
    low, high = step & WORD, step.bitwise_right_shift(32) & WORD
    second = torch.full_like(step, stream)
    for start in range(0, found.shape[0], CHUNK):
        index = torch.arange(start, min(start + CHUNK, found.shape[0]), device=step.device)
        for place, word in enumerate(philox((index, second, low, high), key)):
            found[start : start + index.numel(), place] = word
    return found.view(-1)[:count]


def bits16(shape: tuple[int, int], key: tuple[int, int], stream: int, step: Tensor) -> Tensor:
    """Integers in [0, 65536) for a matrix (rows, columns), int32: the halves of :func:`words`, the low one first, column by
    column."""
    rows, columns = shape
    drawn = words(-(-rows * columns // 2), key, stream, step)
    halves = torch.stack((drawn & 0xFFFF, drawn >> 16), dim=1).to(torch.int32)
    return halves.view(-1)[: rows * columns].view(columns, rows).t()


def signs(count: int, key: tuple[int, int], stream: int, step: Tensor) -> Tensor:
    """``count`` signs, float32 1 or -1: the bits of :func:`words`, lowest first; 0 is +."""
    drawn = words(-(-count // 32), key, stream, step)
    places = torch.arange(32, device=step.device)
    return 1.0 - 2.0 * ((drawn[:, None] >> places) & 1).view(-1)[:count].to(torch.float32)
