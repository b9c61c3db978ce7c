"""Images, boxes and names of a row → the parts that the pipeline knows."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from surogate_dataset_conversation.dialogues import build
from surogate_dataset_conversation.plugin import Options

from surogate_core.contracts import Sample
from surogate_core.errors import BadRow


def contents(row: dict[str, Any], **options: Any) -> list[Any]:
    seen: list[Any] = []

    def render(messages: list[dict[str, Any]], tools: Any = None, kind: str = "") -> Sample:
        seen.extend(message["content"] for message in messages)
        return Sample(input_ids=[1, 2], weights=[0, 1])

    build(Options(**options), SimpleNamespace(render=render)).encode(row)  # type: ignore[arg-type]
    return seen


def asked(*said: Any, **columns: Any) -> dict[str, Any]:
    roles = ["user", "assistant"] * len(said)
    return {"messages": [{"role": role, "content": each} for role, each in zip(roles, said, strict=False)], **columns}


def image(value: Any) -> dict[str, Any]:
    return {"type": "image", "image": value}


def text(value: str) -> dict[str, Any]:
    return {"type": "text", "text": value}


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image", "image": "a.png"},
        {"type": "image", "path": "a.png"},
        {"type": "image", "url": "a.png"},
        {"type": "image", "text": None, "image": "a.png"},
        {"type": "image_url", "image_url": "a.png"},
        {"type": "input_image", "image_url": "a.png"},
    ],
)
def test_typed_parts(part: dict[str, Any]) -> None:
    assert contents(asked([text("See"), part, text("?")], "yes")) == [[text("See"), image("a.png"), text("?")], "yes"]


def test_openais_object_is_handed_on() -> None:
    given = {"url": "data:,", "detail": "low"}
    assert contents(asked([{"type": "image_url", "image_url": given}], "yes"))[0] == [image(given)]


@pytest.mark.parametrize(
    ("row", "options", "expected"),
    [
        (asked("<image>Is it?", "yes", images=["a"]), {}, [[image("a"), text("Is it?")], "yes"]),
        (asked("A <image> or <image>it?", "yes", images=["a", "b"]), {},
         [[text("A "), image("a"), text(" or "), image("b"), text("it?")], "yes"]),
        (asked("<image>1", "1", "<image>2", "2", images=["a", "b"]), {},
         [[image("a"), text("1")], "1", [image("b"), text("2")], "2"]),
        (asked("Is it?", "yes", images=["a", "b"]), {}, [[image("a"), image("b"), text("Is it?")], "yes"]),
        (asked("<image>Is it?", "yes", images="a"), {}, [[image("a"), text("Is it?")], "yes"]),
        (asked("<image>Is it?", "yes", picture={"bytes": b"x", "path": None}), {"images_field": "picture"},
         [[image({"bytes": b"x", "path": None}), text("Is it?")], "yes"]),
        (asked([{"type": "image"}, text("Is it?")], "yes", images=["a"]), {}, [[image("a"), text("Is it?")], "yes"]),
        (asked("<image>?", "a <image> tag", images=["a"]), {}, [[image("a"), text("?")], "a <image> tag"]),
        (asked("An <image> tag", "yes"), {}, ["An <image> tag", "yes"]),
        (asked("An <image> tag", "yes", images=None), {}, ["An <image> tag", "yes"]),
        (asked("A <bbox> tag", "yes", images=None), {}, ["A <bbox> tag", "yes"]),
        ({"conversations": [{"from": "human", "value": "<image>\nIs it?"}, {"from": "gpt", "value": "yes"}], "image": "a"},
         {"messages_field": "conversations", "images_field": "image"}, [[image("a"), text("\nIs it?")], "yes"]),
    ],
)  # fmt: skip
def test_placeholders_and_columns(row: dict[str, Any], options: dict[str, Any], expected: list[Any]) -> None:
    assert contents(row, **options) == expected


@pytest.mark.parametrize("field", ["objects", "things"])
def test_objects(field: str) -> None:
    things = {"ref": ["cat", "dog"], "bbox": [[1, 2, 3, 4], [5, 6]], "image_id": [0, 1], "bbox_type": "norm1"}
    row = asked("<image><image>Find <ref-object> and <ref-object>.", "At <bbox>, <bbox>", images=["a", "b"], **{field: things})
    boxes = [{"type": "bbox", "bbox": [1, 2, 3, 4], "image_id": 0, "bbox_type": "norm1"},
             {"type": "bbox", "bbox": [5, 6], "image_id": 1, "bbox_type": "norm1"}]  # fmt: skip
    (question, answer) = contents(row, **({} if field == "objects" else {"objects_field": field}))
    assert "".join(part.get("text", "") for part in question) == "Find cat and dog."
    assert answer == [text("At "), boxes[0], text(", "), boxes[1]]


@pytest.mark.parametrize(
    ("row", "options", "reason"),
    [
        (asked("<image><image>", "yes", images=["a"]), {}, "more places for images than images"),
        (asked("<image>", "yes", images=["a", "b"]), {}, "fewer places for images than images"),
        (asked("<image>", "yes", images=[]), {}, "more places for images than images"),
        (asked([{"type": "image"}], "yes"), {}, "more places for images than images"),
        (asked("?", "yes"), {"images_field": "image"}, "missing field 'image'"),
        (asked("?", "<bbox><bbox>", objects={"bbox": [[1, 2]]}), {}, "more <bbox> than boxes in objects"),
        (asked("?", "<bbox>", objects={"bbox": [[1, 2], [3, 4]]}), {}, "fewer <bbox> than boxes in objects"),
        (asked("<ref-object>", "yes", objects={"ref": [], "bbox": []}), {}, "more <ref-object> than names in objects"),
        (asked("?", "yes", objects="a box"), {}, "field 'objects' is not an object"),
        (asked([{"type": "video", "video": "a"}], "yes"), {}, "videos: not supported"),
        (asked("?", "yes", videos=["a"]), {}, "videos: not supported"),
        (asked("?", "yes", audios=["a"]), {}, "sound: not supported"),
        (asked([{"type": "audio", "audio": "a"}], "yes"), {}, "sound: not supported"),
        ({"messages": [{"role": "assistant", "content": "yes"}], "images": ["a"]}, {}, "images and no user message"),
    ],
)  # fmt: skip
def test_rows_that_cannot_be_used(row: dict[str, Any], options: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadRow) as caught:
        contents(row, **options)
    assert caught.value.reason == reason
