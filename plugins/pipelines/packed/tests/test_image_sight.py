"""Images as tokens, boxes as text, and which of it is trained."""

from __future__ import annotations

import base64
import math
from typing import Any

import attrs
import numpy as np
import pytest
from PIL import Image
from surogate_pipeline_packed.images.boxes import written
from surogate_pipeline_packed.images.testing import END, IMAGE, START, Eyes, asked, image, png, text
from transformers import AutoImageProcessor, AutoTokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from surogate_core.errors import BadRow, DataError


def url(*args: Any, **more: Any) -> str:
    return "data:image/png;base64," + base64.b64encode(png(*args, **more)).decode()


def patches(width: int, height: int, least: int = 64, most: int = 1024) -> int:
    """Tokens of an image, by transformers' own rule: patches of 4 × 4, four of them a token."""
    h, w = smart_resize(height, width, factor=8, min_pixels=least, max_pixels=most)
    return h * w // 64


def test_ids_are_those_of_the_template_with_each_image_token_repeated(eyes: Eyes) -> None:
    tokenizer = AutoTokenizer.from_pretrained(eyes.model)
    row = {
        "messages": [
            {"role": "system", "content": "Look."},
            {"role": "user", "content": [image(url(16, 24)), text("and"), image(url(33, 9)), text("?\n")]},
            {"role": "assistant", "content": "Red, twice."},
            {"role": "user", "content": [text("Now "), image(url(100, 60)), text(" this.")]},
            {"role": "assistant", "content": "Red."},
        ]
    }
    shown = [{**m, "content": [{**p, "image": ""} for p in m["content"]] if isinstance(m["content"], list) else m["content"]}
             for m in row["messages"]]  # fmt: skip
    whole = tokenizer.apply_chat_template(shown, tokenize=False)
    for size in ((16, 24), (33, 9), (100, 60)):
        whole = whole.replace("<|image_pad|>", "<|IMAGE|>" * patches(*size), 1)
    expected = tokenizer(whole.replace("<|IMAGE|>", "<|image_pad|>"), add_special_tokens=False)["input_ids"]
    corpus = eyes.prepare([row]).prepared.train
    assert corpus.tokens[:].tolist() == expected
    trained = [token for token, weight in zip(expected, corpus.weights[:], strict=True) if weight]
    assert tokenizer.decode(trained) == "Red, twice.<|im_end|>Red.<|im_end|>"


@pytest.mark.parametrize("scale", ["default", "last_round", "all"])
def test_image_tokens_are_never_trained(scale: str, eyes: Eyes) -> None:
    corpus = eyes.prepare([asked([image(url(32, 32)), text("?")])], loss_scale=scale).prepared.train
    tokens, weights = corpus.tokens[:], corpus.weights[:]
    assert (tokens == IMAGE).sum() == 16
    assert not weights[tokens == IMAGE].any()
    assert weights.any()


@pytest.mark.parametrize("scale", ["default", "all"])
def test_the_reasons_follow_the_tokens_behind_images(scale: str, eyes: Eyes) -> None:
    """Each reason says of its run what the weights say, and images have one of their own, however many tokens they are."""
    tokenizer = AutoTokenizer.from_pretrained(eyes.model)
    row = asked([image(url(64, 48)), text("one"), image(url(16, 24)), image(url(32, 32)), text("two")])
    corpus = eyes.prepare([row], loss_scale=scale).prepared.train
    (start, stop, _), tokens, weights = corpus.pieces[0], corpus.tokens[:], corpus.weights[:]
    assert corpus.reasons is not None
    runs = corpus.reasons.of(int(start), int(stop))
    found = {"image": [], "user turn": [], "assistant turn 1": []}
    for (first, why), end in zip(runs, [*(first for first, _ in runs[1:]), int(stop)], strict=True):
        assert {bool(weight) for weight in weights[max(first, 1) : end]} <= {": masked" not in why}, why
        found.setdefault(why.split(":")[0], []).append(tokens[first:end].tolist())
    sizes = [patches(*size) for size in ((64, 48), (16, 24), (32, 32))]
    assert found["image"] == [[IMAGE] * size for size in sizes]
    assert [tokenizer.decode(run) for run in found["user turn"]] == ["one", "two"]
    assert [tokenizer.decode(run).removesuffix("<|im_end|>") for run in found["assistant turn 1"]] == [
        row["messages"][-1]["content"]
    ]


