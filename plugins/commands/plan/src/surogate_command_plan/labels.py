"""What the tensors of a step are for, told to a :class:`Tally` while the step runs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from surogate_command_plan.tally import Tally

MASTERS = ".remainder"
"""End of the names that optimizers give to what they keep of float32 masters."""
PHASES = ("forward", "backward, upper half", "backward, lower half", "update")


def held(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, list[Tensor]]:
    """What lives from step to step, by buffer: the model's tensors and an optimizer's. What is trained beside a frozen base is the
    ``adapter``; tensors that a recipe's modules keep are in ``weights``."""
    storages = [part for module in model.modules() if isinstance(part := getattr(module, "storage", None), nn.Module)]
    parameters = list(model.parameters())
    trained: list[Tensor] = [p for p in parameters if p.requires_grad]
    return {
        "weights": [*parameters, *model.buffers()],
        "adapter": trained if len(trained) < len(parameters) else [],
        "quantised weights": [tensor for storage in storages for tensor in storage.buffers()],
        "optimizer": [tensor for name, tensor in state.items() if not name.endswith(MASTERS)],
        "masters": [tensor for name, tensor in state.items() if name.endswith(MASTERS)],
    }


@contextlib.contextmanager
def labelled(tally: Tally, model: nn.Module, blocks: Sequence[nn.Module]) -> Iterator[Callable[[str], None]]:
    """Within it ``tally`` knows phases, activations, the head, gradients and scratch apart. In the backward pass all but gradients
    is scratch: what is computed again of a block, too. Gives what has to be called at the end of a part of a step, with its name,
    as the loop does (``part_finished``)."""
    lower = {id(p) for block in blocks[: len(blocks) // 2] for p in block.parameters()}
    trained = [p for p in model.parameters() if p.requires_grad]

    def enter(*_: Any) -> None:
        if tally.phase in (PHASES[0], PHASES[3]):  # of this micro-batch, or of the next
            begin()

    def leave(*_: Any) -> None:
        if tally.phase == PHASES[0]:
            tally.label = "head"

    def ready(parameter: Tensor) -> None:
        if parameter.grad is not None:  # an optimizer may have taken it already
            tally.hold([parameter.grad], "gradients")
        if id(parameter) in lower:
            tally.phase = PHASES[2]

    def mark(name: str) -> None:
        if name == "forward":
            tally.phase, tally.label = PHASES[1], "scratch"
        elif name == "backward":
            tally.phase, tally.label = PHASES[3], "scratch"
            tally.hold([p.grad for p in trained if p.grad is not None], "gradients")  # sums may have been rounded to others
        else:
            begin()

    def begin() -> None:
        tally.phase, tally.label = PHASES[0], "activations"

    handles: list[Any] = [blocks[0].register_forward_pre_hook(enter), blocks[-1].register_forward_hook(leave)]
    handles += [parameter.register_post_accumulate_grad_hook(ready) for parameter in trained]
    begin()
    try:
        yield mark
    finally:
        for handle in handles:
            handle.remove()
