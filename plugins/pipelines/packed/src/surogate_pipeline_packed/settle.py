"""Formats that are not settled until rows have been seen (``type = "auto"``).

Such a format has ``settle(rows)``, which names the format to go on with, its options, and why. It is asked once, before anything is
encoded, so that workers, truncation and whatever else depends on the format see only the settled one.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice

import attrs

from surogate_core.config import DatasetOptions
from surogate_core.contracts import Format
from surogate_core.errors import DataError
from surogate_pipeline_packed.read import Source

LOOKED_AT = 100
"""Rows that are looked at; rows that cannot be read are passed over."""


def settled(options: DatasetOptions, form: Format, source: Source, where: str, report: Callable[[str], None]) -> DatasetOptions:
    """``options`` with the format that is in force. Raises DataError, with the place in the configuration, when none is found."""
    settle = getattr(form, "settle", None)
    if settle is None:
        return options
    usable = (row.columns for row in source.rows() if row.columns is not None)
    place = f'{where}.path = "{options.path}"'
    rows = list(islice(usable, LOOKED_AT))
    if not rows:
        raise DataError("the data set has no row that can be read", place, "give a data set with at least one row")
    try:
        found = settle(rows)
    except DataError as error:
        raise DataError([attrs.evolve(problem, where=place) for problem in error.problems]) from error
    report(f'{where} {options.path}: type = "{options.type}" reads it as {found.type}: {found.why} in {len(rows):,} rows')
    return attrs.evolve(options, type=found.type, format_options=found.options)
