"""Offers: the data set format `auto`."""

from __future__ import annotations

from surogate_core.hookspecs import hookimpl
from surogate_core.offers import Offer


@hookimpl
def register_datasets() -> list[Offer]:
    return [
        Offer(
            "auto",
            None,
            build="surogate_dataset_auto.detect:build",
            summary="Text, instruction or conversation, as the columns tell; refuses when two readings fit.",
        )
    ]
