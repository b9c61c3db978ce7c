"""Images beside the tokens: kept, cut, cached, and given to the model in the order of the rows."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from surogate_pipeline_packed.commands.tokenize import tokenize
from surogate_pipeline_packed.images.sight import Picture
from surogate_pipeline_packed.images.source import Encoded
from surogate_pipeline_packed.images.testing import IMAGE, Eyes, asked, image, png, text
from surogate_pipeline_packed.part import arrays, join, part_of

from surogate_core.contracts import Sample
from surogate_core.errors import DataError
from surogate_core.testing import write_rows

COLOURS = ("red", "green", "blue", "white", "black", "yellow")


def rows_of(eyes: Eyes, count: int = 72) -> list[dict[str, Any]]:
    """Rows with no, one and two images; files and bytes in the row; each image with noise of its own."""
    random = np.random.default_rng(5)
    rows = []
    for i in range(count):
        names = [f"{i}-{j}.png" for j in range(i % 3)]
        for name in names:
            shape = (8 * int(random.integers(1, 4)), 8 * int(random.integers(1, 4)), 3)
            Image.fromarray(random.integers(0, 256, shape, dtype=np.uint8)).save(eyes.directory / name)
        rows.append(asked([*map(image, names), text(f"{i}?")], "x" * (i % 7 + 1)))
    return rows


def everything(data: Any, batch_size: int = 2) -> list[Any]:
    return list(data.training(batch_size, 1).all_rows())


@pytest.mark.parametrize("options", [{}, {"sample_packing": False}, {"padding_side": "left"}, {"padding_free": True}])
def test_each_row_has_its_images_in_order(options: dict[str, Any], eyes: Eyes) -> None:
    data = eyes.prepare(rows_of(eyes), **options)
    processor = eyes.processor.image_processor
    corpus, seen = data.prepared.train, 0
    batches = data.training(2, 1)
    for index in range(batches.steps(1)):
        step = batches.step(index, 1)
        (batch,) = step.batches
        files = [int(source.partition(":")[2]) - 1 for source in step.sources]
        names = [f"{i}-{j}.png" for i in files for j in range(i % 3)]
        if not names:
            assert not batch.inputs
            continue
        expected = processor(images=[Image.open(eyes.directory / name) for name in names], return_tensors="pt")
        assert np.array_equal(batch.inputs["pixel_values"], expected["pixel_values"])
        assert np.array_equal(batch.inputs["image_grid_thw"], expected["image_grid_thw"])
        assert int((batch.input_ids == IMAGE).sum()) == int(expected["image_grid_thw"].prod(-1).sum()) // 4
        seen += len(names)
    assert seen == 72 == data.ledger["images"]["kept"]  # in two shards
    assert corpus.images is not None


def test_ahead_and_on_the_fly_give_equal_batches_with_any_number_of_workers(eyes: Eyes) -> None:
    rows = rows_of(eyes)
    fly = eyes.prepare(rows, multimodal_on_the_fly=True, dataloader_num_workers=0)
    ahead = eyes.prepare(rows, multimodal_on_the_fly=False, dataloader_num_workers=2)
    assert fly.fingerprint == ahead.fingerprint
    for one, other in zip(everything(fly), everything(ahead), strict=True):
        for field in attrs.fields_dict(type(one)):
            if field != "inputs":
                assert np.array_equal(getattr(one, field), getattr(other, field))
        assert one.inputs.keys() == other.inputs.keys()
        assert all(np.array_equal(one.inputs[name], other.inputs[name]) for name in one.inputs)


@pytest.mark.parametrize("ahead", [True, False])
def test_parts_that_are_joined_are_the_part_of_all_rows(ahead: bool) -> None:
    def picture(i: int) -> Picture:
        kept = np.full((4, 6), i, dtype=np.float32) if ahead else None
        path = "" if i % 2 else f"/images/{i}"
        return Picture(Encoded(bytes([i] * i), path, i, i), (1, 2, 2), (8, 8), kept, start=1, stop=4)

    rows = []
    for i in range(1, 9):
        sample = Sample(input_ids=[5, IMAGE, 6, 7, 8], weights=[0, 0, 0, 1, 1], images=(picture(i),) if i % 3 else ())
        rows.append((0, i, [sample, sample]))
    whole = part_of(rows)
    assert len(whole.images) == 12
    for cut in (1, 3, 7):
        joined = join([part_of(rows[:cut]), part_of(rows[cut:])])
        for name, column in arrays(whole).items():
            assert np.array_equal(column, arrays(joined)[name])


def test_ahead_needs_no_image_file_in_training(eyes: Eyes) -> None:
    rows = rows_of(eyes)
    ahead = eyes.prepare(rows, multimodal_on_the_fly=False)
    expected = everything(ahead)
    for path in eyes.directory.glob("*.png"):
        path.unlink()
    for one, other in zip(everything(ahead), expected, strict=True):
        assert all(np.array_equal(one.inputs[name], other.inputs[name]) for name in other.inputs)


def test_images_in_rows_are_kept_with_the_tokens(eyes: Eyes) -> None:
    import base64

    rows = [asked([image("data:image/png;base64," + base64.b64encode(png(8 * n, 8, colour)).decode()), text("?")])
            for n, colour in enumerate(COLOURS, 1)]  # fmt: skip
    first, again = eyes.prepare(rows), eyes.prepare(rows)
    assert "cache hit" in "\n".join(eyes.said)
    for one, other in zip(everything(first), everything(again), strict=True):
        assert np.array_equal(one.inputs["pixel_values"], other.inputs["pixel_values"])


def test_tokenize_counts_images_and_shows_their_tokens(eyes: Eyes) -> None:
    (eyes.directory / "a.png").write_bytes(png(16, 8))
    rows = write_rows(eyes.directory / "rows.jsonl", [asked([image("a.png"), text("?")])])
    config = eyes.directory / "config.toml"
    place = {
        "model": str(eyes.model),
        "from_scratch": True,
        "lora": False,
        "cache_dir": str(eyes.directory / "cache"),
        "sequence_len": 64,
    }
    config.write_text(
        "".join(f"{key} = {json.dumps(value)}\n" for key, value in place.items())
        + f'[[datasets]]\npath = "{rows}"\ntype = "conversation"\n'
    )
    dump = eyes.directory / "dump.jsonl"
    arguments = [str(config), "--dump", str(dump)]
    result = CliRunner().invoke(tokenize, arguments)
    assert result.exit_code == 0, result.output
    assert "images: 1 read = 1 kept" in result.output
    assert "<|vision_start|><|image_pad|><|image_pad|><|vision_end|>?" in json.loads(dump.read_text())["text"]


# ---------------------------------------------------------------- what changes
def test_an_image_that_changes_after_it_was_tokenised_stops_the_run(eyes: Eyes) -> None:
    (eyes.directory / "a.png").write_bytes(png(16, 8, "red"))
    data = eyes.prepare([asked([image("a.png"), text("?")])])
    everything(data)
    for content, what in ((png(16, 8, "blue"), "an image has changed"), (None, "an image can no longer be read")):
        (eyes.directory / "a.png").unlink()
        if content:
            (eyes.directory / "a.png").write_bytes(content)
        with pytest.raises(DataError, match=what) as caught:
            everything(data)
        assert str(eyes.directory / "a.png") in str(caught.value)


@pytest.mark.parametrize("way", [True, False])
def test_a_changed_image_file_is_tokenised_again_and_an_unchanged_one_is_not(way: bool, eyes: Eyes) -> None:
    def prepare() -> Any:
        return eyes.prepare(rows, multimodal_on_the_fly=way)

    path = eyes.directory / "a.png"
    path.write_bytes(png(16, 8, "red"))
    rows = [asked([image("a.png"), text("?")])]
    first = prepare()
    assert prepare().fingerprint == first.fingerprint
    assert "cache hit" in "\n".join(eyes.said)
    path.write_bytes(png(16, 8, "lime"))  # of the same size, to the byte
    os.utime(path, ns=(1, 1))
    second = prepare()
    assert "cache hit" not in "\n".join(eyes.said)
    assert second.fingerprint != first.fingerprint
    expected = eyes.processor.image_processor(images=[Image.open(path)], return_tensors="np")["pixel_values"]
    assert np.array_equal(everything(second)[0].inputs["pixel_values"], expected)
    path.write_bytes(png(32, 32, "lime"))
    assert prepare().prepared.train.tokens[:].tolist().count(IMAGE) == 16
    path.unlink()
    assert dict(eyes.prepare([*rows, asked("?")]).ledger["rows"]["dropped"]) == {"missing image file": 1}


def test_the_key_covers_the_processor_and_the_options_about_images(eyes: Eyes, tmp_path: Path) -> None:
    (eyes.directory / "a.png").write_bytes(png(16, 8))
    rows = [asked([image("a.png"), text("?")]), asked("?")]

    def hit(**options: Any) -> bool:
        eyes.prepare(rows, **options)
        return "cache hit" in "\n".join(eyes.said)

    assert (hit(), hit()) == (False, True)
    for options in ({"max_pixels": 64}, {"norm_bbox": "none"}, {"multimodal_on_the_fly": False}):
        assert (hit(**options), hit(**options)) == (False, True)
    changed = tmp_path / "preprocessor_config.json"
    changed.write_text(eyes.processor.files[0].read_text().replace("0.5", "0.4"))
    processor = attrs.evolve(eyes.processor, files=(changed,))
    assert not hit(processor=processor)
    assert not hit(processor=eyes.processor.tokenizer)
    assert hit()


def test_the_fingerprint_covers_the_images(eyes: Eyes) -> None:
    found = set()
    for colour in ("red", "blue"):
        (eyes.directory / f"{colour}.png").write_bytes(png(16, 8, colour))
        found.add(eyes.prepare([asked([image(f"{colour}.png"), text("?")])]).fingerprint)
    assert len(found) == 2


# ---------------------------------------------------------------- cuts
def long_row(eyes: Eyes, before: int, size: int, after: int, answer: int = 6) -> list[dict[str, Any]]:
    """A row with ``before`` letters, an image of 4 or 16 tokens (2 markers), ``after`` letters, and an answer."""
    (eyes.directory / "a.png").write_bytes(png(8 * size, 8 * size))
    return [asked([text("b" * before), image("a.png"), text("a" * after)], "z" * answer)]


@pytest.mark.parametrize("how", ["left", "right", "split"])
def test_no_image_is_ever_cut(how: str, eyes: Eyes) -> None:
    """The cut moves over the image, token by token: what precedes and what follows it grows from row to row."""
    (eyes.directory / "a.png").write_bytes(png(24, 24))
    rows = []
    for shift in range(45):
        first, second = asked("b" * shift, "yes"), asked([image("a.png"), text("a" * shift)], "no")
        rows.append({"messages": first["messages"] + second["messages"]})
    data = eyes.prepare(rows, max_length=48, truncation_strategy=how)
    corpus, ledger = data.prepared.train, data.prepared.ledger
    assert ledger.balanced()
    assert ledger.images["read"] == 45
    if how != "split":
        assert 0 < ledger.images["dropped"] < 45
    kept = 0
    for start, stop, _ in corpus.pieces.tolist():
        piece = corpus.tokens[start:stop]
        assert 0 < stop - start <= 48
        found = int((piece == IMAGE).sum())
        assert found in (0, 9)
        assert (piece == 259).sum() == (piece == 260).sum() == found / 9
        kept += found // 9
    assert ledger.images["kept"] == kept == sum(len(batch.inputs.get("image_grid_thw", ())) for batch in everything(data))
    if how == "split":
        assert sum(float(batch.weights.sum()) for batch in everything(data)) == 45 * (4 + 3)


def test_what_becomes_of_an_image_over_the_limit(eyes: Eyes) -> None:
    rows = [*long_row(eyes, 5, 8, 10), asked("?")]  # an image of 64 tokens and 2 markers

    def ledger(how: str) -> tuple[dict[str, int], int, dict[str, int]]:
        found = eyes.prepare(rows, max_length=40, truncation_strategy=how, max_pixels=4096)
        assert found.prepared.ledger.balanced()
        return {**found.ledger["rows"]["dropped"]}, found.ledger["rows"]["truncated"], found.ledger["images"]

    lost = {"read": 1, "kept": 0, "dropped": 1}
    assert ledger("delete") == ({"longer than max_length": 1}, 0, lost)
    assert ledger("left") == ({}, 1, lost)  # what follows the image is left
    assert ledger("right") == ({"no trained token left by truncation": 1}, 0, lost)
    assert ledger("split") == ({"an image longer than max_length": 1}, 0, lost)
    assert any("images: 1 read = 0 kept + 1 dropped with their text" in line for line in eyes.said)


def test_a_split_goes_around_images_and_trains_every_answer(eyes: Eyes) -> None:
    (eyes.directory / "a.png").write_bytes(png(16, 16))
    turns = [message for _ in range(6) for message in asked([image("a.png"), text("What?")], "It is.")["messages"]]
    data = eyes.prepare([{"messages": turns}], max_length=50, truncation_strategy="split")
    corpus = data.prepared.train
    assert len(corpus) > 4
    assert data.ledger["images"] == {"read": 6, "kept": 6, "dropped": 0}
    assert sum(float(batch.weights.sum()) for batch in everything(data)) == 6 * 7
    assert all((corpus.tokens[a:b] == IMAGE).sum() % 4 == 0 for a, b, _ in corpus.pieces.tolist())
