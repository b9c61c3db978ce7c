"""The most bytes in tensors during a step."""

from __future__ import annotations

from collections.abc import Callable

import torch
from surogate_model_transformers.testing import held_bytes
from torch import Tensor

from surogate_core.contracts import OptimizerState
from surogate_core.train.setup import Trainee


def peak(trainee: Trainee, optimizer: OptimizerState, run: Callable[[], Tensor]) -> tuple[int, Tensor]:
    """(bytes, result): what the model and the optimizer hold, and the most that ``run`` makes on top of it at once. From the
    allocator on a GPU, by watching every operation elsewhere."""
    if trainee.parameters[0].device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        result = run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated(), result
    tensors = (*trainee.model.state_dict().values(), *optimizer.state_dict().values())
    before = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    with held_bytes() as held:
        result = run()
    return sum(before.values()) + held.peak, result
