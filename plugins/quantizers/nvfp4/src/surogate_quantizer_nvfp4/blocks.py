"""NVFP4 as storage: E2M1 values, an E4M3 scale for 16 of them along a row, one float32 scale for the matrix.

The format and its quantiser are those of ``surogate_native_nvfp4``. Rows are padded with zeros to whole blocks. It is called on
some rows at a time, with the absmax of the whole matrix, so that its float32 copies stay small.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from attrs import evolve, frozen
from surogate_native_nvfp4 import BLOCK, formats, quantise
from torch import Tensor, nn

from surogate_core.contracts import Context, Held, Site
from surogate_quantizer_nvfp4.plugin import Options

PIECE = 1 << 16
"""About as many weights are in float32 at once."""


class Nvfp4(nn.Module):
    """A :class:`~surogate_core.contracts.Storage`, with C = ⌈K/16⌉ blocks a row. Buffers: ``weight`` (N, 8 C) uint8, the even
    column in the low half of a byte; ``weight_scale`` (N, C) float8_e4m3fn; ``weight_scale_2`` () float32, the decode
    scale of the matrix. The names are those of ModelOpt's checkpoints."""

    weight: Tensor
    weight_scale: Tensor
    weight_scale_2: Tensor

    def __init__(self, shape: tuple[int, ...], four_over_six: bool):
        super().__init__()
        self.rows, self.columns = shape
        self.four_over_six = four_over_six
        blocks = -(-self.columns // BLOCK)
        self.register_buffer("weight", torch.empty(self.rows, blocks * BLOCK // 2, dtype=torch.uint8))
        self.register_buffer("weight_scale", torch.empty(self.rows, blocks, dtype=torch.float8_e4m3fn))
        self.register_buffer("weight_scale_2", torch.empty(()))

    def pack(self, weight: Tensor) -> None:
        amax = torch.maximum(weight.amax(), -weight.amin()).float()
        self.weight = torch.empty_like(self.weight, device=weight.device)
        self.weight_scale = torch.empty_like(self.weight_scale, device=weight.device)
        for at in self._pieces():
            blocks = quantise(weight[at], four_over_six="mse" if self.four_over_six else None, amax=amax)
            self.weight[at], self.weight_scale[at] = blocks.packed(), blocks.scale_bytes()
            self.weight_scale_2 = blocks.decode

    def adopt(self, tensors: Mapping[str, Tensor]) -> bool:
        """Take ``weight``, ``weight_scale`` and ``weight_scale_2`` of a checkpoint as they are."""
        names = ("weight", "weight_scale", "weight_scale_2")
        if not all(name in tensors and tensors[name].numel() == getattr(self, name).numel() for name in names):
            return False
        if tensors["weight"].shape != self.weight.shape or tensors["weight_scale"].shape != self.weight_scale.shape:
            return False
        self.weight, self.weight_scale = tensors["weight"].view(torch.uint8), tensors["weight_scale"]
        self.weight_scale_2 = tensors["weight_scale_2"].float().reshape(())
        return True

    def unpack(self, dtype: torch.dtype) -> Tensor:
        pairs = formats.byte_values(self.weight.device)
        found = torch.empty(self.rows, self.columns, dtype=dtype, device=self.weight.device)
        for at in self._pieces():
            values = F.embedding(self.weight[at].int(), pairs).view(-1, self.weight_scale.shape[1], BLOCK)
            values *= self.weight_scale[at].float()[..., None]  # exact; only the last product rounds
            found[at] = (values * self.weight_scale_2).flatten(1)[:, : self.columns]
        return found

    def _pieces(self) -> Iterator[slice]:
        step = max(1, PIECE // self.columns)
        return (slice(start, start + step) for start in range(0, self.rows, step))


@frozen(kw_only=True)
class Quantizer:
    """See :class:`surogate_core.contracts.Quantizer`. ``held``: of a checkpoint that is in this format already."""

    options: Options
    held: Held | None = None

    def claim(self, site: Site) -> str | None:
        return None if self.held is None or site.name in self.held.sites else "not quantised in the checkpoint"

    def reading(self, held: Held) -> Quantizer | None:
        """Checkpoints of ModelOpt."""
        return evolve(self, held=held) if held.settings.get("quant_algo") == "NVFP4" else None

    def storage(self, site: Site) -> Nvfp4:
        return Nvfp4(site.shape, self.options.qlora_four_over_six)


def build(options: Options, context: Context) -> Quantizer:
    return Quantizer(options=options)
