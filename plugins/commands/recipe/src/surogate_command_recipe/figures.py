"""The figures of a report, and how they are computed from pairs of tensors."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from attrs import field, frozen

if TYPE_CHECKING:
    from torch import Tensor


def relative_error(found: Tensor, exact: Tensor) -> float:
    """‖found - exact‖ / ‖exact‖ in float64 (Frobenius); 0 where both are zero, infinite where only ``exact`` is."""
    away, size = float((found.double() - exact.double()).norm()), float(exact.double().norm())
    return away / size if size else (math.inf if away else 0.0)


def cosine(one: Tensor, other: Tensor) -> float:
    """Of the angle between two tensors as vectors, in float64; 1 where both are zero."""
    a, b = one.double().flatten(), other.double().flatten()
    sizes = float(a.norm() * b.norm())
    return float(a @ b) / sizes if sizes else float(not (a.any() or b.any()))


def share(mask: Tensor) -> float:
    return float(mask.double().mean()) if mask.numel() else 0.0


@frozen(kw_only=True)
class Operand:
    """One rounded operand. ``error``: relative, of the values that the product sees; ``clipped``, ``zeroed``: shares of the values
    beyond the format's largest, and of those that were not zero and are."""

    error: float
    clipped: float
    zeroed: float

    @classmethod
    def of(cls, exact: Tensor, seen: Tensor, clipped: Tensor) -> Operand:
        return cls(error=relative_error(seen, exact), clipped=share(clipped), zeroed=share((seen == 0) & (exact != 0)))


@frozen(kw_only=True)
class Layer:
    """One linear layer on its own inputs, weight and output gradient. ``products``: relative error of y, dx and dW against the
    products of the unrounded operands in float64. ``gradient``: cosine of what is trained in this layer, recipe against plain, each
    through the whole model; None where nothing is."""

    operands: Mapping[str, Operand]
    products: Mapping[str, float]
    gradient: float | None = None


@frozen(kw_only=True)
class Training:
    """Some steps: loss of each, median seconds of a step, and the most bytes in tensors during one."""

    losses: Sequence[float]
    seconds: float
    memory: int


@frozen(kw_only=True)
class Report:
    """``bounds``: what the recipe declares, by the names of :meth:`worst`."""

    recipe: str
    emulated: bool
    device: str
    model: str
    layers: Mapping[str, Layer]
    gradient: float
    with_recipe: Training
    plain: Training
    bounds: Mapping[str, float] = field(factory=dict)

    @property
    def loss_gap(self) -> float:
        """Mean loss of the later half of the steps over the plain one's, less 1."""
        later = len(self.plain.losses) // 2
        one, other = (statistics.fmean(run.losses[later:]) for run in (self.with_recipe, self.plain))
        return one / other - 1

    def worst(self) -> dict[str, tuple[float, str]]:
        """What bounds are about, with where that is: ``operand``, the largest relative error of one; ``gradient``, 1 less the
        cosine of the whole gradient; ``loss``, the gap. Errors of products are in no bound: where the terms of a product all but
        cancel, any is possible."""
        errors = {f"{name}, {one}": made.error for name, layer in self.layers.items() for one, made in layer.operands.items()}
        found = {"gradient": (1 - self.gradient, "the whole model"), "loss": (self.loss_gap, "the later half of the steps")}
        if errors:
            where = max(errors, key=lambda one: math.inf if math.isnan(errors[one]) else errors[one])
            found["operand"] = errors[where], where
        return found

    def past(self) -> list[str]:
        """What is not within its bound, in words; not a number never is."""
        worst = self.worst()
        return [
            f"{name} {worst[name][0]:.3g} above {bound:.3g} ({worst[name][1]})"
            for name, bound in self.bounds.items()
            if name in worst and not worst[name][0] <= bound
        ]
