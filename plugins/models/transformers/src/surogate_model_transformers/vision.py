"""Models that take images: their processor, and the positions of packed documents with images in them.

The image processor is the PIL one: torchvision, which the others need, does not load beside a CPU torch. transformers' own
processor classes also want a video processor, which needs torchvision; so a processor here is a record of what is used.

Supported are families that cut an image into a grid of patches (``pixel_values`` with ``image_grid_thw``) and have one token for
each merged patch, as the Qwen-VL families do. Their rotary positions (mRoPE, arXiv 2409.12191, section 2.1) are counted by the
model's own ``get_rope_index``, document by document, so that a document has the positions that it has alone.
"""

from __future__ import annotations

import inspect
import shutil
from pathlib import Path
from typing import Any

from attrs import frozen
from torch import Tensor

from surogate_core.errors import ModelError
from surogate_model_transformers.config import fetch, first_line, load_tokenizer, read_config
from surogate_model_transformers.packed import documents
from surogate_model_transformers.plugin import Settings

FILE = "preprocessor_config.json"
FILES = (FILE, "video_preprocessor_config.json", "processor_config.json")
"""What a processor of transformers is made from, beside the tokenizer's files."""
GRID, PIXELS = "image_grid_thw", "pixel_values"
MARKERS = ("vision_start_token_id", "vision_end_token_id", "image_start_token_id", "image_end_token_id")


@frozen
class Processor:
    """What turns images into inputs of a model, beside its tokenizer. ``files`` are copied where a model is saved, as they are."""

    tokenizer: Any
    image_processor: Any
    image_token_id: int
    marker_ids: tuple[int, ...]
    files: tuple[Path, ...]

    def save_pretrained(self, directory: str | Path) -> None:
        """Write the tokenizer with its chat template, and the files of transformers' processor."""
        self.tokenizer.save_pretrained(directory)
        for path in self.files:
            if not Path(directory, path.name).exists():
                shutil.copyfile(path, Path(directory, path.name))


def has_vision(hf_config: Any) -> bool:
    """Whether the model has a vision tower."""
    return getattr(hf_config, "vision_config", None) is not None


def load_processor(settings: Settings, tokenizer: str | Path | None = None) -> Processor | None:
    """The processor of ``model``; None where it takes no images, or none that are supported: then it can be trained on text. Its
    tokenizer is that of the directory ``tokenizer``, if one is given.

    Raises ModelError when the files of the processor cannot be used."""
    directory = fetch(settings)
    if not (directory / FILE).is_file() or not (directory / "config.json").is_file():
        return None
    hf_config = read_config(settings)
    token = getattr(hf_config, "image_token_id", None)
    if not has_vision(hf_config) or token is None:
        return None
    from transformers import AutoImageProcessor

    where = f"{settings.core.model}, {FILE}"
    try:
        made = AutoImageProcessor.from_pretrained(directory, backend="pil")
    except ImportError as error:
        raise ModelError(f"images need a package: {first_line(error)}", where, "pip install pillow") from error
    except Exception as error:  # its classes validate in their own ways
        raise ModelError(f"the image processor cannot be loaded: {first_line(error)}", where) from error
    if GRID not in made.model_input_names or not getattr(made, "merge_size", None):
        return None
    markers = tuple(found for name in MARKERS if (found := getattr(hf_config, name, None)) is not None)
    files = tuple(directory / name for name in FILES if (directory / name).is_file())
    return Processor(load_tokenizer(settings, tokenizer), made, token, markers, files)


def decoder_name(model: Any) -> str:
    """Where the decoder is in a model with a vision tower, "" for the whole model."""
    if not has_vision(model.config):
        return ""
    decoder = model.get_decoder()
    return next((name for name, module in model.named_modules() if module is decoder), "")


def model_inputs(model: Any, batch: Any) -> dict[str, Tensor]:
    """Positions and further inputs of a batch: (B, S) without images, (3, B, S) with them."""
    given = getattr(batch, "inputs", None) or {}
    if GRID not in given:
        return {"position_ids": batch.position_ids}
    return {**given, "position_ids": positions(model, batch.input_ids, batch.position_ids, batch.document_ids, given[GRID])}


def positions(model: Any, input_ids: Tensor, position_ids: Tensor, document_ids: Tensor, grid: Tensor) -> Tensor:
    """(3, B, S) time, height and width of each token in its document. ``grid`` (I, 3): the patches of the batch's images, in order.

    Raises ModelError when tokens and images do not agree.
    """
    base = getattr(model, model.base_model_prefix)
    known = inspect.signature(base.get_rope_index).parameters
    merged = model.config.vision_config.spatial_merge_size**2
    counts = (grid.prod(-1) // merged).tolist()
    seen = input_ids == model.config.image_token_id
    placed = position_ids.expand(3, *position_ids.shape).clone()
    first = 0
    for row, piece in documents(document_ids):
        left, after = int(seen[row, piece].sum()), first
        while left > 0 and after < len(counts):
            left -= counts[after]
            after += 1
        if left:
            raise ModelError("a document has image tokens without an image", "model input")
        if after > first:
            given = {"mm_token_type_ids": seen[row, piece][None].int(), GRID: grid[first:after]}
            given = {name: value for name, value in given.items() if name in known}
            placed[:, row, piece] = base.get_rope_index(input_ids[row, piece][None], **given)[0][:, 0]
        first = after
    if first != len(counts):
        raise ModelError("a batch has images without image tokens", "model input")
    return placed
