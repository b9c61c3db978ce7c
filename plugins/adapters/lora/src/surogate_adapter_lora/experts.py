"""LoRA of stacked experts: one low-rank update for each expert, y' = y + s·B_e(A_e(dropout(x))) for the rows that are routed to it.

The factors are stacked as the weights are, so that the two small products are grouped GEMMs over the sorted rows. PEFT adapts the
stacked parameter itself (``target_parameters``), with the same factors in matrices of 2 dimensions; :func:`to_peft` and
:func:`from_peft` are the way between. DoRA it does not have for them, and neither do we.
"""

from __future__ import annotations

from collections.abc import Mapping

import surogate_model_transformers as models
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LoraExperts(nn.Module):
    """The adapter of E stacked experts: ``lora_A`` (E, r, K) and ``lora_B`` (E, N, r)."""

    def __init__(self, shape: tuple[int, ...], rank: int, scale: float, dropout: float, dtype: torch.dtype):
        super().__init__()
        experts, outputs, inputs = shape
        self.scale, self.dropout = scale, dropout
        self.lora_A = nn.Parameter(torch.empty(experts, rank, inputs, dtype=dtype))
        self.lora_B = nn.Parameter(torch.empty(experts, outputs, rank, dtype=dtype))

    def forward(self, x: Tensor, y: Tensor, ends: Tensor) -> Tensor:
        """x (S, K) and y (S, N), rows sorted by expert, ends (E,) where their rows end → (S, N)."""
        a, b = self.lora_A.to(x.dtype), self.lora_B.to(x.dtype)
        low = models.grouped(F.dropout(x, self.dropout, self.training), a.transpose(1, 2), ends)
        return y + models.grouped(low * self.scale, b.transpose(1, 2), ends)


def to_peft(factors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``lora_A`` (E, r, K) and ``lora_B`` (E, N, r) as PEFT has them: (E·r, K) expert by expert, and (N, r·E) rank by rank."""
    return {"lora_A": factors["lora_A"].flatten(0, 1), "lora_B": factors["lora_B"].permute(1, 2, 0).flatten(1)}


def from_peft(factors: Mapping[str, Tensor], rank: int) -> dict[str, Tensor]:
    """The other way; matrices that ``rank`` does not divide are left as they are."""
    a, b = factors["lora_A"], factors["lora_B"]
    if a.shape[0] % rank or a.shape[0] != b.shape[1]:
        return dict(factors)
    return {"lora_A": a.unflatten(0, (-1, rank)), "lora_B": b.unflatten(1, (rank, -1)).permute(2, 0, 1).contiguous()}
