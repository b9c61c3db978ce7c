"""What is trained and what is masked, to be looked at (terminal, HTML page) and to be checked by a program (JSON lines).

A *piece* is a sample, or a part of one that was split; ``weights[i]`` is the weight of predicting ``input_ids[i]`` from what
precedes it, so the first token of a sample is never trained.
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import click
import numpy as np
from attrs import frozen

from surogate_pipeline_packed.corpus import Corpus
from surogate_pipeline_packed.part import UNSAID
from surogate_pipeline_packed.pipeline import PackedData

LONGEST = 8
"""Tokens that can share a character (bytes of UTF-8 and more)."""
FIRST = "nothing precedes the first token: masked"
STYLE = (
    "body{font:15px/1.7 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222;background:#fff}"
    "pre{white-space:pre-wrap;border:1px solid #ddd;padding:1rem;color:#888}h2{font-size:1rem}"
    ".t{background:#c9efcf;color:#063}.w{background:#ffe9a8;color:#540}span:hover{outline:1px solid #36c}"
)


@frozen
class Piece:
    """One piece of a side (training or validation). ``runs`` say why tokens weigh what they do: the first of each run, from 0 on,
    and the reason."""

    side: str
    source: str
    ids: tuple[int, ...]
    weights: tuple[float, ...]
    runs: tuple[tuple[int, str], ...]

    def why(self, index: int) -> str:
        """Which part of the sample a token is, and the rule by which it is trained or masked."""
        return next(why for first, why in reversed(self.runs) if first <= index)

    def reasons(self) -> Iterator[tuple[int, int, str]]:
        """(start, stop, why) of the runs."""
        stops = [first for first, _ in self.runs[1:]] + [len(self.ids)]
        yield from ((start, stop, why) for (start, why), stop in zip(self.runs, stops, strict=True))


def pieces(data: PackedData) -> Iterator[Piece]:
    """All pieces, training first, in the order of the rows."""
    for side, corpus in (("training", data.prepared.train), ("validation", data.prepared.validation)):
        yield from (_piece(side, corpus, at) for at in range(len(corpus))) if corpus is not None else ()


def some(data: PackedData, count: int) -> list[Piece]:
    """``count`` pieces of the training data, spread over them evenly."""
    corpus = data.prepared.train
    places = np.unique(np.linspace(0, len(corpus) - 1, min(count, len(corpus))).round().astype(int))
    return [_piece("training", corpus, int(at)) for at in places]


def dump(found: Iterable[Piece], tokenizer: Any, path: Path) -> int:
    """Write one JSON object a piece: side, source, input_ids, weights, reasons ([start, stop, why] of each run), text. Returns how
    many."""
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for piece in found:
            record = {
                "side": piece.side,
                "source": piece.source,
                "input_ids": piece.ids,
                "weights": piece.weights,
                "reasons": list(piece.reasons()),
                "text": tokenizer.decode(list(piece.ids)),
            }
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
            count += 1
    return count


def terminal(piece: Piece, tokenizer: Any, colour: bool) -> Iterator[str]:
    """Lines: trained text green (yellow where its weight is not 1), the rest dim; without colours it stands between ⟦ and ⟧. Then
    why, run by run."""
    trained = sum(weight > 0 for weight in piece.weights)
    yield f"--- {piece.source}: {len(piece.ids):,} tokens, {trained:,} trained"
    text = ""
    start = 0
    for weight, run in groupby(piece.weights):
        stop = start + len(list(run))
        part = tokenizer.decode(list(piece.ids[start:stop]))
        start = stop
        if colour:
            text += click.style(part, fg="green" if weight == 1 else "yellow") if weight else click.style(part, dim=True)
        else:
            text += f"⟦{part}⟧" if weight == 1 else f"⟦{weight:g}: {part}⟧" if weight else part
    yield from text.split("\n")
    for start, stop, why in piece.reasons():
        yield f"  {f'token {start:,}' if stop == start + 1 else f'tokens {start:,} to {stop - 1:,}'}: {why}"


def page(found: Sequence[Piece], tokenizer: Any) -> str:
    """A page of its own, without script or request: a token that is pointed at says its id and why it is trained or masked."""
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>surogate: preview</title><style>{STYLE}</style>",
        "<h1>What is trained</h1><p><span class=t>trained</span>, <span class=w>trained with another weight than 1</span>, masked. "
        "Point at a token to see its id and why.</p>",
    ]
    for piece in found:
        parts.append(f"<h2>{html.escape(piece.source)}: {len(piece.ids):,} tokens</h2><pre>")
        parts += [_span(piece, start, stop, text) for start, stop, text in _tokens(piece, tokenizer)]
        parts.append("</pre>")
    return "".join(parts) + "</html>\n"


def _piece(side: str, corpus: Corpus, at: int) -> Piece:
    start, stop, _ = corpus.pieces[at].tolist()
    source = corpus.sources[at]
    tokens, weights = corpus.tokens[start:stop].tolist(), corpus.weights[start:stop].tolist()
    runs = corpus.reasons.of(start, stop) if corpus.reasons is not None else [(0, UNSAID)]
    if "#" not in source or source.endswith("#1"):
        weights[0] = 0.0  # truncation can leave a trained token in the first place
        runs = [(0, FIRST), *((max(1, first), why) for first, why in runs if first > 1 or _reaches(runs, first, len(tokens)))]
    return Piece(side, source, tuple(tokens), tuple(weights), tuple(runs))


def _reaches(runs: Sequence[tuple[int, str]], first: int, length: int) -> bool:
    """Whether the run that starts at ``first`` has more than the first token."""
    return next((start for start, _ in runs if start > first), length) > 1


def _tokens(piece: Piece, tokenizer: Any) -> Iterator[tuple[int, int, str]]:
    """(start, stop, text) of the tokens; those that share a character together, if they weigh the same."""
    start = 0
    for stop in range(1, len(piece.ids) + 1):
        text = tokenizer.decode(list(piece.ids[start:stop]))
        whole = not text.endswith("\ufffd") or stop - start >= LONGEST or stop == len(piece.ids)
        if whole or piece.weights[stop] != piece.weights[start]:
            yield start, stop, text
            start = stop


def _span(piece: Piece, start: int, stop: int, text: str) -> str:
    weight = piece.weights[start]
    kind = "" if not weight else " class=t" if weight == 1 else " class=w"
    said = html.escape(f"{', '.join(map(str, piece.ids[start:stop]))}: {piece.why(start)}")
    return f'<span{kind} title="{said}">{html.escape(text)}</span>'
