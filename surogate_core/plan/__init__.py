"""The plan: what a run will do, settled before any weight is read or any memory taken."""

from surogate_core.plan.build import make_plan
from surogate_core.plan.record import Figures, Plan, Slots

__all__ = ["Figures", "Plan", "Slots", "make_plan"]
