"""Random bits that are a pure function of a key and a counter: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as
1, 2, 3", 2011), the generator of CUDA's curand. The same on every device, and continued exactly from a saved counter."""

from __future__ import annotations

import numpy as np
import torch
from attrs import frozen
from numpy.typing import NDArray
from torch import Tensor

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
WORD = 0xFFFFFFFF
CHUNK = 1 << 14
"""Counters worked on at once: their words stay in a processor's cache."""


def philox(counter: tuple[Tensor, ...], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Four words of 32 random bits for each counter, which is four such words; int64 tensors that broadcast."""
    zero, one, two, three = torch.broadcast_tensors(*counter)
    even, odd = torch.stack((zero, two)), torch.stack((three, one))  # a word stands where the product that it joins will stand
    multipliers = torch.tensor(MULTIPLIERS, device=zero.device).view(2, *[1] * zero.dim())
    first, second = key
    for number in range(10):
        keys = torch.tensor((second, first) if number % 2 == 0 else (first, second), device=zero.device).view_as(multipliers)
        product = even * (multipliers if number % 2 == 0 else multipliers.flip(0))  # modulo 2**64: the bits count, not the sign
        even = product.bitwise_right_shift(32).bitwise_xor_(odd).bitwise_xor_(keys).bitwise_and_(WORD)
        odd = product.bitwise_and_(WORD).flip(0)
        first, second = (first + WEYL[0]) & WORD, (second + WEYL[1]) & WORD
    return even[0], odd[1], even[1], odd[0]


@frozen(eq=False)
class Draw:
    """Random words of ``key`` and ``step`` (int64 scalar, on the device that they are wanted on) from word ``base`` on, a multiple
    of 4."""

    key: tuple[int, int]
    step: Tensor
    base: int = 0

    def words(self, count: int) -> Tensor:
        return words(count, self.key, self.step, self.base)

    def bits(self, rows: int, columns: int) -> Tensor:
        """:func:`bits16` of a matrix (rows, columns)."""
        return bits16(self.words(-(-rows * columns // 2)), rows, columns)


def words(count: int, key: tuple[int, int], step: Tensor, base: int = 0) -> Tensor:
    """``count`` words of 32 random bits from word ``base``, a multiple of 4, on, int64: those of the counters (0, 0, step),
    (1, 0, step), ... in order, where ``step``, an int64 scalar on the device that the words are wanted on, takes two words; on a
    GPU it is not read."""
    if base % 4:
        raise ValueError(f"words from number {base} on: counters have four each")
    if step.device.type == "cpu":
        return torch.from_numpy(_words_on_cpu(base // 4, -(-count // 4), key, int(step))).view(-1)[:count]
    found = torch.empty(-(-count // 4), 4, dtype=torch.int64, device=step.device)
    low, high = step & WORD, step.bitwise_right_shift(32) & WORD
    for start in range(0, found.shape[0], CHUNK):
        index = torch.arange(start, min(start + CHUNK, found.shape[0]), device=step.device)
        counters = index + base // 4
        torch.stack(philox((counters, torch.zeros_like(step), low, high), key), dim=1, out=found[start : start + index.numel()])
    return found.view(-1)[:count]


def _words_on_cpu(first_counter: int, counters: int, key: tuple[int, int], step: int) -> NDArray[np.int64]:
    """(counters, 4): :func:`philox` where a 64-bit product can be read as its two halves, which saves most of the passes."""
    found = np.empty((counters, 4), dtype=np.int64)
    for start in range(0, counters, CHUNK):
        size = min(CHUNK, counters - start)
        zero = np.arange(first_counter + start, first_counter + start + size, dtype=np.uint32)
        one = np.zeros(size, dtype=np.uint32)
        two, three = (np.full(size, word & WORD, dtype=np.uint32) for word in (step, step >> 32))
        first, second = key
        for _ in range(10):
            left, right = (
                np.multiply(word, np.uint64(by), dtype=np.uint64).view(np.uint32).reshape(-1, 2)  # low, high
                for word, by in zip((zero, two), MULTIPLIERS, strict=True)
            )
            zero, two = right[:, 1] ^ one ^ np.uint32(first), left[:, 1] ^ three ^ np.uint32(second)
            one, three = right[:, 0], left[:, 0]
            first, second = (first + WEYL[0]) & WORD, (second + WEYL[1]) & WORD
        for place, word in enumerate((zero, one, two, three)):
            found[start : start + size, place] = word
    return found


def bits16(words: Tensor, rows: int, columns: int) -> Tensor:
    """Integers in [0, 65536) for a matrix (rows, columns), int32: the halves of rows * columns / 2 words, the low one first, row by
    row. A block of 16 values has two counters of its own where ``columns`` is divisible by 16."""
    halves = torch.stack((words & 0xFFFF, words >> 16), dim=1).to(torch.int32)
    return halves.view(-1)[: rows * columns].view(rows, columns)


def signs(words: Tensor) -> Tensor:
    """32 signs for each word, float32 1 or -1: its bits, lowest first; 0 is +."""
    places = torch.arange(32, device=words.device)
    return 1.0 - 2.0 * ((words[:, None] >> places) & 1).view(-1).to(torch.float32)
