"""What makes another key, and what does not: a changed template, tokenizer, option or file never reuses a shard."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import attrs
import pytest
from surogate_pipeline_packed import keys, tokenise
from surogate_pipeline_packed.plugin import Options
from transformers import AutoTokenizer

from surogate_core.errors import DataError


@pytest.mark.parametrize("strategy", ["delete", "split", "left"])
def test_what_comes_from_the_cache_is_what_was_encoded(place: Any, strategy: str) -> None:
    place.fill(300, bad=20)
    settings = {"sequence_len": 64, "truncation_strategy": strategy}
    plain = place.prepare(cached=False, **settings)
    first = place.prepare(**settings)
    assert "cache miss (these data were never tokenised)" in place.said
    again = place.prepare(**settings)
    assert "cache hit: 320 rows" in place.said
    assert len(place.shards()) > 1
    place.same(plain, first)
    place.same(first, again)


def test_a_hit_encodes_nothing(place: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    place.fill(100)
    place.prepare()
    monkeypatch.setattr(tokenise, "encode_rows", lambda *_: pytest.fail("encoded again"))
    place.prepare(max_length=100, truncation_strategy="right", sample_packing=False, validation_split_ratio=0.5, max_bad_rows=0.1)
    assert "cache hit" in place.said


def test_errors_are_the_same_from_the_cache(place: Any) -> None:
    place.fill(90, bad=12)
    texts = []
    for cached in (False, True, True):
        with pytest.raises(DataError, match=r"12 of 102 rows cannot be used, more than max_bad_rows = 0.1") as caught:
            place.prepare(cached=cached, max_bad_rows=0.1)
        texts.append(str(caught.value))
    assert "cache hit" in place.said
    assert texts[0] == texts[1] == texts[2]
    place.fill(5)
    for cached in (False, True, True):
        with pytest.raises(DataError, match="no sample is left to train on"):
            place.prepare(cached=cached, max_length=2)


FORMAT = {
    "input_field": "i",
    "output_field": "q",
    "system_prompt_type": "fixed",
    "prompt_format": "{instruction}!",
    "prompt_format_no_input": "{instruction}?",
}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"system": "Be brief."}, "system"),
        ({"loss_scale": "all"}, "loss_scale"),
        ({"template": "qwen"}, "template"),
        ({"sequence_len": 128}, "sequence_len"),
        ({"samples": 50}, "samples"),
        ({"split": "test"}, "split"),
        ({"system_prompt_type": "fixed", "system_prompt": "Hm."}, "system_prompt"),
        *(({name: value, "system_prompt": "S"}, name) for name, value in FORMAT.items()),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_each_option_that_changes_tokens_makes_another_key(place: Any, change: dict[str, Any], named: str) -> None:
    place.fill(80)
    place.prepare()
    before = {path.parent for path in place.shards()}
    made = place.prepare(**change)
    assert named in place.said.partition("cache miss (changed: ")[2].partition(")")[0].split(", ")
    assert len({path.parent for path in place.shards()} - before) == 1
    place.same(made, place.prepare(cached=False, **change))
    place.prepare()
    assert "cache hit" in place.said


def test_the_content_of_a_file_of_weights_is_a_part_of_the_key(tmp_path: Path) -> None:
    weights = tmp_path / "w.json"
    found = []
    for text in ('{"a": 2}', '{"a": 3}'):
        weights.write_text(text)
        found += [keys.plain(str(weights)), keys.plain(f"last_round+{weights}")]
    assert len(set(found)) == 4


def test_every_option_is_a_part_of_the_key_or_comes_after_encoding() -> None:
    """An option that is added and not listed makes a key of its own: a miss too many, never a wrong hit."""
    names = {item.name for item in attrs.fields(Options)}
    assert names > keys.LATER
    fixed = {"system", "loss_scale"}
    assert names - keys.LATER >= fixed


def test_the_seed_counts_only_where_rows_are_drawn(place: Any) -> None:
    place.fill(80)
    place.prepare()
    place.prepare(train_seed=7)
    assert "cache hit" in place.said
    one = place.prepare(samples=40)
    other = place.prepare(samples=40, train_seed=7)
    assert "changed: seed" in place.said
    assert one.fingerprint != other.fingerprint


@pytest.mark.parametrize("restore", [False, True])
def test_changed_data_are_another_key_even_with_the_old_time(place: Any, restore: bool) -> None:
    place.fill(80)
    old = time.time() - 3600
    os.utime(place.file, (old, old))
    first = place.prepare()
    place.file.write_text(place.file.read_text().replace("What is 7?", "What is 8?"))
    if restore:
        os.utime(place.file, (old, old))
    second = place.prepare()
    assert "changed: data" in place.said
    assert first.fingerprint != second.fingerprint


def test_digests_of_files_are_remembered_and_never_trusted_too_early(tmp_path: Path) -> None:
    file, memory = tmp_path / "f", tmp_path / "memory"
    file.write_bytes(b"one")
    first = keys.of_file(file, memory)
    assert not memory.exists(), "changed a moment ago: the next change could leave no trace in the times"
    time.sleep(2.1)
    assert keys.of_file(file, memory) == first
    (note,) = memory.iterdir()
    content = json.loads(note.read_bytes())
    note.write_text(json.dumps(content | {"digest": "kept"}))
    assert keys.of_file(file, memory) == "kept"
    file.write_bytes(b"two")
    assert keys.of_file(file, memory) not in ("kept", first)


def test_tokenizer_and_template_text_are_parts(place: Any) -> None:
    place.fill(80)
    place.prepare()
    changed = AutoTokenizer.from_pretrained(place.tokenizer)
    changed.add_tokens(["What"])
    place.prepare(changed)
    assert "changed: tokenizer" in place.said
    changed = AutoTokenizer.from_pretrained(place.tokenizer)
    changed.chat_template += "\n"
    place.prepare(changed)
    assert "changed: template" in place.said
    place.prepare(AutoTokenizer.from_pretrained(place.tokenizer))
    assert "cache hit" in place.said


def test_a_template_that_asks_for_the_day_is_made_again_every_day(place: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    place.fill(80)
    for day, wanted in (("2026-01-01", "never"), ("2026-01-01", "cache hit"), ("2026-01-02", "changed: template")):
        monkeypatch.setattr(keys.time, "strftime", lambda _, day=day: day)
        tokenizer = AutoTokenizer.from_pretrained(place.tokenizer)
        tokenizer.chat_template = "{% if false %}{{ strftime_now('%Y') }}{% endif %}" + tokenizer.chat_template
        place.prepare(tokenizer)
        assert wanted in place.said


def test_code_is_a_part(place: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    place.fill(80)
    place.prepare()
    sources, version = keys._sources, keys.metadata.version
    monkeypatch.setattr(keys, "_sources", lambda package: "edited" if "dataset" in package else sources(package))
    place.prepare()
    assert "changed: format instruction" in place.said
    monkeypatch.setattr(keys, "_sources", sources)
    monkeypatch.setattr(keys.metadata, "version", lambda name: "9" if name == "tokenizers" else version(name))
    place.prepare()
    assert "changed: tokenizers" in place.said


def test_files_that_options_name_count_with_their_content(tmp_path: Path) -> None:
    file = tmp_path / "weights.json"
    file.write_text("{}")
    one = keys.plain(str(file)), keys.plain([str(file)])
    file.write_text("[]")
    assert keys.plain(str(file)) != one[0]
    assert keys.plain([str(file)]) != one[1]
    assert keys.plain("word") == '"word"'
