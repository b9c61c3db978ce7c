"""Images as rows name them."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from surogate_pipeline_packed.images.source import pixels, read
from surogate_pipeline_packed.images.testing import Eyes, asked, image, png, text
from transformers.image_utils import load_image

DATA = png(16, 8)


@pytest.mark.parametrize(
    "value",
    [
        "a b.png",
        "./a b.png",
        "{here}/a b.png",
        "file://{here}/a%20b.png",
        {"path": "a b.png"},
        {"bytes": None, "path": "a b.png"},
        {"bytes": DATA, "path": "elsewhere.png"},
        {"url": "data:image/png;base64," + base64.b64encode(DATA).decode()},
        "data:image/png;base64," + base64.b64encode(DATA).decode(),
        DATA,
        bytearray(DATA),
    ],
    ids=lambda value: str(value)[:24],
)
def test_every_way_to_give_an_image(value: Any, tmp_path: Path) -> None:
    (tmp_path / "a b.png").write_bytes(DATA)
    value = value.replace("{here}", str(tmp_path)) if isinstance(value, str) else value
    assert read(value, [tmp_path / "nowhere", tmp_path]).data == DATA


def test_a_pil_image_loses_nothing() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (7, 5, 3), dtype=np.uint8))
    assert np.array_equal(pixels(read(noise, []).data), noise)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "1", "CMYK"])
def test_pixels_are_those_of_transformers(mode: str, tmp_path: Path) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (7, 5, 3), dtype=np.uint8)).convert(mode)
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    noise.save(path, exif=exif)
    ours, theirs = pixels(path.read_bytes()), load_image(str(path))
    assert (ours.size, ours.mode) == ((7, 5), "RGB")
    assert np.array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("gone.png", "missing image file"),
        ("rows.jsonl/a.png", "missing image file"),
        (".", "an image file that cannot be read"),
        ("x" * 5000, "an image file that cannot be read"),
        ("a\0b", "an image file that cannot be read"),
        ("https://host/a.png", "an image on the network"),
        ("s3://bucket/a.png", "an image at an address s3://"),
        ("data:image/png,abc", "not base64"),
        ("data:image/png;base64,?", "not base64"),
        ("broken.png", "broken image"),
        ("cut.png", "broken image"),
        ("text.png", "broken image"),
        ("long.png", "an image that the image processor refuses"),
        ({"bytes": None, "path": None}, "an image without content"),
        (7, "an image that is int"),
        ([1], "an image that is list"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_a_bad_image_is_a_bad_row(value: Any, reason: str, eyes: Eyes) -> None:
    (eyes.directory / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(eyes.directory / "whole.png")
    (eyes.directory / "cut.png").write_bytes((eyes.directory / "whole.png").read_bytes()[:700])
    (eyes.directory / "text.png").write_text("a text")
    (eyes.directory / "long.png").write_bytes(png(900, 2))
    data = eyes.prepare([asked([image(value), text("?")]), asked("a row of text")])
    (found,) = data.ledger["rows"]["dropped"]
    assert found.startswith(reason) or found.endswith(reason)
    assert data.ledger["bad"] == [f"rows.jsonl:1: {found}"]
    assert data.prepared.ledger.balanced()


def test_images_of_a_parquet_file_and_of_a_saved_data_set(eyes: Eyes) -> None:
    import datasets

    features = datasets.Features(
        {"messages": datasets.List({"role": datasets.Value("string"), "content": datasets.Value("string")})}
    )
    for column, kind in (("images", datasets.List(datasets.Image())), ("images", datasets.Image())):
        one = {"bytes": DATA, "path": None}
        row = {**asked("<image>Which?"), column: [one] if isinstance(kind, datasets.List) else one}
        broken = {
            **row,
            column: [{"bytes": b"no", "path": None}] if isinstance(kind, datasets.List) else {"bytes": b"no", "path": None},
        }
        made = datasets.Dataset.from_list([row, broken], features=datasets.Features({**features, column: kind}))
        made.to_parquet(eyes.directory / "rows.parquet")
        made.save_to_disk(eyes.directory / f"saved{column}{type(kind).__name__}")
        expected = eyes.ids([asked("<image>Which?", images=["data:image/png;base64," + base64.b64encode(DATA).decode()])])
        for path in (eyes.directory / "rows.parquet", eyes.directory / f"saved{column}{type(kind).__name__}"):
            data = eyes.prepare(path)
            assert dict(data.ledger["rows"]["dropped"]) == {"broken image": 1}
            assert data.ledger["images"] == {"read": 1, "kept": 1, "dropped": 0}
            assert data.prepared.train.tokens[:].tolist() == expected[0]


def test_without_pillow_the_package_to_install_is_named(eyes: Eyes, monkeypatch: pytest.MonkeyPatch) -> None:
    import builtins

    from surogate_core.errors import DataError

    real = builtins.__import__

    def missing(name: str, *args: Any, **more: Any) -> Any:
        if name == "PIL":
            raise ImportError(name)
        return real(name, *args, **more)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(DataError, match="images need Pillow") as caught:
        pixels(DATA)
    assert "surogate-pipeline-packed[images]" in str(caught.value)


def test_relative_paths_start_from_the_data_then_from_the_working_directory(eyes: Eyes, monkeypatch: pytest.MonkeyPatch) -> None:
    work = eyes.directory / "work"
    work.mkdir()
    (work / "a.png").write_bytes(png(8, 8))
    monkeypatch.chdir(work)
    rows = [asked([image("a.png"), text("?")])]
    assert eyes.ids(rows)[0].count(261) == 1
    (eyes.directory / "a.png").write_bytes(png(16, 16))
    (work / "a.png").write_bytes(png(8, 8, "blue"))
    assert eyes.ids(rows)[0].count(261) == 4
    (eyes.directory / "a.png").unlink()
    other = eyes.directory / "other"
    other.mkdir()
    (other / "a.png").write_bytes(png(24, 8))
    eyes.ids(rows)
    monkeypatch.chdir(other)  # what was kept from the other directory is not taken for this one
    assert eyes.ids(rows)[0].count(261) == 3
