from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from bitsandbytes.backends.cpu import ops as cpu_kernels
from surogate_offload import StandIn, opening
from torch import Tensor


@pytest.fixture(autouse=True)
def eager() -> Iterator[None]:
    """bitsandbytes compiles its update of small tensors, which takes most of a minute."""
    with torch.compiler.set_stance("force_eager"):
        yield


@pytest.fixture
def exact_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let bitsandbytes' CPU update quantise by its portable kernel, which searches for the nearest code: the CPU kernel takes a
    neighbour for 3 % of the values."""
    kernel = torch.ops.bitsandbytes.quantize_blockwise.default

    def quantize(values: Tensor, code: Tensor, absmax: Tensor, out: Tensor, blocksize: int) -> None:
        codes, scales = kernel._op_dk(torch._C.DispatchKey.CompositeExplicitAutograd, values, code, blocksize)
        out.copy_(codes)
        absmax.copy_(scales)

    monkeypatch.setattr(cpu_kernels, "_quant_blockwise_fp32_direct", quantize)


@pytest.fixture(params=["late", "early"])
def devices(request: pytest.FixtureRequest) -> Iterator[list[StandIn]]:
    """Those that were opened."""
    opened: list[StandIn] = []

    def opener(device: torch.device, write_combined: bool) -> StandIn:
        opened.append(StandIn(request.param))
        return opened[-1]

    with opening(opener):
        yield opened
