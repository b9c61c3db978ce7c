"""Tokens of a text with the places where they start; the head that many conversations share is tokenised once.

A system prompt with tools is most of a short conversation and the same in many of them. A byte-level tokenizer cuts a text at its
special tokens before anything else, so what stands before the second of them can be tokenised alone. Such a tokenizer's tokens also
say themselves how many bytes they stand for, so that it need not be asked for their places, which costs as much as the tokens. Only
where that is so: see :func:`_bytewise`; in any other case the tokenizer is asked.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from attrs import Factory, define
from numpy.typing import NDArray

from surogate_pipeline_packed.words import Words, words_of

Ints = NDArray[np.int64]
Placed = tuple[Ints, Ints, Ints]
"""ids, starts and ends (n,) of tokens; places are characters."""
SHORTEST = 512
KEPT = 256


@define
class Heads:
    """What is known of a tokenizer, and the heads that were met last. ``marks`` are its special tokens, None where texts cannot be
    cut at them; ``sizes`` (V,) are the bytes that each token stands for, None where that is not known."""

    marks: re.Pattern[str] | None
    sizes: Ints | None = None
    words: Words | None = None
    known: OrderedDict[str, Placed] = Factory(OrderedDict)


_HEADS: WeakKeyDictionary[Any, Heads] = WeakKeyDictionary()


def encoded(tokenizer: Any, text: str, special: bool) -> Placed:
    """ids, starts and ends (n,) of the tokens of ``text``; ``special`` adds the tokens that the tokenizer adds."""
    heads = _HEADS.get(tokenizer)
    if heads is None:
        described = _bytewise(tokenizer)
        words = words_of(tokenizer.backend_tokenizer, described) if described else None
        heads = _HEADS[tokenizer] = Heads(_marks(described), _sizes(tokenizer, described), words)
    end = _end(heads.marks, text) if heads.marks is not None and not special else 0
    if not end:
        return _encode(tokenizer, heads, text, special)
    head = text[:end]
    if head in heads.known:
        heads.known.move_to_end(head)
    else:
        heads.known[head] = _encode(tokenizer, heads, head, special)
        if len(heads.known) > KEPT:
            heads.known.popitem(last=False)
    ids, starts, ends = heads.known[head]
    rest, from_, to = _encode(tokenizer, heads, text[end:], special)
    return np.concatenate([ids, rest]), np.concatenate([starts, from_ + end]), np.concatenate([ends, to + end])


def _end(marks: re.Pattern[str], text: str) -> int:
    """Where a head of a special token and at least SHORTEST characters without one ends, before a special token; 0 if none."""
    first = marks.match(text)
    following = marks.search(text, first.end()) if first else None
    return following.start() if first and following and following.start() - first.end() >= SHORTEST else 0


def _encode(tokenizer: Any, heads: Heads, text: str, special: bool) -> Placed:
    placed = _counted(tokenizer, heads, text) if heads.sizes is not None and not special else None
    if placed is not None:
        return placed
    made = tokenizer(text, add_special_tokens=special, return_offsets_mapping=True, return_attention_mask=False, verbose=False)
    starts, ends = np.array(made["offset_mapping"], dtype=np.int64).reshape(-1, 2).T
    return np.array(made["input_ids"], dtype=np.int64), starts, ends


def _counted(tokenizer: Any, heads: Heads, text: str) -> Placed | None:
    """The same from the tokens alone: each stands for the bytes behind those of the tokens before it. None where the tokens do not
    stand for exactly the bytes of the text."""
    backend = tokenizer.backend_tokenizer
    if backend.truncation is not None:
        backend.no_truncation()
    if backend.padding is not None:
        backend.no_padding()
    backend.encode_special_tokens = False
    if not text.isascii() and not unicodedata.is_normalized("NFC", text):
        return None  # the tokenizer may change it first
    found = heads.words.ids(text) if heads.words else backend.encode_batch_fast([text], add_special_tokens=False)[0].ids
    ids: Ints = np.array(found, dtype=np.int64)
    assert heads.sizes is not None
    lengths = heads.sizes[ids]
    ends = np.cumsum(lengths)
    starts = ends - lengths
    if text.isascii():
        return (ids, starts, ends) if lengths.sum() == len(text) and lengths.all() else None
    data = np.frombuffer(text.encode(), dtype=np.uint8)
    if lengths.sum() != len(data) or not lengths.all():
        return None
    character = np.cumsum((data & 0xC0) != 0x80) - 1  # of each byte
    return ids, character[starts], character[ends - 1] + 1


def _bytewise(tokenizer: Any) -> Mapping[str, Any] | None:
    """The tokenizer's description if it is known to take what stands before and behind a special token for itself: byte-level
    without a normalizer (but for NFC) or a space put in front, and added tokens that match as they are and take no white space
    along. None for any other, and for tokenizers with a way of their own."""
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

    if not getattr(tokenizer, "is_fast", False) or getattr(tokenizer, "split_special_tokens", False):
        return None
    if type(tokenizer).__call__ is not PreTrainedTokenizerBase.__call__:
        return None
    if type(tokenizer)._encode_plus is not PreTrainedTokenizerFast._encode_plus:
        return None
    described: Mapping[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    before = described["pre_tokenizer"] or {}
    steps = before.get("pretokenizers", [before])
    bytewise = any(step.get("type") == "ByteLevel" for step in steps)
    plain = all(step.get("type") in ("ByteLevel", "Split", "Digits") and not step.get("add_prefix_space") for step in steps)
    if described["normalizer"] not in (None, {"type": "NFC"}) or not bytewise or not plain:
        return None
    if any(
        token["lstrip"] or token["rstrip"] or token["single_word"] or token["normalized"] for token in described["added_tokens"]
    ):
        return None
    return described


def _marks(described: Mapping[str, Any] | None) -> re.Pattern[str] | None:
    """Finds a special token."""
    special = [token["content"] for token in described["added_tokens"] if token["special"]] if described else []
    return re.compile("|".join(sorted(map(re.escape, special), key=len, reverse=True))) if special else None


def _sizes(tokenizer: Any, described: Mapping[str, Any] | None) -> Ints | None:
    """Bytes of each token, 0 where that is not known; None where a text's tokens are asked for their places."""
    if described is None or described["model"]["type"] != "BPE" or described["model"].get("dropout"):
        return None
    behind = described["post_processor"] or {}
    steps = behind.get("processors", [behind])
    if any(step.get("type") not in (None, "ByteLevel", "TemplateProcessing") or step.get("trim_offsets") for step in steps):
        return None  # places would leave out white space
    vocabulary: Mapping[str, int] = tokenizer.backend_tokenizer.get_vocab(with_added_tokens=False)
    added = {token["id"]: len(token["content"].encode()) for token in described["added_tokens"]}
    sizes: Ints = np.zeros(max([*vocabulary.values(), *added]) + 1, dtype=np.int64)
    alphabet = re.compile(r"[!-~¡-¬®-Ń]+")  # the characters that stand for a byte (Radford et al. 2019)
    for token, place in vocabulary.items():
        sizes[place] = len(token) if alphabet.fullmatch(token) else 0
    for place, size in added.items():
        sizes[place] = size
    return sizes
