"""``auto_lr_reduction``: cuts of the learning rate in two stages.

The first cuts (``lr_reduction_temporary``, two) are temporary: the rate blends back in a straight line over
``lr_reduction_blend`` steps. When that many steps do not pass without a spike, they have not helped, and the next cut is for
good; at most ``lr_reduction_limit`` of those. So a spike that stands alone never costs a run its rate.
"""

from __future__ import annotations

from attrs import define

from surogate_observer_diagnostics.options import Options


@define
class Cuts:
    """``lasting`` × ``passing`` is the factor in force, ``lasting`` only ever falls."""

    lasting: float = 1.0
    passing: float = 1.0
    back: float = 0.0
    temporary: int = 0
    permanent: int = 0
    last: int | None = None
    exhausted: bool = False

    def see(self, step: int, spike: str | None, options: Options) -> tuple[float, str]:
        """What to multiply the rate by from the next step on, and why; without a reason it blends back, or stays (1)."""
        before = self.lasting * self.passing
        reason = ""
        if self.passing < 1.0:
            self.passing = min(1.0, self.passing + self.back)
        if spike is None:
            if self.last is not None and step - self.last > options.lr_reduction_blend:
                self.temporary = 0
        elif self.last is None or step - self.last >= options.lr_reduction_pause:
            reason = self._cut(spike, options)
            self.last = step if reason else self.last
        return self.lasting * self.passing / before, reason

    def _cut(self, spike: str, options: Options) -> str:
        if self.temporary < options.lr_reduction_temporary:
            self.temporary += 1
            self.passing *= options.lr_reduction_factor
            self.back = (1.0 - self.passing) / options.lr_reduction_blend
            which = f"temporary cut {self.temporary} of {options.lr_reduction_temporary}"
            return f"auto_lr_reduction, {which}, back in {options.lr_reduction_blend} steps: {spike}"
        if self.permanent < options.lr_reduction_limit:
            self.permanent += 1
            self.lasting *= options.lr_reduction_factor
            return f"auto_lr_reduction, permanent cut {self.permanent} of {options.lr_reduction_limit}: {spike}"
        if not self.exhausted:
            self.exhausted = True
            return f"auto_lr_reduction, no cut left after {options.lr_reduction_limit} permanent ones: {spike}"
        return ""
