"""E4M3 in square tiles, the layout of "fine-grained FP8" checkpoints (DeepSeek-V3, arXiv 2412.19437, section 3.3).

A tile of b × b weights has one float32 scale, its absmax / 448; a weight is rounded to the nearest E4M3 value of w / scale. Tiles
at the edges are smaller. Square tiles make the format of a transposed weight the transposed format: a GEMM may read either.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from attrs import evolve, frozen
from torch import Tensor, nn

from surogate_core.contracts import Context, Held, Site
from surogate_quantizer_fp8_block.plugin import Options

LARGEST = 448.0
"""The largest E4M3 value."""
PIECE = 1 << 20
"""About as many weights are in float32 at once."""


class Tiles(nn.Module):
    """A :class:`~surogate_core.contracts.Storage`. Buffers: ``weight`` (N, K) float8_e4m3fn and ``weight_scale_inv`` (⌈N/b⌉, ⌈K/b⌉)
    float32, what a value is multiplied by; the names are those of the checkpoints."""

    weight: Tensor
    weight_scale_inv: Tensor

    def __init__(self, shape: tuple[int, ...], block: int):
        super().__init__()
        rows, columns = shape
        self.block = block
        self.register_buffer("weight", torch.empty(rows, columns, dtype=torch.float8_e4m3fn))
        self.register_buffer("weight_scale_inv", torch.empty(-(-rows // block), -(-columns // block)))

    def pack(self, weight: Tensor) -> None:
        rows, columns = weight.shape
        self.weight = torch.empty(rows, columns, dtype=torch.float8_e4m3fn, device=weight.device)
        scales = torch.empty_like(self.weight_scale_inv, device=weight.device)
        for at, tiles in self._pieces():
            piece = weight[at].float()
            scales[tiles] = self._absmax(piece) / LARGEST
            scale = torch.where(scales[tiles] > 0, scales[tiles], 1.0)
            self.weight[at] = (piece / self._spread(scale, piece)).clamp_(-LARGEST, LARGEST).to(torch.float8_e4m3fn)
        self.weight_scale_inv = scales

    def adopt(self, tensors: Mapping[str, Tensor]) -> bool:
        """Take ``weight`` and ``weight_scale_inv`` of a checkpoint as they are."""
        found = {name: tensors.get(name) for name in ("weight", "weight_scale_inv")}
        if any(tensor is None or tensor.shape != getattr(self, name).shape for name, tensor in found.items()):
            return False
        if tensors["weight"].dtype != torch.float8_e4m3fn:
            return False
        self.weight, self.weight_scale_inv = tensors["weight"], tensors["weight_scale_inv"].float()
        return True

    def unpack(self, dtype: torch.dtype) -> Tensor:
        found = torch.empty(self.weight.shape, dtype=dtype, device=self.weight.device)
        for at, tiles in self._pieces():
            piece = self.weight[at].float()
            found[at] = piece.mul_(self._spread(self.weight_scale_inv[tiles], piece))
        return found

    def _pieces(self) -> Iterator[tuple[slice, slice]]:
        """Rows of the weight and of the scales: some whole rows of tiles at a time."""
        rows, columns = self.weight.shape
        step = max(1, PIECE // (self.block * columns))
        for start in range(0, self.weight_scale_inv.shape[0], step):
            yield slice(start * self.block, min(rows, (start + step) * self.block)), slice(start, start + step)

    def _absmax(self, piece: Tensor) -> Tensor:
        rows, columns = piece.shape
        padded = nn.functional.pad(piece.abs(), (0, -columns % self.block, 0, -rows % self.block))
        return padded.unflatten(1, (-1, self.block)).unflatten(0, (-1, self.block)).amax((1, 3))

    def _spread(self, scale: Tensor, piece: Tensor) -> Tensor:
        """Each tile's scale at each of its weights."""
        rows, columns = piece.shape
        return scale.repeat_interleave(self.block, 1)[:, :columns].repeat_interleave(self.block, 0)[:rows]


@frozen(kw_only=True)
class Quantizer:
    """See :class:`surogate_core.contracts.Quantizer`. ``held``: of a checkpoint that is in this format already."""

    options: Options
    held: Held | None = None

    def claim(self, site: Site) -> str | None:
        return None if self.held is None or site.name in self.held.sites else "not quantised in the checkpoint"

    def reading(self, held: Held) -> Quantizer | None:
        """Checkpoints in "fine-grained fp8" with square tiles."""
        sides: Any = held.settings.get("weight_block_size") or (0, 1)
        rows, columns = sides
        if held.settings.get("quant_method") != "fp8" or rows != columns:
            return None
        return evolve(self, held=held, options=evolve(self.options, qlora_block_size=rows))

    def storage(self, site: Site) -> Tiles:
        return Tiles(site.shape, self.options.qlora_block_size)


def build(options: Options, context: Context) -> Quantizer:
    return Quantizer(options=options)
