"""Tokens of a text with the places where they start; the head that many conversations share is tokenised once.

A system prompt with tools is most of a short conversation and the same in many of them. A byte-level tokenizer cuts a text at its
special tokens before anything else, so what stands before the second of them can be tokenised alone. Only where that is so: see
:func:`_cutter`.
"""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from attrs import Factory, define
from numpy.typing import NDArray

Ints = NDArray[np.int64]
SHORTEST = 512
KEPT = 256


@define
class Heads:
    """The heads that were met last. ``cut`` finds the end of one in a text; None where texts cannot be cut."""

    cut: re.Pattern[str] | None
    known: OrderedDict[str, tuple[Ints, Ints, Ints]] = Factory(OrderedDict)


_HEADS: WeakKeyDictionary[Any, Heads] = WeakKeyDictionary()


def encoded(tokenizer: Any, text: str, special: bool) -> tuple[Ints, Ints, Ints]:
    """ids, starts and ends (n,) of the tokens of ``text``; ``special`` adds the tokens that the tokenizer adds."""
    if tokenizer not in _HEADS:
        _HEADS[tokenizer] = Heads(_cutter(tokenizer))
    heads = _HEADS[tokenizer]
    found = heads.cut.match(text) if heads.cut is not None and not special else None
    if found is None:
        return _encode(tokenizer, text, special)
    head = found[1]
    if head in heads.known:
        heads.known.move_to_end(head)
    else:
        heads.known[head] = _encode(tokenizer, head, special)
        if len(heads.known) > KEPT:
            heads.known.popitem(last=False)
    ids, starts, ends = heads.known[head]
    rest, from_, to = _encode(tokenizer, text[len(head) :], special)
    return np.concatenate([ids, rest]), np.concatenate([starts, from_ + len(head)]), np.concatenate([ends, to + len(head)])


def _encode(tokenizer: Any, text: str, special: bool) -> tuple[Ints, Ints, Ints]:
    made = tokenizer(text, add_special_tokens=special, return_offsets_mapping=True, return_attention_mask=False, verbose=False)
    starts, ends = np.array(made["offset_mapping"], dtype=np.int64).reshape(-1, 2).T
    return np.array(made["input_ids"], dtype=np.int64), starts, ends


def _cutter(tokenizer: Any) -> re.Pattern[str] | None:
    """Finds a head of at least SHORTEST characters before a special token. None unless the tokenizer is known to take what stands
    before and behind one for itself: byte-level without a normalizer or a space put in front, and special tokens that match as they
    are and take no white space along."""
    if not getattr(tokenizer, "is_fast", False) or getattr(tokenizer, "split_special_tokens", False):
        return None
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    before = described["pre_tokenizer"] or {}
    steps = before.get("pretokenizers", [before])
    bytewise = any(step.get("type") == "ByteLevel" for step in steps)
    plain = all(step.get("type") in ("ByteLevel", "Split", "Digits") and not step.get("add_prefix_space") for step in steps)
    if described["normalizer"] is not None or not bytewise or not plain:
        return None
    added = described["added_tokens"]
    if any(token["lstrip"] or token["rstrip"] or token["single_word"] or token["normalized"] for token in added):
        return None
    marks = "|".join(sorted((re.escape(token["content"]) for token in added if token["special"]), key=len, reverse=True))
    return re.compile(f"((?:{marks})(?:(?!{marks}).){{{SHORTEST},}}?)(?={marks})", re.DOTALL) if marks else None
