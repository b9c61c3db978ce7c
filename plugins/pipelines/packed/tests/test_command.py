"""`surogate tokenizer train`."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from click.testing import CliRunner
from surogate_pipeline_packed.command import tokenizer as command
from surogate_pipeline_packed.plugin import register_commands
from transformers import AutoTokenizer

from surogate_core.errors import DataError

TEXT = "The cat sat on the mat. The dog sat on the log, 12 times. " * 30


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    (tmp_path / "many").mkdir()
    for i in range(3):
        (tmp_path / "many" / f"{i}.txt").write_text(f"{TEXT} wombat {i}")
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps({"text": f"platypus {i}"}) for i in range(20)))
    (tmp_path / "one.txt").write_text(TEXT)
    return [str(tmp_path / name) for name in ("many", "rows.jsonl", "one.txt")]


def train(*arguments: str) -> str:
    result = CliRunner().invoke(command, ["train", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_trained_tokenizer_loads_and_round_trips(files: list[str], tmp_path: Path) -> None:
    assert register_commands()[0].load() is command
    said = train(*files, "--output", str(tmp_path / "out"), "--vocab-size", "320")
    made = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert len(made) <= 320
    assert f"{len(made)} tokens, from 24 documents" in said
    assert (made.bos_token, made.eos_token, made.pad_token) == ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
    assert sorted(made.get_vocab().values()) == list(range(len(made)))
    draw = random.Random(0)
    texts = ["", " ", "a  b\r\n\tc", "\u2028\x00é😀 中文", "".join(chr(draw.randrange(0x20, 0xD7FF)) for _ in range(2000))]
    for text in texts:
        assert made.decode(made(text)["input_ids"]) == text
    assert len(made("the cat sat")["input_ids"]) < 9  # something was learnt
    assert made.tokenize("12 platypus")[:2] == ["1", "2"]


def test_chat_template_is_there(files: list[str], tmp_path: Path) -> None:
    train(*files, "--output", str(tmp_path / "out"), "--vocab-size", "300")
    made = AutoTokenizer.from_pretrained(tmp_path / "out")
    text = made.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True)
    assert text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    ids = made.apply_chat_template([{"role": "user", "content": "hi"}], return_dict=True)["input_ids"]
    assert ids[0] == made.bos_token_id
    assert made.eos_token_id in ids


def test_training_twice_gives_the_same(files: list[str], tmp_path: Path) -> None:
    for name in ("a", "b"):
        train(*files, "--output", str(tmp_path / name), "--vocab-size", "310")
    assert (tmp_path / "a/tokenizer.json").read_bytes() == (tmp_path / "b/tokenizer.json").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (("--vocab-size", "200"), "vocabulary of 200: at least 259"),
        (("--template", "nothing"), "no chat template has this name"),
        (("--text-field", "body"), "a row has no text in 'body'"),
        (("missing.txt",), "no such file"),
        (("{tmp}/bad.jsonl",), "bad.jsonl:1|not JSON"),
    ],
)
def test_errors(files: list[str], tmp_path: Path, arguments: tuple[str, ...], what: str) -> None:
    (tmp_path / "bad.jsonl").write_text("{")
    filled = [argument.format(tmp=tmp_path) for argument in arguments]
    with pytest.raises(DataError, match=what):
        train(*files, "--output", str(tmp_path / "out"), *filled)
    assert not (tmp_path / "out").exists()


def test_nothing_is_overwritten_and_empty_text_is_refused(files: list[str], tmp_path: Path) -> None:
    train(*files, "--output", str(tmp_path / "out"), "--vocab-size", "300")
    with pytest.raises(DataError, match="holds a tokenizer already"):
        train(*files, "--output", str(tmp_path / "out"))
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(DataError, match="no text to train on"):
        train(str(tmp_path / "empty.txt"), "--output", str(tmp_path / "other"))
