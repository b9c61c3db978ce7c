"""Damaged input: what is read, what is refused, and that every row and token of it is accounted for."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest
from surogate_pipeline_packed.plugin import Options
from surogate_pipeline_packed.prepare import Prepared, Work, prepare
from transformers import AutoTokenizer

from surogate_core.config.options import CoreOptions, DatasetOptions
from surogate_core.errors import DataError
from surogate_core.host import load_host

SEQUENCE = 200


def said(*turns: tuple[str, str | None], **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns], **more}


def length(row: dict[str, Any]) -> int:
    """Tokens of a row, from ChatML's published form: a token a byte, and one for each of its two markers."""
    return sum(len(f"{message['role']}\n{message['content']}\n".encode()) + 2 for message in row["messages"])


GOOD = said(("user", "Grüße"), ("assistant", "hallo"))
ONLY_SYSTEM = said(("system", "be brief"))
TWO_USERS = said(("user", "one"), ("user", "two"), ("assistant", "three"))
OVERLONG = said(("user", "why"), ("assistant", "because " * 40))
SEPARATOR = said(("user", "a\u2028b\u0085c\x0bd"), ("assistant", "e\u2029f"))
LARGE = said(("user", "hi"), ("assistant", "ho"), note="x" * 10_000_000)

MISSING = "missing field 'messages'"
LINES: list[tuple[str, dict[str, Any] | bytes, str]] = [
    ("behind a byte order mark", GOOD, "kept"),
    ("torn line", json.dumps(GOOD).encode()[:-20], "not JSON"),
    ("wrong type", {"messages": 7}, "field 'messages' is not a list"),
    ("missing field", {"text": "x"}, MISSING),
    ("empty", {"messages": []}, "no messages"),
    ("only system", ONLY_SYSTEM, "no trained token"),
    ("two users in a row", TWO_USERS, "kept"),
    ("unknown role", said(("narrator", "x"), ("assistant", "y")), "unknown role 'narrator'"),
    ("over-long", OVERLONG, "longer than max_length"),
    ("Latin-1", '{"messages": [{"role": "user", "content": "Grüße"}]}'.encode("latin-1"), "not UTF-8"),
    ("U+2028 inside a record", SEPARATOR, "kept"),
    ("duplicate keys", b'{"messages": [{"role": "user", "role": "assistant", "content": "x"}]}', "key 'role' twice in an object"),
    ("nested null", {"messages": [None]}, "a message is not an object"),
    ("null content", said(("user", "x"), ("assistant", None)), "a message without content"),
    ("10 MB line", LARGE, "kept"),
    ("half of a surrogate pair", b'{"messages": [{"role": "user", "content": "\\ud83d"}]}', "half of a surrogate pair"),
    ("a list", b"[1]", "not a JSON object but list"),
    ("nested deeply", b'{"messages": ' + b"[" * 100_000, "not JSON"),
]
RENDERED = {"no trained token", "longer than max_length", "kept"}


def encoded(row: dict[str, Any] | bytes) -> bytes:
    return row if isinstance(row, bytes) else json.dumps(row, ensure_ascii=False).encode()


@pytest.fixture
def run(tiny: Path):
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    host = load_host()

    def run(path: Path, kind: str = "conversation", template: str | None = None, **own: Any) -> Prepared:
        offer = host.offer("datasets", kind)
        fields = {"instruction_field": "ask", "output_field": "answer"} if kind == "instruction" else {}
        options = DatasetOptions(path=str(path), type=kind, format_options=offer.options(**fields))  # type: ignore[misc]
        core = CoreOptions(model="m", datasets=[options], sequence_len=SEQUENCE)
        tokenizer.chat_template = template or AutoTokenizer.from_pretrained(tiny).chat_template
        settings: dict[str, Any] = {"validation_split_ratio": 0.0, "max_bad_rows": 1.0} | own
        return prepare(Work(core, Options(**settings), lambda name: host.offer("datasets", name), tokenizer, lambda line: None))

    return run


def write_lines(path: Path) -> Path:
    content = b"\xef\xbb\xbf" + b"\n".join(encoded(row) for _, row, _ in LINES)
    path.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)
    return path


