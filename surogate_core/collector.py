"""Python's collector of cyclic garbage, kept out of the way while libraries are imported."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def paused() -> Iterator[None]:
    """In here no garbage is looked for. What torch and transformers make when they are imported stays; to go through all of it
    again and again takes a fifth of that time. Afterwards it counts as old, so that the next collection does not begin with it."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        if not gc.get_freeze_count():  # else it is in use
            gc.freeze()
            gc.unfreeze()  # from the frozen ones they come among the oldest
        gc.enable()
