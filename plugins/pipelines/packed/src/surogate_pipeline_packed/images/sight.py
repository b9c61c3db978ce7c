"""Messages with images → messages for the chat template, and samples with the images' tokens in them.

The template writes one image token for each image. The text is tokenised with it, as it is when the model is served, and only then
the token is repeated, as often as the image has patches after merging: an image token is a special token, so that nothing around it
is tokenised otherwise. Image tokens are never trained.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from attrs import evolve, field, frozen
from numpy.typing import NDArray

from surogate_core.contracts import Sample
from surogate_core.errors import BadRow, DataError
from surogate_pipeline_packed.images.boxes import Size, written
from surogate_pipeline_packed.images.source import Encoded, pixels, read
from surogate_pipeline_packed.plugin import Options
from surogate_pipeline_packed.scale import told

PLACEHOLDER = "<image>"
IMAGE = told(0, "image")
Message = Mapping[str, Any]
Grid = tuple[int, int, int]


@frozen(eq=False)
class Picture:
    """An image of a sample.

    start, stop  its tokens, with the markers around it
    grid         its patches in time, height and width
    size         width and height as it is stored
    pixels       (T·H·W, values a patch) float32, what the model gets; None where it is computed when it is needed
    """

    encoded: Encoded
    grid: Grid
    size: Size
    pixels: NDArray[np.float32] | None = None
    start: int = 0
    stop: int = 0

    @property
    def digest(self) -> bytes:
        return digest(self.encoded.data)


def digest(data: bytes) -> bytes:
    """16 bytes of BLAKE2b."""
    return hashlib.blake2b(data, digest_size=16).digest()


@frozen(eq=False)
class Sight:
    """What images become: the model's processor and the options about images. ``roots`` are the directories where relative paths
    start. ``ahead``: pixels are computed with the tokens and kept."""

    processor: Any
    own: Options
    roots: tuple[Path, ...] = ()
    grids: dict[Size, Grid] = field(factory=dict)

    @property
    def ahead(self) -> bool:
        return self.own.multimodal_on_the_fly is False

    @property
    def token(self) -> str:
        return str(self.processor.tokenizer.convert_ids_to_tokens(self.processor.image_token_id))

    def given(self, image: Any) -> tuple[NDArray[np.float32], Grid]:
        """What the model gets for a PIL image: (T·H·W, values a patch), and T, H, W. Raises BadRow."""
        made = self.processor.image_processor
        limits = {}
        if self.own.max_pixels is not None:
            least = min(made.size["shortest_edge"], self.own.max_pixels)
            limits["size"] = {"shortest_edge": least, "longest_edge": self.own.max_pixels}
        try:
            found = made(images=[image], return_tensors="np", **limits)
        except ValueError as error:  # too long and thin
            raise BadRow(f"an image that the image processor refuses: {str(error)[:80]}") from error
        (grid,) = found["image_grid_thw"].tolist()
        return np.ascontiguousarray(found["pixel_values"], dtype=np.float32), (grid[0], grid[1], grid[2])

    def picture(self, value: Any) -> Picture:
        """The image that a row names. It is decoded here, so that a broken one is found now. Raises BadRow."""
        encoded = read(value, self.roots)
        image = pixels(encoded.data)
        if not self.ahead and image.size in self.grids:  # the grid depends on the size alone
            return Picture(encoded, self.grids[image.size], image.size)
        values, grid = self.given(image)
        self.grids[image.size] = grid
        return Picture(encoded, grid, image.size, values if self.ahead else None)

    def resized(self, picture: Picture) -> Size:
        """(width, height) of an image as the model gets it."""
        patch = self.processor.image_processor.patch_size
        return picture.grid[2] * patch, picture.grid[1] * patch

    def tokens(self, picture: Picture) -> int:
        return int(np.prod(picture.grid)) // self.processor.image_processor.merge_size**2

    def expanded(self, sample: Sample, pictures: Sequence[Picture]) -> Sample:
        """The sample with each image token as often as its image needs it. Raises BadRow where the template leaves out an image."""
        ids, weights = np.asarray(sample.input_ids, dtype=np.int64), np.asarray(sample.weights, dtype=np.float32)
        places = np.flatnonzero(ids == self.processor.image_token_id)
        if len(places) != len(pictures):
            raise BadRow("the chat template does not show each image once")
        times = np.ones(len(ids), dtype=np.int64)
        times[places] = [self.tokens(picture) for picture in pictures]
        weights = weights.copy()
        weights[places] = 0
        starts = np.cumsum(times) - times
        found, before = [], 0
        for place, picture in zip(places.tolist(), pictures, strict=True):
            start, stop = int(starts[place]), int(starts[place] + times[place])
            if place and ids[place - 1] in self.processor.marker_ids and start > before:
                start -= 1
            if place + 1 < len(ids) and ids[place + 1] in self.processor.marker_ids:
                stop += 1
            found.append(evolve(picture, start=start, stop=stop))
            before = stop
        reasons = _reasons(sample.reasons, places, starts)
        ids, weights = np.repeat(ids, times), np.repeat(weights, times)
        return evolve(sample, input_ids=ids, weights=weights, images=tuple(found), reasons=reasons)


def _reasons(reasons: Sequence[tuple[int, str]], places: NDArray[np.int64], starts: NDArray[np.int64]) -> list[tuple[int, str]]:
    """The runs of reasons, with image tokens in runs of their own. ``places`` are those tokens, ``starts`` where each token of the
    text begins once they are repeated."""
    why = dict(reasons)  # by token of the text
    said = [text for _, text in reasons]
    firsts = np.array([first for first, _ in reasons], dtype=np.int64)
    for place in places.tolist() if reasons else ():
        if place + 1 < len(starts) and place + 1 not in why:
            why[place + 1] = said[int(np.searchsorted(firsts, place, "right")) - 1]
    why.update((place, IMAGE) for place in (places.tolist() if reasons else ()))
    return [(int(starts[first]), text) for first, text in sorted(why.items()) if first < len(starts)]


def sight_of(processor: Any, own: Options, roots: Sequence[Path] = ()) -> Sight | None:
    """How this model sees; None for one that takes no images. Raises DataError for options that would have no effect."""
    if hasattr(processor, "image_processor"):
        return Sight(processor, own, tuple(roots))
    for key in ("multimodal_on_the_fly", "max_pixels", "norm_bbox"):
        if getattr(own, key) is not None:
            what = f"{key} is about images, and the model takes none"
            raise DataError(what, f"key {key}", "remove it, or give a vision-language model with its preprocessor_config.json")
    return None


def look(messages: Sequence[Message], sight: Sight | None, own: Options) -> tuple[Sequence[Message], list[Picture]]:
    """Messages as the template is to get them, and the images in them, in order. Boxes become text. Raises BadRow."""
    if all(not isinstance(message.get("content"), list) for message in messages):
        if sight is not None:
            _check_text(messages, sight)
        return messages, []
    pictures = []
    for message in messages:
        for value in [part["image"] for part in _parts(message) if part["type"] == "image"]:
            if sight is None:
                raise BadRow("an image, and the model takes none")
            if message["role"] not in ("user", "tool") or (message["role"] == "tool" and own.agent_template):
                raise BadRow(f"an image in a message of role {message['role']}")
            if not own.use_chat_template:
                raise BadRow("an image has no place without a chat template")
            pictures.append(sight.picture(value))
    sizes = [] if sight is None else [(picture.size, sight.resized(picture)) for picture in pictures]
    seen = [_shown(message, sizes, own.norm_bbox) for message in messages]
    if sight is not None:
        _check_text(seen, sight)
    return seen, pictures


def _parts(message: Message) -> list[Mapping[str, Any]]:
    content = message.get("content")
    return content if isinstance(content, list) else []


def _shown(message: Message, sizes: Sequence[tuple[Size, Size]], norm: str | None) -> Message:
    """The message with images as bare parts; as text where it has none."""
    if not isinstance(message.get("content"), list):
        return message
    shown: list[dict[str, Any]] = []
    for part in _parts(message):
        if part["type"] == "image":
            shown.append({"type": "image"})
            continue
        text = written(part, sizes, norm) if part["type"] == "bbox" else part["text"]
        if shown and shown[-1]["type"] == "text":
            shown[-1]["text"] += text
        else:
            shown.append({"type": "text", "text": text})
    if any(part["type"] == "image" for part in shown):
        return {**message, "content": shown}
    return {**message, "content": "".join(part["text"] for part in shown)}


def _check_text(messages: Sequence[Message], sight: Sight) -> None:
    """Text that would be taken for an image, or was meant as one."""
    for message in messages:
        content = message.get("content")
        texts = [content] if isinstance(content, str) else [part.get("text", "") for part in content or ()]
        if any(sight.token in text for text in texts):
            raise BadRow(f"a text with the image token {sight.token}")
        if message.get("role") == "user" and any(PLACEHOLDER in text for text in texts):
            raise BadRow(f"{PLACEHOLDER} in a text without an image for it")


class Watched:
    """A format whose samples have no image token that stands for no image: a text can have one by chance."""

    def __init__(self, form: Any, sight: Sight):
        self.form, self.sight = form, sight

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.form, name)
        if name != "encode_batch":
            return found
        return lambda rows: [each if isinstance(each, BadRow) else self._seen(each) for each in found(rows)]

    def encode(self, row: Mapping[str, Any]) -> Sequence[Sample]:
        found = self._seen(self.form.encode(row))
        if isinstance(found, BadRow):
            raise found
        return found

    def _seen(self, samples: Sequence[Sample]) -> Sequence[Sample] | BadRow:
        token = self.sight.processor.image_token_id
        for sample in samples:
            if not sample.images and token in sample.input_ids:
                return BadRow(f"a text with the image token {self.sight.token}")
        return samples
