"""Reading the state of an optimizer back into its tensors, for the authors of optimizers."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from surogate_core.errors import ResumeError


def fill(own: Mapping[str, Tensor], saved: Mapping[str, Tensor], optimizer: str) -> None:
    """Copy ``saved`` into ``own``, name by name. Raises ResumeError naming the first entries that are missing, left over, or of
    another shape or dtype: they belong to another optimizer, model or adapter. Nothing is copied then."""
    wrong = [
        f"{name}: {_form(own.get(name))} wanted, {_form(saved.get(name))} found"
        for name in sorted(own.keys() | saved.keys())
        if _form(own.get(name)) != _form(saved.get(name))
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ResumeError(
            f"the optimizer state is not one of {optimizer} for these parameters: {'; '.join(wrong[:3])}{more}",
            where="optimizer state of the checkpoint",
            how="continue with the optimizer, model and adapter of the checkpoint, or start over with --fresh",
        )
    for name, tensor in own.items():
        tensor.copy_(saved[name])


def _form(tensor: Tensor | None) -> str:
    return "none" if tensor is None else f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
