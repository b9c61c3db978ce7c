"""E2M1 and E4M3: values, rounding, bytes.

E2M1 has a sign, two bits of exponent and one of mantissa: 0, .5, 1, 1.5, 2, 3, 4, 6 and their negatives; no infinity, no NaN. The
code is sign << 3 | index. E4M3 here is the finite variant with the largest value 448 (OCP "FN").

Both stochastic roundings take 16 random bits k in [0, 65536) for each value and round up when the fraction above the lower
neighbour plus (k + 1/2) / 65536 reaches 1: a representable value never moves, and the mean is the value to 2**-17 of a step.
"""

from __future__ import annotations

import torch
from torch import Tensor

E2M1_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
E2M1_MAX = 6.0
E4M3_MAX = 448.0
EXPONENT = 0x7F800000
"""The exponent bits of a float32: keeping only them rounds |x| down to a power of two."""


ANCHOR = 1.5 * 2.0**22


def _power(x: Tensor, least: float) -> Tensor:
    """The largest power of two that is at most |x| (float32), and at least ``least``."""
    return x.view(torch.int32).bitwise_and(EXPONENT).view(torch.float32).clamp_min_(least)


def e2m1(x: Tensor) -> Tensor:
    """Nearest E2M1 values of float32 ``x``, any shape, as float32. Ties go to the even code, beyond 6 it saturates, -0 stays -0 and
    NaN stays NaN: what ``cvt.rn.satfinite.e2m1x2`` does, but for NaN, which it makes 6 (:func:`e2m1_codes` does as well)."""
    near = x.clamp(-E2M1_MAX, E2M1_MAX)
    # values in [p, 2p) are p/2 apart, and from 2**22 p to 2**23 p float32 has that spacing: adding 1.5 * 2**22 p, which leaves room
    # for both signs, rounds to nearest even. The multiplications are by powers of two and 3: exact
    power = _power(near, 1.0)
    return near.add_(power, alpha=ANCHOR).sub_(power, alpha=ANCHOR).copysign_(x)


def e2m1_stochastic(x: Tensor, bits: Tensor) -> Tensor:
    """One of the two E2M1 neighbours of each float32 value, the upper with probability (|x| - lower) / (upper - lower); beyond 6 it
    saturates. ``bits``: integers in [0, 65536), of the same shape."""
    magnitude = x.abs().clamp_max_(E2M1_MAX)
    step = _power(magnitude, 1.0).mul_(0.5)
    return magnitude.div_(step).add_(chance(bits)).floor_().mul_(step).copysign_(x)


def chance(bits: Tensor) -> Tensor:
    """(k + 1/2) / 65536 in float32, exactly."""
    return bits.to(torch.float32).add_(0.5).mul_(2.0**-16)


def e2m1_codes(values: Tensor) -> Tensor:
    """Codes (uint8, 0 to 15) of values that are E2M1 already; -0 is 8, NaN is 7."""
    index = torch.tensor([0, 1, 2, 3, 4, 0, 5, 0, 6, 0, 0, 0, 7], dtype=torch.uint8, device=values.device)
    magnitude = values.abs().nan_to_num_(nan=E2M1_MAX)
    negative = values.signbit() & ~values.isnan()
    return index[(magnitude * 2).to(torch.int64)] | (negative.to(torch.uint8) << 3)


def e2m1_values(codes: Tensor) -> Tensor:
    """float32 values of codes (uint8, 0 to 15)."""
    table = torch.tensor([*E2M1_VALUES, *(-value for value in E2M1_VALUES)], device=codes.device)
    return table[codes.to(torch.int64)]


def e4m3(x: Tensor) -> Tensor:
    """Nearest E4M3 values of float32 ``x`` as float32: ties to even, saturating at ±448, NaN stays NaN."""
    return x.clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn).to(torch.float32)


def e4m3_stochastic(x: Tensor, bits: Tensor) -> Tensor:
    """One of the two E4M3 neighbours of values >= 0, the upper with probability (x - lower) / (upper - lower); at most 448."""
    step = _power(x.contiguous(), 2.0**-6).mul_(2.0**-3)
    return x.div(step).add_(chance(bits)).floor_().mul_(step).clamp_max_(E4M3_MAX)


def pack(codes: Tensor) -> Tensor:
    """Codes (rows, columns) to bytes (rows, columns / 2): the even column in the low half. ``columns`` must be even."""
    return codes[:, 0::2] | codes[:, 1::2] << 4


def unpack(packed: Tensor) -> Tensor:
    """Bytes (rows, columns / 2) to codes (rows, columns)."""
    return torch.stack((packed & 15, packed >> 4), dim=-1).flatten(1)


def byte_values(device: torch.device) -> Tensor:
    """(256, 2) float32: the two values of each byte."""
    return e2m1_values(unpack(torch.arange(256, dtype=torch.uint8, device=device)[:, None]))


def swizzle(scales: Tensor) -> Tensor:
    """Block scales (rows, blocks of the contracted dimension), one byte each, in the order that Blackwell's matrix units read:
    atoms of 128 rows x 4 blocks, 512 bytes, the blocks' dimension fastest. Rows are padded to 128 and blocks to 4 with zeros.
    Returns a flat tensor of the same dtype.

    CUTLASS ``Sm1xxBlockScaledConfig<16>``, cuBLASLt, cuDNN ``F8_128x4`` and torch ``SWIZZLE_32_4_4`` use this layout: scale (r, c)
    is at ``((r // 128) * ceil(blocks / 4) + c // 4) * 512 + (r % 32) * 16 + ((r % 128) // 32) * 4 + c % 4``.
    """
    rows, blocks = scales.shape
    padded = torch.zeros(-(-rows // 128) * 128, -(-blocks // 4) * 4, dtype=torch.uint8, device=scales.device)
    padded[:rows, :blocks] = scales.view(torch.uint8)
    atoms = padded.view(padded.shape[0] // 128, 4, 32, padded.shape[1] // 4, 4)  # (atom, (r % 128) // 32, r % 32, atom, c % 4)
    return atoms.permute(0, 3, 2, 1, 4).reshape(-1).view(scales.dtype)


def unswizzle(flat: Tensor, rows: int, blocks: int) -> Tensor:
    """The inverse of :func:`swizzle`, without the padding: (rows, blocks)."""
    atoms = flat.view(torch.uint8).view(-(-rows // 128), -(-blocks // 4), 32, 4, 4).permute(0, 3, 2, 1, 4)
    return atoms.reshape(-(-rows // 128) * 128, -(-blocks // 4) * 4)[:rows, :blocks].contiguous().view(flat.dtype)