@pytest.mark.parametrize("name", ["bad.jsonl", "bad.jsonl.gz"])
def test_every_kind_of_damage_in_lines(run, tmp_path: Path, name: str) -> None:
    ledger = run(write_lines(tmp_path / name)).ledger
    record = ledger.record()
    wanted: dict[str, int] = {}
    first: dict[str, str] = {}
    for number, (_, _, fate) in enumerate(LINES, 1):
        wanted[fate] = wanted.get(fate, 0) + 1
        first.setdefault(fate, f"{name}:{number}")
    assert record["rows"] == {
        "read": len(LINES),
        "kept": wanted.pop("kept"),
        "split": 0,
        "truncated": 0,
        "dropped": wanted,
    }
    assert record["first"] == {fate: place for fate, place in first.items() if fate != "kept"}
    assert record["tokens"] == {
        "read": sum(length(row) for _, row, fate in LINES if fate in RENDERED and isinstance(row, dict)),
        "kept": sum(map(length, (GOOD, TWO_USERS, SEPARATOR, LARGE))),
        "split": 0,
        "truncated": 0,
        "dropped": {"no trained token": length(ONLY_SYSTEM), "longer than max_length": length(OVERLONG)},
    }
    assert ledger.balanced()
    bad = [(f"{name}:{number}", fate) for number, (_, _, fate) in enumerate(LINES, 1) if fate not in RENDERED]
    assert [(one.source, one.reason) for one in ledger.bad] == bad[:10]
    assert any(line == f"dropped (no trained token), first: {name}:6" for line in ledger.lines())


def test_over_max_bad_rows_the_run_stops_and_names_the_first(run, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "bad.jsonl")
    share = sum(fate not in RENDERED for _, _, fate in LINES) / len(LINES)
    run(path, max_bad_rows=share)
    with pytest.raises(DataError) as caught:
        run(path, max_bad_rows=share - 1e-6)
    (problem,) = caught.value.problems
    assert problem.what.startswith(f"12 of {len(LINES)} rows cannot be used, more than max_bad_rows = 0.66")
    assert "bad.jsonl:2: not JSON; bad.jsonl:3: field 'messages' is not a list; bad.jsonl:4: missing field" in problem.what
    assert problem.where == f'datasets[0].path = "{path}"'
    assert problem.how == "mend the rows or the field names, or raise max_bad_rows"


def test_two_users_in_a_row_are_refused_by_a_template_that_wants_them_to_alternate(run, tmp_path: Path) -> None:
    strict = (
        "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}"
        "{% endif %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join(map(encoded, (GOOD, TWO_USERS))))
    (bad,) = run(path, template=strict).ledger.bad
    assert bad.source == "rows.jsonl:2"
    assert bad.reason.startswith("the chat template fails: TemplateError: roles must alternate")


def test_an_array_gives_the_same_ledger_as_lines(run, tmp_path: Path) -> None:
    rows = [row for name, row, _ in LINES if name not in ("torn line", "nested deeply")]
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + b"\n".join(map(encoded, rows)))
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf[\n" + b" ,\n".join(map(encoded, rows)) + b"\n]\n")
    (tmp_path / "a.json.gz").write_bytes(gzip.compress((tmp_path / "a.json").read_bytes(), mtime=0))
    lines = run(tmp_path / "a.jsonl")
    for name in ("a.json", "a.json.gz"):
        array = run(tmp_path / name)
        assert array.fingerprint == lines.fingerprint
        renamed = json.dumps(array.ledger.record()).replace(f"{name}:", "a.jsonl:")
        assert json.loads(renamed) == lines.ledger.record()


TABLE = (
    b"\xef\xbb\xbfask,answer\n"
    b"one,1\n"
    b'"two\xe2\x80\xa8\nlines","2, or ""so"""\n'  # U+2028, a line break and quotes inside
    b"\n"
    b"missing\n"
    b"too,many,columns\n"
    b"Gr\xfc\xdfe,Latin-1\n"
    b'"torn" line,x\n'
    b"no answer,\n"
    b"last,9\n"
)


