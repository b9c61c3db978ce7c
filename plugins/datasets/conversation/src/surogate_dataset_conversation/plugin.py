"""Offers: the data set format `conversation`."""

from __future__ import annotations

from attrs import Factory, field, frozen

from surogate_core.hookspecs import hookimpl
from surogate_core.offers import Offer, doc


@frozen(kw_only=True)
class Options:
    """Options of `type = "conversation"`."""

    messages_field: str = field(default="messages", metadata=doc("Column with the list of messages."))
    system_field: str | None = field(default=None, metadata=doc("Column with the system prompt."))
    tools_field: str | None = field(default=None, metadata=doc("Column with the tools: a list, or a list as a JSON string."))
    images_field: str = field(
        default="images",
        metadata=doc(
            "Column with the images that `<image>` in the text, or parts of type `image`, stand for: a list, or one image."
        ),
    )
    objects_field: str = field(
        default="objects",
        metadata=doc("Column with what `<ref-object>` and `<bbox>` stand for: lists `ref`, `bbox`, `image_id`, and `bbox_type`."),
    )
    message_property_mappings: dict[str, str] = field(
        default=Factory(lambda: {"role": "role", "content": "content"}),
        metadata=doc('What the properties of a message are called in the data: `{role = "from", content = "value"}`.'),
    )


@hookimpl
def register_datasets() -> list[Offer]:
    return [
        Offer(
            "conversation",
            Options,
            build="surogate_dataset_conversation.dialogues:build",
            summary="Lists of messages (OpenAI or ShareGPT), with tools; only the assistant's text is trained.",
        )
    ]
