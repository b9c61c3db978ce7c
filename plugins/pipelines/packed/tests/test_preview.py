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
    assert {title.partition(": ")[2] for title in page.titles[1:]} == {
        "nothing precedes the first token: masked",
        "template text, tools: masked",
        "user turn: masked",
        "assistant turn 1: trained (default)",
    }
    assert sum("nothing precedes" in title for title in page.titles) == 2
    assert page.asked == []


SAID = {"user": "What is it?", "system": "Be terse.", "tool": "22 degrees"}
TALK = [
    {"role": "system", "content": SAID["system"]},
    {"role": "user", "content": SAID["user"]},
    {"role": "assistant", "content": "<think>\n\n</think>\n\nI will look.", "loss": 0.5},
    {"role": "tool", "content": SAID["tool"]},
    {"role": "assistant", "content": "<think>\n\n</think>\n\nWarm, 22."},
    {"role": "user", "content": "Thanks?"},
    {"role": "assistant", "content": "Bye 22."},
]


def reasons(**options: Any) -> dict[str, list[str]]:
    """The text of each reason in the dump of one conversation, with what the weights say checked on the way."""
    Path("chat.jsonl").write_text(json.dumps({"messages": TALK}) + "\n")
    words = [word for key, value in options.items() for word in (f"--{key.replace('_', '-')}", value)]
    invoke("c.toml", "--dump", "all.jsonl", "--validation-split-ratio", "0", "--sequence-len", 512, *words)
    (record,) = [json.loads(line) for line in Path("all.jsonl").read_text().splitlines()]
    tokenizer = AutoTokenizer.from_pretrained("model")
    found: dict[str, list[str]] = {}
    at = 0
    for start, stop, why in record["reasons"]:
        assert start == at
        at = stop
        weights = set(record["weights"][start:stop])
        assert len(weights) == 1
        (weight,) = weights
        said = "masked" if not weight else "trained" if weight == 1 else f"trained, weight {weight:g}"
        assert why.split(": ", 1)[1].partition(" (")[0] == said
        found.setdefault(why, []).append(tokenizer.decode(record["input_ids"][start:stop]))
    assert at == len(record["input_ids"])
    return found


def test_each_reason_names_the_part_and_the_rule(config: Path) -> None:
    Path("weights.json").write_text('{"2+": 3}')
    found = reasons(loss_scale="default+ignore_empty_think+weights.json")
    assert found["user turn: masked"] == [SAID["user"], "Thanks?"]
    assert found["system message: masked"] == [SAID["system"]]
    assert found["tool result: masked"] == [SAID["tool"]]
    assert found["assistant turn 1: trained, weight 0.5 (loss of the message)"] == ["<think>\n\n</think>\n\nI will look.<|im_end|>"]
    assert found["assistant turn 2: masked (ignore_empty_think, x0)"] == ["<think>\n\n</think>\n\n"]
    assert found["assistant turn 2: trained (default)"] == ["Warm, ", ".<|im_end|>"]
    assert found["assistant turn 2: trained, weight 3 (loss_scale pattern 2+, x3)"] == ["22"]
    assert found["assistant turn 3: trained, weight 3 (loss_scale pattern 2+, x3)"] == ["22"]
    found = reasons(loss_scale="last_round")
    assert found["assistant turn 2: masked (last_round: an earlier turn)"] == ["<think>\n\n</think>\n\nWarm, 22."]
    assert found["assistant turn 3: trained (last_round)"] == ["Bye 22.<|im_end|>"]
    found = reasons(loss_scale="all")
    assert found["user turn: trained (all)"] == [SAID["user"], "Thanks?"]
    assert found["assistant turn 1: trained, weight 0.5 (loss of the message)"]
    found = reasons(use_chat_template="false", response_prefix="So: ")
    assert found["response_prefix: masked"] == ["So: "] * 3
    assert found["tool result: masked"] == [SAID["tool"]]
    shown = invoke("c.toml", "--preview", 1, "--validation-split-ratio", "0", "--sequence-len", 512).stdout
    assert "tokens 1 to 7: template text, tools: masked\n" in shown
    assert "assistant turn 3: trained (default)\n" in shown


def test_other_formats_name_their_rule_too(config: Path) -> None:
    Path("rows.jsonl").write_text(json.dumps({"text": "abc", "q": "Why?", "a": "So."}) + "\n")
    common = 'model = "model"\nsequence_len = 128\nvalidation_split_ratio = 0.0\n[[datasets]]\npath = "rows.jsonl"\n'
    Path("c.toml").write_text(common + 'type = "text"\n')
    assert "tokens 1 to 3: text document: trained\n" in invoke("c.toml", "--preview", 1).stdout
    form = 'prompt_format = "Q: {instruction} A:{output}"\n'
    Path("c.toml").write_text(common + 'type = "instruction"\ninstruction_field = "q"\noutput_field = "a"\n' + form)
    shown = invoke("c.toml", "--preview", 1).stdout
    assert "prompt_format before {output}: masked\n" in shown
    assert "{output} and what follows it: trained\n" in shown


@pytest.mark.parametrize("strategy", ["left", "right", "split"])
def test_reasons_follow_what_truncation_leaves(config: Path, strategy: str) -> None:
    invoke(config, "--dump", "all.jsonl", "--sequence-len", 48, "--truncation-strategy", strategy)
    for line in Path("all.jsonl").read_text().splitlines():
        record = json.loads(line)
        for start, stop, why in record["reasons"]:
            assert {weight > 0 for weight in record["weights"][start:stop]} == {": trained" in why}
