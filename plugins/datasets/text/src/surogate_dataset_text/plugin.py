"""What this plugin offers: the data set format `text`."""

from __future__ import annotations

from attrs import field, frozen

from surogate_core.hookspecs import hookimpl
from surogate_core.offers import Offer, doc


@frozen(kw_only=True)
class Options:
    """Options of `type = "text"`."""

    text_field: str = field(default="text", metadata=doc("Column that holds the text of a document."))


@hookimpl
def register_datasets() -> list[Offer]:
    return [
        Offer(
            "text",
            Options,
            build="surogate_dataset_text.documents:build",
            summary="Documents: every token is trained, long ones are split.",
        )
    ]
