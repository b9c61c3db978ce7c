"""The loss on validation data."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from attrs import frozen
from torch import Tensor, nn

from surogate_core.contracts import Batch, Batches, Parallelism

Loss = Callable[[nn.Module, Batch], Tensor]
"""Sum over a micro-batch of weight × cross-entropy: ``ModelSource.loss``."""


@frozen
class Evaluation:
    """Mean token loss (nats) by weight, its exponential, and the number of rows' tokens it was taken over."""

    loss: float
    tokens: int

    @property
    def perplexity(self) -> float:
        return math.exp(self.loss) if self.loss < 700 else math.inf


def evaluate(model: nn.Module, batches: Batches, parallelism: Parallelism, loss_of: Loss) -> Evaluation:
    """Mean over all labels, each with its weight. Draws nothing from any random generator, so that evaluating more or less often
    does not change training."""
    device = parallelism.device()
    loss = torch.zeros((), dtype=torch.float64, device=device)
    weight, tokens = 0.0, 0
    was_training = model.training
    model.eval()
    with torch.no_grad():
        for batch in parallelism.rows(list(batches.all_rows())):
            weight += float(batch.weights.sum(dtype=torch.float64))
            tokens += int((batch.weights > 0).sum())
            loss += loss_of(model, batch.to(device)).double()
    model.train(was_training)
    total = parallelism.sum(torch.stack([loss, torch.tensor(weight, dtype=torch.float64, device=device)]))
    return Evaluation(float(total[0]) / max(float(total[1]), 1e-12), tokens)
