"""NF4 (Dettmers et al., arXiv 2305.14314, section 3), in the bytes of bitsandbytes.

A weight is read row by row and cut into blocks. Each block has an absmax, and each value is the index of the nearest of 16 levels,
the quantiles of a normal distribution, times that absmax. Two indices share a byte, the first in its high half. With double
quantisation the absmax, less their mean, are themselves kept in 8 bits, in blocks of 256.

bitsandbytes packs and unpacks. It is called on pieces, so that its float32 and int32 copies of the weight stay small, and on whole
blocks as rows: its kernel for the CPU takes a wrong absmax where a row is shorter than a block.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from attrs import evolve, frozen
from torch import Tensor, nn

from surogate_core.contracts import Context, Held, Site
from surogate_quantizer_bnb_nf4.plugin import Options

logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)  # warns that a kernel not used here is not installed

from bitsandbytes.functional import QuantState, create_dynamic_map, get_4bit_type  # noqa: E402

PIECE = 1 << 20
"""Values quantised at once: a multiple of every block size."""
NESTED = 256
"""Scales that share a scale of their own."""
BLOCK_KEY = "bnb_4bit_blocksize"
"""Ours: each weight says its block size itself, and transformers passes the key over; with it the plan knows the bytes."""
_ops = torch.ops.bitsandbytes


class Nf4(nn.Module):
    """A :class:`~surogate_core.contracts.Storage`. Buffers: ``weight`` (⌈NK/2⌉, 1) uint8; ``absmax`` (⌈NK/block⌉,), float32, or
    uint8 with ``nested_absmax`` (⌈·/256⌉,) and ``nested_offset`` (), float32. Names and shapes are bitsandbytes'."""

    weight: Tensor
    absmax: Tensor
    nested_absmax: Tensor
    nested_offset: Tensor

    def __init__(self, shape: tuple[int, ...], block: int, double: bool):
        super().__init__()
        self.shape, self.block, self.nested = shape, block, double
        values = math.prod(shape)
        blocks = -(-values // block)
        self.register_buffer("weight", torch.empty(-(-values // 2), 1, dtype=torch.uint8))
        self.register_buffer("absmax", torch.empty(blocks, dtype=torch.uint8 if double else torch.float32))
        if double:
            self.register_buffer("nested_absmax", torch.empty(-(-blocks // NESTED)))
            self.register_buffer("nested_offset", torch.empty(()))

    def pack(self, weight: Tensor) -> None:
        pieces = [_ops.quantize_4bit(piece, self.block, "nf4", torch.uint8) for piece in weight.reshape(-1).split(PIECE)]
        self.weight = torch.cat([codes for codes, _ in pieces])
        absmax = torch.cat([scales for _, scales in pieces])
        if self.nested:
            self.nested_offset = absmax.mean()
            dynamic = _dynamic_map(absmax.device)
            absmax, self.nested_absmax = _ops.quantize_blockwise(absmax - self.nested_offset, dynamic, NESTED)
        self.absmax = absmax

    def adopt(self, tensors: Mapping[str, Tensor]) -> bool:
        """Take the tensors of a layer of a bitsandbytes checkpoint as they are."""
        rest = {name.removeprefix("weight."): tensor for name, tensor in tensors.items() if name != "weight"}
        if "quant_state.bitsandbytes__nf4" not in rest:
            return False
        weight, state = tensors["weight"], QuantState.from_dict(rest, tensors["weight"].device)
        if (tuple(state.shape), state.blocksize, state.nested) != (self.shape, self.block, self.nested):
            return False
        if weight.numel() != self.weight.numel() or state.absmax.numel() != self.absmax.numel():
            return False
        self.weight, self.absmax = weight.view(torch.uint8).reshape(-1, 1), state.absmax
        if self.nested:
            self.nested_absmax, self.nested_offset = state.state2.absmax, state.offset
        return True

    def exported(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """The tensors of a layer as bitsandbytes saves them, by the ends of their names; ``dtype`` is that of the weight."""
        state = QuantState(self.absmax, torch.Size(self.shape), get_4bit_type("nf4", self.weight.device), self.block, "nf4", dtype)
        if self.nested:
            levels = _dynamic_map(self.absmax.device)
            state.nested, state.offset = True, self.nested_offset
            state.state2 = QuantState(self.nested_absmax, code=levels, blocksize=NESTED, dtype=torch.float32)
        return {"weight": self.weight, **{f"weight.{name}": tensor for name, tensor in state.as_dict(packed=True).items()}}

    def unpack(self, dtype: torch.dtype) -> Tensor:
        absmax = self.absmax
        if self.nested:
            dynamic = _dynamic_map(absmax.device)
            absmax = _ops.dequantize_blockwise(absmax, self.nested_absmax, dynamic, NESTED, torch.float32) + self.nested_offset
        blocks, rest = divmod(math.prod(self.shape), self.block)
        whole = blocks * self.block
        found = _ops.dequantize_4bit(self.weight[: whole // 2], absmax[:blocks], self.block, "nf4", (blocks, self.block), dtype)
        if rest:
            codes = self.weight[whole // 2 :].flatten()
            levels = get_4bit_type("nf4", codes.device)[torch.stack([codes >> 4, codes & 15], 1).int().flatten()[:rest]]
            found = torch.cat([found.flatten(), (levels * absmax[blocks]).to(dtype)])
        return found.view(self.shape)


@functools.cache
def _dynamic_map(device: torch.device) -> Tensor:
    """The 256 levels of bitsandbytes' signed dynamic data type."""
    return create_dynamic_map().to(device)


@frozen(kw_only=True)
class Quantizer:
    """See :class:`surogate_core.contracts.Quantizer`. ``held``: of a checkpoint that is in this format already."""

    options: Options
    held: Held | None = None

    def claim(self, site: Site) -> str | None:
        return None if self.held is None or site.name in self.held.sites else "not quantised in the checkpoint"

    def reading(self, held: Held) -> Quantizer | None:
        """Checkpoints of bitsandbytes in NF4."""
        settings = held.settings
        if settings.get("quant_method") != "bitsandbytes" or settings.get("bnb_4bit_quant_type") != "nf4":
            return None
        double = bool(settings.get("bnb_4bit_use_double_quant"))
        options = evolve(self.options, qlora_bnb_block_size=settings.get(BLOCK_KEY, 64), qlora_bnb_double_quant=double)
        return evolve(self, held=held, options=options)

    def exported_config(self, plain: Sequence[str], dtype: torch.dtype) -> dict[str, Any]:
        """``quantization_config`` of a model whose linear layers are in this format, but those called ``plain``."""
        precision = str(dtype).removeprefix("torch.")
        return {
            "quant_method": "bitsandbytes",
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": self.options.qlora_bnb_double_quant,
            "bnb_4bit_compute_dtype": precision,
            "bnb_4bit_quant_storage": "uint8",
            "llm_int8_skip_modules": list(plain),
            BLOCK_KEY: self.options.qlora_bnb_block_size,
        }

    def storage(self, site: Site) -> Nf4:
        return Nf4(site.shape, self.options.qlora_bnb_block_size, self.options.qlora_bnb_double_quant)


def build(options: Options, context: Context) -> Quantizer:
    return Quantizer(options=options)
