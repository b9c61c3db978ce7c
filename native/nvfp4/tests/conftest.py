"""NVFP4 a second time, in numpy and from the definition of the format: every rounding is a search among all values."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

Array = NDArray[Any]
E2M1 = np.arange(16, dtype=np.uint8).view(ml_dtypes.float4_e2m1fn).astype(np.float64)  # by code
E4M3 = np.arange(127, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float64)  # 0 to 448 by code


def nearest(x: Array, values: Array) -> Array:
    """Codes of the nearest of the ascending ``values`` >= 0 to each x >= 0, ties to the even code; float64, so that differences are
    exact enough to see a tie."""
    distance = np.abs(x.astype(np.float64)[..., None] - values)
    least = distance.min(-1, keepdims=True)
    even = np.where(np.arange(len(values)) % 2 == 0, 0.0, 0.5)
    return np.where(distance == least, even, 9.0).argmin(-1).astype(np.uint8)


def e2m1_codes(x: Array) -> Array:
    """float32 of any sign, saturating."""
    return nearest(np.minimum(np.abs(x), 6.0), E2M1[:8]) | (np.signbit(x).astype(np.uint8) << 3)


def quantise(x: Array, square: bool = False, metric: str | None = None) -> tuple[Array, Array, np.float32]:
    """(packed bytes (rows, columns / 2), scale codes (rows, columns / 16), decode scale) of float32 (rows, columns), sizes
    divisible by 16; each operation in float32 and in the order of Transformer Engine and of the paper on four over six."""
    f = np.float32
    rows, columns = x.shape
    amax = f(np.abs(x).max())
    encode = f(1.0) if amax == 0 else min(f(f(448 * 6 if metric is None else 256 * 6) / amax), np.finfo(f).max)
    decode = f(f(1.0) / encode)
    blocks = x.reshape(rows, columns // 16, 16)
    largest = np.abs(blocks).max(-1)
    tiled = np.repeat(largest.reshape(rows // 16, 16, -1).max(1), 16, axis=0) if square else largest
    if metric is None:
        scales = nearest(np.minimum(tiled * f(encode * f(1.0 / 6.0)), f(448)), E4M3)
        codes = _encode(blocks, scales, decode)
    else:
        base = (tiled / f(6.0)) * encode
        six, four = nearest(np.minimum(base, f(448)), E4M3), nearest(np.minimum(base * f(1.5), f(448)), E4M3)
        errors = [_error(blocks, _encode(blocks, s, decode), s, decode, metric) for s in (six, four)]
        if square:
            over = [error.reshape(rows // 16, 16, -1) for error in errors]
            whole = [error.max(1) if metric == "abs_max" else _halves(error, 1) for error in over]
            errors = [np.repeat(error, 16, axis=0) for error in whole]
        scales = np.where(errors[1] < errors[0], four, six)
        codes = _encode(blocks, scales, decode)
    codes = codes.reshape(rows, columns)
    return codes[:, ::2] + 16 * codes[:, 1::2], scales, decode


def _encode(blocks: Array, scales: Array, decode: np.float32) -> Array:
    f = np.float32
    with np.errstate(divide="ignore"):
        factor = np.minimum(f(1.0) / (E4M3[scales].astype(f) * decode), np.finfo(f).max)
    return e2m1_codes(blocks * np.where(scales == 0, f(0), factor)[..., None])


def _error(blocks: Array, codes: Array, scales: Array, decode: np.float32, metric: str) -> Array:
    f = np.float32
    error = E2M1[codes].astype(f) * (E4M3[scales].astype(f) * decode)[..., None] - blocks
    if metric == "abs_max":
        return np.abs(error).max(-1)
    return _halves(error * error if metric == "mse" else np.abs(error), -1)


def _halves(values: Array, axis: int) -> Array:
    values = np.moveaxis(values, axis, -1)
    while values.shape[-1] > 1:
        half = values.shape[-1] // 2
        values = values[..., :half] + values[..., half:]
    return values[..., 0]


@pytest.fixture(scope="session")
def second() -> SimpleNamespace:
    return SimpleNamespace(quantise=quantise, e2m1_codes=e2m1_codes, nearest=nearest, E2M1=E2M1, E4M3=E4M3)
