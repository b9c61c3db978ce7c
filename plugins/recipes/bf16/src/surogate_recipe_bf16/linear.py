"""All three GEMMs of every linear layer in the dtype of the weights, with torch's own accumulation (float32 for bfloat16), or in
the dtypes that ``matmul_dtype`` and ``gradient_dtype`` name."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from attrs import frozen
from torch import Tensor

from surogate_core.contracts import Context, Site
from surogate_core.errors import Problem
from surogate_recipe_bf16.plugin import Options

AMPERE, ADA = (8, 0), (8, 9)
"""The first compute capabilities with tensor cores for bfloat16 and for FP8."""


Compute = Callable[[Tensor, Tensor, Tensor | None], Tensor]


@frozen
class Plain:
    """Claims every linear site; ``compute`` computes it."""

    compute: Compute = F.linear

    def claim(self, site: Site) -> str | None:
        return None

    def linear(self, site: Site) -> Compute:
        return self.compute


def build(options: Options, context: Context) -> Plain:
    core = context.config
    forward, backward = options.products(core.model_dtype)
    if forward == backward == core.model_dtype:
        return Plain()
    from surogate_recipe_bf16.products import Dtypes

    return Plain(Dtypes(forward, backward, native=core.recipe_backend != "emulated", kernels=core.kernels).compute())


def check_device(needing: str, capability: tuple[int, int], how: str) -> list[Problem]:
    """What the current CUDA device lacks for ``needing`` (``model_dtype = "bf16"``), which wants ``capability``; nothing where the
    plan is for a GPU that is elsewhere."""
    if not torch.cuda.is_available():
        return []
    have = torch.cuda.get_device_capability()
    if have >= capability:
        return []
    (major, minor), wanted = have, ".".join(map(str, capability))
    what = f"{needing} needs a GPU of compute capability {wanted} or above, {torch.cuda.get_device_name()} has {major}.{minor}"
    return [Problem(what, where=f'{needing.split(" = ")[0]} and recipe = "bf16"', how=how)]
