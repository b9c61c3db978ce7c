from __future__ import annotations

import json
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from surogate_model_transformers import batch_loss, blocks, check_head, list_sites, logits, read_config, save_model, skeleton
from surogate_model_transformers.source import Transformers
from surogate_model_transformers.testing import tiny_model, tiny_vision_model
from surogate_model_transformers.virtual import set_tokens
from surogate_model_transformers.vision import Processor, positions

from surogate_core.errors import ModelError

FAMILIES = ["qwen3_vl", "qwen2_5_vl", "qwen2_vl", "qwen3_vl_moe"]
START, END, IMAGE = 259, 260, 261
Document = list[int | tuple[int, int]]
"""Token ids, and (height, width) in patches of images among them."""


@pytest.fixture(scope="session")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Any, Path]]:
    """``seeing(family)`` → (transformers' model with eager attention, the directory it is saved in)."""
    made: dict[str, tuple[Any, Path]] = {}

    def make(family: str) -> tuple[Any, Path]:
        if family not in made:
            directory = tiny_vision_model(tmp_path_factory.mktemp(family), family)
            config = transformers.AutoConfig.from_pretrained(directory)
            torch.manual_seed(7)
            model = getattr(transformers, config.architectures[0])._from_config(config, dtype=torch.float32)
            with torch.no_grad():
                for parameter in model.parameters():  # far from where a wrong position would not be seen
                    parameter.add_(torch.randn_like(parameter) * (0.3 if parameter.ndim == 1 else 0.1))
            model.eval().save_pretrained(directory)
            model.set_attn_implementation("eager")
            made[family] = model, directory
        return made[family]

    return make


