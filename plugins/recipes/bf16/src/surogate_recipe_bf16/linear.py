"""All three GEMMs of every linear layer in the dtype of the weights, with torch's own accumulation (float32 for bfloat16)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from surogate_core.contracts import Context, Site
from surogate_core.errors import Problem

AMPERE = (8, 0)
"""The first compute capability with bfloat16 tensor cores."""


class Plain:
    """Claims every linear site; ``F.linear`` computes it."""

    def claim(self, site: Site) -> str | None:
        return None

    def linear(self, site: Site) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
        return F.linear


def build(options: None, context: Context) -> Plain:
    return Plain()


def check_device() -> list[Problem]:
    """What the current CUDA device lacks for ``model_dtype = "bf16"``."""
    capability = torch.cuda.get_device_capability()
    if capability >= AMPERE:
        return []
    name, (major, minor) = torch.cuda.get_device_name(), capability
    return [
        Problem(
            f'model_dtype = "bf16" needs a GPU of compute capability 8.0 or above, {name} has {major}.{minor}',
            where='model_dtype and recipe = "bf16"',
            how='set model_dtype = "fp32", or run on an Ampere or newer GPU',
        )
    ]
