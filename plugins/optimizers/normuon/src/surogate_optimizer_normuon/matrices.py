"""Which parameters are hidden matrices, and where a parameter holds several.

A rule that works on singular values must see each linear map alone and the right way round: rows are outputs, columns inputs. So
the joined projections of some families are cut into their parts, banks of experts into their experts, and weights that are stored
transposed are turned. Everything is told from names and shapes as transformers writes them; where they leave doubt (projections
joined head by head), and for embeddings, heads, norms, biases, routers, convolutions and adapters, the answer is "no matrix".
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from attrs import frozen
from torch import Tensor

_BLOCK = re.compile(r"(^|\.)\d+\.")
_NO_MATRIX = re.compile(r"(^|\.)(gate|router|shared_expert_gate|adapter)(\.|$)|embed|wte|wpe|norm|bias|conv|lora")
_JOINED_BY_HEAD = re.compile(r"qkv|query_key_value|^kv_|^in_proj|^c_attn$")


@frozen
class Cut:
    """Matrices of one shape inside a parameter: rows ``start`` to ``stop`` in steps of ``step``, after turning if ``turned``."""

    label: str = ""
    start: int = 0
    stop: int | None = None
    step: int = 1
    turned: bool = False

    def of(self, tensor: Tensor) -> Tensor:
        """The view (E, rows, columns) of a parameter (rows, columns) or (E, rows, columns)."""
        bank = tensor if tensor.dim() == 3 else tensor.unsqueeze(0)
        return (bank.transpose(1, 2) if self.turned else bank)[:, self.start : self.stop : self.step]


def is_hidden(name: str, shape: tuple[int, ...]) -> bool:
    """A matrix of a decoder block, or a bank of experts."""
    if not _BLOCK.search(name) or _NO_MATRIX.search(name):
        return False
    return len(shape) == 2 or (len(shape) == 3 and "experts" in name)


def cuts(name: str, shapes: Mapping[str, tuple[int, ...]]) -> tuple[Cut, ...]:
    """The matrices of parameter ``name``; none if it has none. ``shapes`` are those of all parameters: neighbours tell how a
    joined projection is divided."""
    shape = shapes[name]
    if not is_hidden(name, shape):
        return ()
    stem = name.removesuffix(".weight")
    prefix, _, role = stem.rpartition(".")

    def neighbour(role: str) -> tuple[int, ...] | None:
        return shapes.get(f"{prefix}.{role}.weight", shapes.get(f"{prefix}.{role}"))

    if role == "qkv_proj":
        return _attention(shape, neighbour("o_proj"))
    if role == "gate_up_proj":
        return _gated(shape, neighbour("down_proj"), interleaved=neighbour("gate_up_proj_bias") is not None)
    if role == "down_proj" and len(shape) == 3:
        other = neighbour("gate_up_proj")
        return (Cut(turned=_turned(other, shape)),) if other else (Cut(),)
    if role in ("c_attn", "c_fc", "c_proj"):
        return _conv1d(role, shapes.get(f"{prefix.rpartition('.')[0]}.attn.c_attn.weight"))
    return () if _JOINED_BY_HEAD.search(role) else (Cut(),)


def _attention(shape: tuple[int, ...], output: tuple[int, ...] | None) -> tuple[Cut, ...]:
    """Queries, keys and values, one below the other; the output projection has a column for each query row."""
    if output is None or (shape[0] - output[1]) % 2 or not 0 < output[1] < shape[0]:
        return ()
    queries = output[1]
    keys = queries + (shape[0] - queries) // 2
    return Cut("q", 0, queries), Cut("k", queries, keys), Cut("v", keys, shape[0])


def _gated(shape: tuple[int, ...], down: tuple[int, ...] | None, interleaved: bool) -> tuple[Cut, ...]:
    """Gate and up: halves, or every other row where a bank has a bias of its own (GPT-OSS)."""
    turned = len(shape) == 3 and down is not None and _turned(shape, down)
    rows = shape[-1 if turned else -2]
    if len(shape) == 3 and interleaved:
        return Cut("gate", 0, rows, 2, turned), Cut("up", 1, rows, 2, turned)
    return Cut("gate", 0, rows // 2, 1, turned), Cut("up", rows // 2, rows, 1, turned)


def _turned(gate_up: tuple[int, ...], down: tuple[int, ...]) -> bool:
    """Whether banks are stored (E, inputs, outputs): then gate_up is (E, H, 2F) and down (E, F, H), else (E, 2F, H), (E, H, F)."""
    return gate_up[2] == 2 * down[1] and gate_up[1] == down[2]


def _conv1d(role: str, attention: tuple[int, ...] | None) -> tuple[Cut, ...]:
    """GPT-2 stores (inputs, outputs) and joins queries, keys and values; a ``c_attn`` of another shape is of another family."""
    if attention is None or attention[1] != 3 * attention[0]:
        return ()
    if role != "c_attn":
        return (Cut(turned=True),)
    width = attention[0]
    return tuple(Cut(part, number * width, (number + 1) * width, 1, True) for number, part in enumerate("qkv"))