def test_max_pixels_makes_images_of_fewer_tokens(eyes: Eyes) -> None:
    rows = [asked([image(url(64, 48)), text("?")])]
    counts = {most: eyes.ids(rows, max_pixels=most)[0].count(IMAGE) for most in (None, 512, 100, 1)}
    assert counts == {None: patches(64, 48), 512: patches(64, 48, most=512), 100: patches(64, 48, most=100), 1: 1}
    assert len({*counts.values()}) == 4 or counts[100] == 1


def test_what_the_model_gets_is_what_transformers_makes(eyes: Eyes) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (30, 50, 3), dtype=np.uint8)
    Image.fromarray(noise).save(eyes.directory / "a.png")
    theirs = AutoImageProcessor.from_pretrained(eyes.model, backend="pil")(images=[Image.fromarray(noise)], return_tensors="np")
    data = eyes.prepare([asked([image("a.png"), text("?")])])
    (batch,) = data.training(1, 1).step(0).batches
    assert np.array_equal(batch.inputs["pixel_values"], theirs["pixel_values"])
    assert batch.inputs["image_grid_thw"].tolist() == theirs["image_grid_thw"].tolist()


# ---------------------------------------------------------------- boxes
@pytest.mark.parametrize(
    ("norm", "kind", "box", "expected"),
    [
        ("norm1000", "real", [10, 5, 50, 40], "[100, 125, 500, 1000]"),
        ("norm1000", "norm1", [0.1, 0.125, 0.5, 1], "[100, 125, 500, 1000]"),
        ("none", "real", [10, 5, 50, 40], "[4, 2, 20, 16]"),
        ("none", "norm1", [0.1, 0.125, 0.5, 1], "[4, 2, 20, 16]"),
        ("norm1000", "real", [33.3, 7], "[333, 175]"),
    ],
)
def test_boxes_in_the_coordinates_of_the_model(norm: str, kind: str, box: list[float], expected: str) -> None:
    sizes = [((1, 1), (1, 1)), ((100, 40), (40, 16))]
    assert written({"bbox": box, "bbox_type": kind, "image_id": 1}, sizes, norm) == expected


@pytest.mark.parametrize(
    ("box", "norm", "reason"),
    [
        ({"bbox": [1, 2, 3, 4]}, None, "norm_bbox"),
        ({"bbox": [1, 2, 3]}, "none", "two a point"),
        ({"bbox": "1 2"}, "none", "two a point"),
        ({"bbox": [1, True]}, "none", "two a point"),
        ({"bbox": [1, math.nan]}, "none", "two a point"),
        ({"bbox": [1, 41]}, "none", "outside of its image"),
        ({"bbox": [-1, 4]}, "none", "outside of its image"),
        ({"bbox": [0.5, 1.5], "bbox_type": "norm1"}, "none", "outside of its image"),
        ({"bbox": [1, 2], "bbox_type": "norm1000"}, "none", "wanted real or norm1"),
        ({"bbox": [1, 2], "image_id": 1}, "none", "an image that the row does not have"),
    ],
)
def test_boxes_that_cannot_be_meant(box: dict[str, Any], norm: str | None, reason: str) -> None:
    with pytest.raises(BadRow, match=reason):
        written(box, [((100, 40), (40, 16))], norm)


def test_norm_bbox_changes_the_text_and_the_ids(eyes: Eyes) -> None:
    row = asked("<image>Find <ref-object>.", "<bbox>", images=[url(64, 32)], objects={"ref": ["it"], "bbox": [[16, 8, 32, 32]]})
    decoded = {norm: eyes.processor.tokenizer.decode(eyes.ids([row], norm_bbox=norm)[0]) for norm in ("norm1000", "none")}
    assert "Find it.<|im_end|>" in decoded["norm1000"]
    assert "[250, 250, 500, 1000]<|im_end|>" in decoded["norm1000"]
    width, height = (4 * n for n in (11, 5))  # smart_resize(32, 64) within 1024 pixels: 40 × 16
    width, height = smart_resize(32, 64, factor=8, min_pixels=64, max_pixels=1024)[::-1]
    assert f"[{width // 4}, {height // 4}, {width // 2}, {height}]<|im_end|>" in decoded["none"]
    (reason,) = eyes.reasons([row])
    assert reason.startswith("a box, and no norm_bbox")


