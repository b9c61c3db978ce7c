"""What goes into records and checkpoints is plain JSON."""

from __future__ import annotations

import json
from typing import Any


def plain(value: Any, what: str) -> Any:
    """``value`` as JSON gives it back. AssertionError, naming ``what``, where that is another value."""
    try:
        read = json.loads(json.dumps(value))
    except (TypeError, ValueError) as error:
        raise AssertionError(f"{what} is not plain JSON: {error}") from error
    assert read == value, f"{what} does not survive JSON: {value!r} comes back as {read!r}"
    return read