def tokens(document: Document) -> list[int]:
    found: list[int] = []
    for item in document:
        found += [START, *[IMAGE] * (item[0] * item[1] // 4), END] if isinstance(item, tuple) else [item]
    return found


def grids(document: Document) -> list[tuple[int, int, int]]:
    return [(1, *item) for item in document if isinstance(item, tuple)]


def packed(rows: list[list[Document]], length: int = 40) -> Any:
    """A batch of rows with these documents and a padding document at the end of each."""
    torch.manual_seed(3)
    shape = len(rows), length
    batch = types.SimpleNamespace(
        input_ids=torch.zeros(shape, dtype=torch.int64),
        labels=torch.full(shape, -100),
        weights=torch.zeros(shape),
        position_ids=torch.zeros(shape, dtype=torch.int64),
        document_ids=torch.zeros(shape, dtype=torch.int32),
        inputs={},
        pieces=[],
    )
    images: list[torch.Tensor] = []
    for row, documents in enumerate(rows):
        at = 0
        for number, document in enumerate(documents):
            ids = torch.tensor(tokens(document))
            here = slice(at, at + len(ids))
            batch.input_ids[row, here] = ids
            batch.position_ids[row, here] = torch.arange(len(ids))
            batch.document_ids[row, here] = number
            batch.labels[row, at : at + len(ids) - 1] = ids[1:]
            batch.weights[row, at : at + len(ids) - 1] = torch.rand(len(ids) - 1) * (ids[1:] < 256)
            pixels = [torch.randn(h * w, 96) for _, h, w in grids(document)]
            images += pixels
            batch.pieces.append((row, here, document, pixels))
            at += len(ids)
        batch.position_ids[row, at:] = torch.arange(length - at)
        batch.document_ids[row, at:] = len(documents)
    every = [grid for documents in rows for document in documents for grid in grids(document)]
    if every:
        batch.inputs = {"pixel_values": torch.cat(images), "image_grid_thw": torch.tensor(every)}
    return batch


def alone(model: Any, document: Document, pixels: list[torch.Tensor]) -> torch.Tensor:
    """transformers' own logits (n, V) of one document in a call of its own, which finds the positions itself."""
    ids = torch.tensor([tokens(document)])
    images = {"pixel_values": torch.cat(pixels), "image_grid_thw": torch.tensor(grids(document))} if pixels else {}
    with torch.no_grad():
        return model(input_ids=ids, mm_token_type_ids=(ids == IMAGE).int(), use_cache=False, **images).logits[0]


ROWS: list[list[Document]] = [
    [[5, (4, 2), 6, 7], [8, 9, 10], [(2, 6), 11, (4, 4), 12, 13]],
    [[20, 21, 22, 23, 24, 25], [26, (2, 2), 27]],
    [[30, 31, 32]],
]


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_documents_with_images_have_the_logits_that_they_have_alone(family: str, seeing: Any, load: Any) -> None:
    theirs, directory = seeing(family)
    batch = packed(ROWS)
    with torch.no_grad():
        got = logits(load(directory), batch)
    for row, at, document, pixels in batch.pieces:
        torch.testing.assert_close(got[row, at], alone(theirs, document, pixels), atol=1e-5, rtol=0)


def test_loss_is_that_of_transformers_logits(seeing: Any, load: Any) -> None:
    theirs, directory = seeing("qwen3_vl")
    ours, batch = load(directory), packed(ROWS)
    assert check_head(ours) is None
    expected = torch.zeros(())
    for row, at, document, pixels in batch.pieces:
        each = torch.nn.functional.cross_entropy(alone(theirs, document, pixels), batch.labels[row, at], reduction="none")
        expected += (each * batch.weights[row, at]).sum()
    torch.testing.assert_close(batch_loss(ours, batch).detach(), expected, atol=1e-4, rtol=1e-5)


def test_an_image_of_one_document_moves_no_other(seeing: Any, load: Any) -> None:
    _, directory = seeing("qwen3_vl")
    model, batch = load(directory), packed(ROWS)
    with torch.no_grad():
        before = logits(model, batch)
        batch.inputs["pixel_values"] = batch.inputs["pixel_values"].clone()
        batch.inputs["pixel_values"][:8] += 1  # the first image
        after = logits(model, batch)
    (row, at, _, _), *others = batch.pieces
    assert (before[row, at] - after[row, at]).abs().max() > 1e-3
    for row, at, _, _ in others:
        assert torch.equal(before[row, at], after[row, at])


def test_the_vision_tower_and_the_decoder_have_gradients(seeing: Any, load: Any) -> None:
    _, directory = seeing("qwen3_vl")
    model = load(directory).train()
    batch_loss(model, packed(ROWS)).backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.abs().sum()]
    assert not without


def test_blocks_are_the_decoders_where_the_vision_tower_has_as_many(seeing: Any, load: Any) -> None:
    _, directory = seeing("qwen3_vl")
    model = load(directory)
    assert len(model.model.visual.blocks) == len(model.model.language_model.layers)
    assert blocks(model)[0] == "model.language_model.layers"
    assert all(".language_model." in site.name for site in list_sites(model) if site.kind == "linear")


def test_images_without_tokens_and_tokens_without_images_are_refused(seeing: Any, load: Any) -> None:
    _, directory = seeing("qwen3_vl")
    model, batch = load(directory), packed(ROWS)
    given = batch.input_ids, batch.position_ids, batch.document_ids
    grid = batch.inputs["image_grid_thw"]
    with pytest.raises(ModelError, match="image tokens without an image"):
        positions(model, *given, grid[:-1])
    with pytest.raises(ModelError, match="images without image tokens"):
        positions(model, *given, torch.cat([grid, grid[:1]]))


def test_virtual_tokens_with_images_are_refused(seeing: Any, load: Any) -> None:
    _, directory = seeing("qwen3_vl")
    model, batch = load(directory), packed(ROWS)
    set_tokens(model, torch.nn.Module())
    with pytest.raises(ModelError, match="virtual tokens cannot be trained on images"):
        batch_loss(model, batch)


def test_rope_scaling_keeps_the_sections_of_the_rotary_positions(seeing: Any, core: Any) -> None:
    _, directory = seeing("qwen3_vl")
    rope = read_config(core(directory, rope_scaling="yarn", max_model_len=1024)).get_text_config().rope_parameters
    assert (rope["mrope_section"], rope["mrope_interleaved"]) == ([2, 1, 1], True)


def test_the_processor_is_saved_with_the_model_as_it_came(seeing: Any, load: Any, core: Any, tmp_path: Path) -> None:
    _, directory = seeing("qwen3_vl")
    processor = Transformers(core(directory)).tokenizer()
    assert isinstance(processor, Processor)
    assert (processor.image_token_id, processor.marker_ids) == (IMAGE, (START, END))
    save_model(load(directory), processor, tmp_path / "saved")
    name = "preprocessor_config.json"
    assert json.loads((tmp_path / "saved" / name).read_text()) == json.loads((directory / name).read_text())
    again = Transformers(core(tmp_path / "saved")).tokenizer()
    assert again.tokenizer.chat_template == processor.tokenizer.chat_template


@pytest.mark.parametrize("missing", ["preprocessor_config.json", "config.json"])
def test_without_the_files_about_images_there_is_a_tokenizer(missing: str, core: Any, tmp_path: Path) -> None:
    directory = tiny_vision_model(tmp_path / "model", weights=False)
    (directory / missing).unlink()
    assert not isinstance(Transformers(core(directory, from_scratch=True)).tokenizer(), Processor)


def test_a_text_model_has_a_tokenizer(core: Any, tmp_path: Path) -> None:
    directory = tiny_model(tmp_path / "model", weights=False)
    (directory / "preprocessor_config.json").write_text("{}")
    assert not isinstance(Transformers(core(directory, from_scratch=True)).tokenizer(), Processor)


def test_a_broken_processor_is_named(core: Any, tmp_path: Path) -> None:
    directory = tiny_vision_model(tmp_path / "model", weights=False)
    (directory / "preprocessor_config.json").write_text("{")
    with pytest.raises(ModelError, match="image processor cannot be loaded"):
        Transformers(core(directory, from_scratch=True)).tokenizer()


def test_a_skeleton_has_the_names_of_the_weights(seeing: Any, core: Any) -> None:
    theirs, directory = seeing("qwen3_vl")
    settings = core(directory)
    assert set(skeleton(read_config(settings), settings).state_dict()) == set(theirs.state_dict())


def test_positions_are_those_of_each_document_alone(seeing: Any) -> None:
    theirs, _ = seeing("qwen3_vl")
    batch = packed(ROWS)
    got = positions(theirs, batch.input_ids, batch.position_ids, batch.document_ids, batch.inputs["image_grid_thw"])
    for row, at, document, _ in batch.pieces:
        ids = torch.tensor([tokens(document)])
        grid = torch.tensor(grids(document)) if grids(document) else None
        alone_, _ = theirs.model.get_rope_index(ids, (ids == IMAGE).int(), image_grid_thw=grid)
        assert torch.equal(got[:, row, at], alone_[:, 0])
