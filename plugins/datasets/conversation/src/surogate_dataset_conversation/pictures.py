"""Images of a conversation: typed parts, or placeholders in the text and a column of images.

OpenAI's parts (``{"type": "image_url", "image_url": {"url": …}}``), those of the Hub (``{"type": "image"}`` with the image under
``image``, ``path`` or ``url``, or in the row's column), and the placeholders of LLaVA, LLaMA-Factory and ms-swift: ``<image>``, and
for what ``objects`` holds ``<ref-object>`` and ``<bbox>``. All become the parts that ``render`` knows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from attrs import define

from surogate_core.errors import BadRow

IMAGE = "<image>"
IMAGE_KINDS = ("image", "image_url", "input_image")
VIDEO_KINDS = ("video", "video_url", "input_video")
AUDIO_KINDS = ("audio", "audio_url", "input_audio")
KEYS = ("image", "image_url", "path", "url", "bytes")
UNKNOWN_COLUMNS = {"videos": "videos", "video": "videos", "audios": "sound", "audio": "sound"}
MARKS = re.compile("(<image>|<ref-object>|<bbox>)")


@define
class Album:
    """The images and objects of one row, handed out in order. ``None`` for ``images``: the row has no such column."""

    images: list[Any] | None
    objects: Mapping[str, Any]
    placed: int = 0
    refs: int = 0
    boxes: int = 0

    @classmethod
    def of(cls, row: Mapping[str, Any], images_field: str, objects_field: str) -> Album:
        """Raises BadRow for videos, sound, and objects that are none."""
        for column, what in UNKNOWN_COLUMNS.items():
            if row.get(column):
                raise BadRow(f"{what}: not supported")
        images, objects = row.get(images_field), row.get(objects_field)
        if images is not None and not isinstance(images, list):
            images = [images]
        if objects is not None and not isinstance(objects, Mapping):
            raise BadRow(f"field '{objects_field}' is not an object")
        return cls(images, objects or {})

    def image(self) -> Any:
        """The next image of the column."""
        self.placed += 1
        if self.placed > len(self.images or ()):
            raise BadRow("more places for images than images")
        return (self.images or [])[self.placed - 1]

    def ref(self) -> str:
        self.refs += 1
        named = self.objects.get("ref") or []
        if self.refs > len(named) or not isinstance(named[self.refs - 1], str):
            raise BadRow("more <ref-object> than names in objects")
        return str(named[self.refs - 1])

    def box(self) -> dict[str, Any]:
        self.boxes += 1
        boxes, images = self.objects.get("bbox") or [], self.objects.get("image_id") or []
        if self.boxes > len(boxes):
            raise BadRow("more <bbox> than boxes in objects")
        number = images[self.boxes - 1] if self.boxes <= len(images) else 0
        kind = self.objects.get("bbox_type") or "real"
        return {"type": "bbox", "bbox": boxes[self.boxes - 1], "image_id": number, "bbox_type": kind}

    def text(self, text: str, asked: bool) -> list[dict[str, Any]]:
        """A text as parts. ``<image>`` stands for an image in what the model is asked, when the row has the column."""
        return [*self._marked(text, asked)]

    def _marked(self, text: str, asked: bool) -> Iterator[dict[str, Any]]:
        for piece in MARKS.split(text):
            if piece == IMAGE and asked and self.images is not None:
                yield {"type": "image", "image": self.image()}
            elif piece == "<ref-object>" and self.objects:
                yield {"type": "text", "text": self.ref()}
            elif piece == "<bbox>" and self.objects:
                yield self.box()
            elif piece:
                yield {"type": "text", "text": piece}

    def part(self, part: Mapping[str, Any]) -> dict[str, Any] | None:
        """A part that is an image; None for one that is none. Raises BadRow for videos and sound."""
        kind = part.get("type")
        if kind in VIDEO_KINDS or kind in AUDIO_KINDS:
            raise BadRow(f"{'videos' if kind in VIDEO_KINDS else 'sound'}: not supported")
        if kind not in IMAGE_KINDS:
            return None
        given = next((part[key] for key in KEYS if part.get(key) is not None), None)
        return {"type": "image", "image": self.image() if given is None else given}

    def finish(self, messages: list[dict[str, Any]]) -> None:
        """Images that no text asked for go before the first user message. Raises BadRow where that holds for some of them only."""
        images = self.images or []
        if self.placed == 0 and images:
            first = next((message for message in messages if message["role"] == "user"), None)
            if first is None:
                raise BadRow("images and no user message")
            content = first["content"]
            said = content if isinstance(content, list) else [{"type": "text", "text": content}]
            first["content"] = [{"type": "image", "image": image} for image in images] + said
        elif self.placed < len(images):
            raise BadRow("fewer places for images than images")
        if self.boxes < len(self.objects.get("bbox") or []):
            raise BadRow("fewer <bbox> than boxes in objects")


def joined(parts: Sequence[dict[str, Any]]) -> str | list[dict[str, Any]]:
    """Content: text where all parts are."""
    if all(part["type"] == "text" for part in parts):
        return "".join(part["text"] for part in parts)
    return list(parts)
