"""The shapes, from 1 at the end of the warmup to what the last step reaches. Warmup, cooldown and final rate are the core's."""

from __future__ import annotations

import math

from surogate_core.contracts import Context, Schedule


def linear(options: None, context: Context) -> Schedule:
    return lambda progress: 1.0 - progress


def cosine(options: None, context: Context) -> Schedule:
    return lambda progress: 0.5 * (1.0 + math.cos(math.pi * progress))


def constant(options: None, context: Context) -> Schedule:
    return lambda progress: 1.0