def test_damage_in_a_table(run, tmp_path: Path) -> None:
    for name, content in (("t.csv", TABLE), ("t.csv.gz", gzip.compress(TABLE, mtime=0))):
        (tmp_path / name).write_bytes(content)
        ledger = run(tmp_path / name, "instruction").ledger
        assert [(bad.source, bad.reason) for bad in ledger.bad] == [
            (f"{name}:3", "another number of columns than the first line"),
            (f"{name}:4", "another number of columns than the first line"),
            (f"{name}:5", "not UTF-8"),
            (f"{name}:6", "not CSV"),
            (f"{name}:7", "field 'answer' is empty"),
        ]
        kept = [("one", "1"), ("two\u2028\nlines", '2, or "so"'), ("last", "9")]
        assert ledger.rows_read == 8
        assert ledger.rows["kept"] == 3
        assert ledger.tokens["kept"] == sum(length(said(("user", ask), ("assistant", answer))) for ask, answer in kept)
        assert ledger.balanced()


@pytest.mark.parametrize(
    ("name", "content", "what", "where"),
    [
        ("a.json", b'[{"a": 1}, {"a": 2', "not JSON: .*delimiter", "a.json, element 2"),
        ("a.json", b'[{"a": 1}, {"a": 2}', "not JSON: the file ends after it", "a.json, element 2"),
        ("a.json", b'[{"a": 1} {"a": 2}]', "not JSON: ',' or ']' is wanted after it", "a.json, element 1"),
        ("a.json", b'[{"a": 1},]', "not JSON: Expecting value", "a.json, element 2"),
        ("a.json", b'[{"a": 1}] x', "not JSON: there is more after the array", "a.json, element 1"),
        ("a.json", b"[" * 100_000, "not JSON: nested too deeply", "a.json, element 1"),
        ("a.json", b'{\n "data": []\n}', "one JSON object over several lines", "a.json"),
        ("a.jsonl", gzip.compress(b"{}", mtime=0), "compressed with gzip, and its name does not say so", "a.jsonl"),
        ("a.jsonl.gz", b"{}", "gzip file is damaged: Not a gzipped file", "a.jsonl.gz"),
        ("a.jsonl.gz", gzip.compress(b"{}\n" * 1000, mtime=0)[:-9], "gzip file is damaged: Compressed file ended", "a.jsonl.gz"),
        ("a.jsonl", "{}".encode("utf-16"), "the file is UTF-16", "a.jsonl"),
        ("a.csv", "a,b\n".encode("utf-16"), "the file is UTF-16", "a.csv"),
        ("a.csv", b"a,b,a\n1,2,3\n", 'two columns "a"', "a.csv, line 1"),
        ("a.csv", b"a,\xfc\n1,2\n", "names of the columns are not UTF-8", "a.csv, line 1"),
        ("a.csv", b'a,b\n1,"2\n3,4\n5,6\n', "not CSV from line 2 to 4: unexpected end of data", "a.csv"),
        ("a.csv", b'a,b\n1,"2\n3,4\n5,"6\n', "not CSV from line 2 to 4: ',' expected after '\"'", "a.csv"),
        ("a.arrow", b"ARROW1", "not an arrow file", "a.arrow"),
    ],
)
def test_what_would_lose_rows_uncounted_ends_the_run(run, tmp_path: Path, name: str, content: bytes, what: str, where: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=what) as caught:
        run(tmp_path / name, "text")
    (problem,) = caught.value.problems
    assert problem.where == f"{tmp_path}/{where}"
    assert re.match("write|name|fetch|save|rename|close", problem.how)


def test_a_damaged_parquet_file_names_the_row(run, tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    path = tmp_path / "a.parquet"
    table = pyarrow.table({"text": [f"{i} " * 50 for i in range(4000)]})
    parquet.write_table(table, path, row_group_size=1000, compression="zstd")
    content = bytearray(path.read_bytes())
    third = parquet.ParquetFile(path).metadata.row_group(2).column(0)
    start = third.dictionary_page_offset or third.data_page_offset
    content[start + 4 : start + third.total_compressed_size] = b"\xff" * (third.total_compressed_size - 4)
    path.write_bytes(bytes(content))
    with pytest.raises(DataError, match="the parquet file is damaged") as caught:
        run(path, "text")
    assert caught.value.problems[0].where == f"{path}, after row 2000"


def test_a_file_that_cannot_be_opened(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"{}")

    def refuse(*arguments: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(DataError, match="the file cannot be read: Permission denied") as caught:
        run(path)
    assert caught.value.problems[0].how == "check the file and its permissions"
