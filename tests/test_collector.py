from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from surogate_core import collector


class Cycle:
    def __init__(self) -> None:
        self.own = self


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    assert gc.isenabled()
    assert not gc.get_freeze_count()
    yield
    gc.unfreeze()
    gc.enable()


def collections() -> int:
    return sum(one["collections"] for one in gc.get_stats())


def test_nothing_is_collected_inside_and_what_was_made_is_old_afterwards() -> None:
    with collector.paused():
        before = collections()
        made = [Cycle() for _ in range(100_000)]
        assert collections() == before
    assert gc.isenabled()
    young = {id(one) for generation in (0, 1) for one in gc.get_objects(generation)}
    assert not young & {id(one) for one in made}


def test_garbage_that_was_made_inside_is_still_found() -> None:
    with collector.paused():
        gone = weakref.ref(Cycle())
    assert gone() is not None
    gc.collect()
    assert gone() is None


def test_an_error_starts_it_again() -> None:
    with pytest.raises(KeyError), collector.paused():
        raise KeyError
    assert gc.isenabled()


def test_who_has_stopped_it_or_frozen_objects_keeps_that() -> None:
    gc.disable()
    with collector.paused():
        pass
    assert not gc.isenabled()
    gc.enable()
    gc.freeze()
    frozen = gc.get_freeze_count()
    with collector.paused():
        pass
    assert gc.get_freeze_count() >= frozen - 100  # what was freed in between
