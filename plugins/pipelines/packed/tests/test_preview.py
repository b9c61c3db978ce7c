"""What the preview and the dump say is trained is what the conversation's own text says."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from surogate_model_transformers.testing import byte_tokenizer
from surogate_pipeline_packed.commands.tokenize import tokenize
from transformers import AutoTokenizer

ANSWERS = ["It is <b>4</b> & more.", "Grüße, 世界 🙂"]


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SUROGATE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    byte_tokenizer(tmp_path / "model")
    rows = [
        {"messages": [{"role": "user", "content": f"Question {i}?"}, {"role": "assistant", "content": ANSWERS[i % 2]}]}
        for i in range(20)
    ]
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = tmp_path / "c.toml"
    file.write_text('model = "model"\nsequence_len = 128\n[[datasets]]\npath = "chat.jsonl"\ntype = "conversation"\n')
    return file


def invoke(*words: Any) -> Any:
    done = CliRunner().invoke(tokenize, [str(word) for word in words], catch_exceptions=False)
    assert done.exit_code == 0
    return done


def test_the_dump_holds_every_sample_and_the_answers_are_what_is_trained(config: Path) -> None:
    invoke(config, "--dump", "all.jsonl")
    tokenizer = AutoTokenizer.from_pretrained("model")
    records = [json.loads(line) for line in Path("all.jsonl").read_text().splitlines()]
    assert sorted(record["source"] for record in records) == sorted(f"chat.jsonl:{row}" for row in range(1, 21))
    assert {record["side"] for record in records} == {"training", "validation"}
    for record in records:
        row = int(record["source"].split(":")[1])
        trained = [token for token, weight in zip(record["input_ids"], record["weights"], strict=True) if weight]
        assert tokenizer.decode(trained) == ANSWERS[(row - 1) % 2] + "<|im_end|>"
        assert record["text"] == tokenizer.decode(record["input_ids"])
        assert record["text"].startswith(f"<|im_start|>user\nQuestion {row - 1}?<|im_end|>")


def test_the_terminal_marks_trained_text(config: Path) -> None:
    shown = invoke(config, "--preview", 3).stdout
    assert shown.count("--- chat.jsonl:") == 3
    assert "<|im_start|>assistant\n⟦" in shown
    assert any(f"⟦{answer}<|im_end|>⟧" in shown for answer in ANSWERS)
    Path("weights.json").write_text('{"It is": 0.5}')
    assert "⟦0.5: It is⟧" in invoke(config, "--preview", 20, "--loss-scale", "default+weights.json").stdout


class Tokens(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.inside: str | None = None
        self.trained, self.titles, self.masked = "", [""], ""
        self.asked: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.asked += [name for name in given if name in ("src", "href")]
        if tag == "span" and "title" in given:
            self.inside = given.get("class") or "masked"
            self.titles.append(given["title"] or "")

    def handle_endtag(self, tag: str) -> None:
        self.inside = None if tag == "span" else self.inside

    def handle_data(self, data: str) -> None:
        if self.inside == "t":
            self.trained += data
        elif self.inside == "masked":
            self.masked += data


def test_the_page_shows_the_same_and_asks_for_nothing(config: Path) -> None:
    invoke(config, "--preview", 2, "--html", "look.html", "--quiet")
    page = Tokens()
    page.feed(Path("look.html").read_text(encoding="utf-8"))
    answers = [answer for answer in page.trained.split("<|im_end|>") if answer]
    assert len(answers) == 2
    assert set(answers) <= set(ANSWERS)
    assert "user\nQuestion" in page.masked
    assert all("trained, weight 1" in title or "masked: " in title for title in page.titles[1:])
    assert sum("nothing precedes" in title for title in page.titles) == 2
    assert page.asked == []
