"""Telling plugins what happened."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from surogate_core.contracts import KeepsState
from surogate_core.host import Host
from surogate_core.offers import Offer, Owner

OBSERVERS = ("run_started", "step_finished", "evaluated", "part_finished", "memory_exhausted", "checkpoint_saved", "run_finished")


class Observers:
    """Tells plugins what happened. One that raises is reported once through ``notice`` and detached. ``seconds``: what each
    distribution took so far."""

    def __init__(self, host: Host, notice: Callable[[str], None]):
        self._calls = {hook: host.implementations(hook) for hook in OBSERVERS}
        self._notice = notice
        self._detached: set[str] = set()
        self._built: list[tuple[Offer, Any]] = []
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def add(self, offer: Offer, observer: Any) -> None:
        """Tell this object too, as what ``offer`` built."""
        self._built.append((offer, observer))
        for hook, calls in self._calls.items():
            if call := getattr(observer, hook, None):
                calls.append((f"observer {offer.name}", offer.owner, call))

    def states(self) -> dict[str, Any]:
        """Name of the offer → what its observer wants to know when the run is continued."""
        return {offer.name: dict(observer.state()) for offer, observer in self._built if isinstance(observer, KeepsState)}

    def tell(self, hook: str, **arguments: Any) -> list[tuple[Owner, Any]]:
        answers = []
        for name, owner, call in self._calls[hook]:
            if name in self._detached:
                continue
            begun = time.perf_counter()
            try:
                answers.append((owner, call(**arguments)))
            except Exception as error:
                self._detached.add(name)
                self._notice(f"observer {owner} raised {type(error).__name__} in {hook} and is detached: {error}")
            self.seconds[owner.distribution] += time.perf_counter() - begun
        return answers