# ---------------------------------------------------------------- rows that cannot be used
@pytest.mark.parametrize(
    ("row", "options", "reason"),
    [
        (asked("<image>?"), {}, "<image> in a text without an image for it"),
        (asked("<image><image>?", images=[url()]), {}, "more places for images than images"),
        (asked("<image>?", images=[url(), url()]), {}, "fewer places for images than images"),
        (asked([{"type": "image"}, text("?")], images=[]), {}, "more places for images than images"),
        (asked("A text with <|image_pad|> in it"), {}, "a text with the image token <|image_pad|>"),
        (asked([image(url()), text("<|image_pad|>")]), {}, "a text with the image token <|image_pad|>"),
        (asked("?", "An <|image_pad|> answer"), {}, "a text with the image token <|image_pad|>"),
        (asked([{"type": "video", "video": "a.mp4"}, text("?")]), {}, "videos: not supported"),
        (asked([{"type": "video_url", "video_url": {"url": "a.mp4"}}]), {}, "videos: not supported"),
        (asked("<video>?", videos=["a.mp4"]), {}, "videos: not supported"),
        (asked([{"type": "input_audio", "input_audio": {}}, text("?")]), {}, "sound: not supported"),
        ({"messages": [*asked("?")["messages"][:1], {"role": "assistant", "content": [image(url())]}]}, {},
         "an image in a message of role assistant"),
        ({"messages": [{"role": "system", "content": [image(url())]}, *asked("?")["messages"]]}, {},
         "an image in a message of role system"),
        (asked([image(url()), text("?")]), {"use_chat_template": False}, "an image has no place without a chat template"),
        (asked([image(url()), text("?")]), {"template": "chatml"}, "the chat template"),
    ],
)  # fmt: skip
def test_rows_that_cannot_be_used(row: dict[str, Any], options: dict[str, Any], reason: str, eyes: Eyes) -> None:
    (found,) = eyes.reasons([row], **options)
    assert found.startswith(reason)


@pytest.mark.parametrize("kind", ["text", "instruction"])
def test_a_text_with_an_image_token_is_refused_in_every_format(kind: str, eyes: Eyes) -> None:
    fields = {"text": {}, "instruction": {"instruction_field": "q", "output_field": "a"}}[kind]
    rows = [{"text": "An <|image_pad|>.", "q": "?", "a": "An <|image_pad|>."}, {"text": "A text.", "q": "?", "a": "!"}]
    ledger = eyes.prepare(rows, type=kind, form=fields).ledger
    assert dict(ledger["rows"]["dropped"]) == {"a text with the image token <|image_pad|>": 1}


def test_a_model_that_takes_no_images_says_so(eyes: Eyes) -> None:
    plain = eyes.processor.tokenizer
    assert eyes.reasons([asked([image(url()), text("?")])], processor=plain) == {"an image, and the model takes none": 1}
    assert eyes.reasons([asked("A page with an <image> tag")], processor=plain) == {}
    for key, value in {"max_pixels": 100, "norm_bbox": "none", "multimodal_on_the_fly": True}.items():
        with pytest.raises(DataError, match=f"{key} is about images, and the model takes none"):
            eyes.prepare([asked("?")], processor=plain, **{key: value})


def test_a_template_that_leaves_out_a_text_beside_an_image_is_refused(eyes: Eyes) -> None:
    processor = eyes.processor
    template = processor.tokenizer.chat_template.replace("{{ part['text'] }}", "")
    processor.tokenizer.chat_template = template
    (reason,) = eyes.reasons([asked([image(url()), text("What is it?")])], processor=processor)
    assert reason == "the chat template does not show a message of role user"


def test_markers_around_an_image_belong_to_it(eyes: Eyes) -> None:
    sight_rows = [asked([image(url(16, 8)), image(url(8, 8)), text("?")])]
    data = eyes.prepare(sight_rows)
    gallery = data.prepared.train.images
    assert gallery is not None
    tokens = data.prepared.train.tokens[:].tolist()
    found = [tokens[row[0] : row[1]] for row in gallery.table.tolist()]
    assert found == [[START, IMAGE, IMAGE, END], [START, IMAGE, END]]


def test_a_processor_without_markers_has_bare_images(eyes: Eyes) -> None:
    data = eyes.prepare([asked([image(url(16, 8)), text("?")])], processor=attrs.evolve(eyes.processor, marker_ids=()))
    assert data.prepared.train.images is not None
    (row,) = data.prepared.train.images.table.tolist()
    assert row[1] - row[0] == 2
