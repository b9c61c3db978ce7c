"""Tokens of a byte-level BPE by words that were met before.

Such a tokenizer cuts a text at its added tokens, then into words by a regular expression, and each word into tokens by itself. A
word that was met before need not be cut again; most were. Python finds the words of ASCII text with the tokenizer's own expression,
in which \\p{L} and \\p{N} are then plain ranges; the tokenizer cuts each new word, and all other text. The first texts are compared
with the tokenizer's own tokens: one difference, and it does everything itself from then on.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from attrs import Factory, define

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""The expression of ByteLevel (Radford et al. 2019)."""
COMPARED = 32
MOST = 1 << 15
LONGEST = 40
"""Characters of a word that is kept."""


@define
class Words:
    """``added`` splits a text at added tokens and keeps them, ``word`` finds the words of what is between; ``known`` are the ids of
    words and added tokens."""

    backend: Any
    added: re.Pattern[str]
    word: re.Pattern[str]
    known: dict[str, list[int]] = Factory(dict)
    compared: int = 0
    equal: bool = True

    def ids(self, text: str) -> list[int]:
        """The tokens of ``text``, without those that the tokenizer adds to it."""
        if not self.equal:
            return self._asked(text)
        found = self._found(text)
        if self.compared < COMPARED:
            self.compared += 1
            wanted = self._asked(text)
            self.equal = found == wanted
            return wanted
        return found

    def _found(self, text: str) -> list[int]:
        ids: list[int] = []
        known, find = self.known, self.word.findall
        for at, part in enumerate(self.added.split(text)):
            if not part.isascii():
                ids += self._asked(part)
                continue
            for word in [part] if at % 2 else find(part):
                # An empty part has no words, and is not asked for.
                ids += known[word] if word in known else self._new(word)
        return ids

    def _new(self, word: str) -> list[int]:
        ids = self._asked(word)
        if len(word) <= LONGEST:
            if len(self.known) >= MOST:
                self.known.clear()
            self.known[word] = ids
        return ids

    def _asked(self, text: str) -> list[int]:
        (made,) = self.backend.encode_batch_fast([text], add_special_tokens=False)
        return list(made.ids)


def words_of(backend: Any, described: Mapping[str, Any]) -> Words | None:
    """For a byte-level tokenizer (see :func:`~surogate_pipeline_packed.heads._bytewise`); None where its expression is not one that
    Python reads alike."""
    before = described["pre_tokenizer"]
    steps = before.get("pretokenizers", [before])
    expression = None
    if [step["type"] for step in steps] == ["ByteLevel"] and steps[0]["use_regex"]:
        expression = GPT2
    elif [step["type"] for step in steps] == ["Split", "ByteLevel"] and not steps[1]["use_regex"]:
        split = steps[0]
        if split["behavior"] == "Isolated" and not split["invert"]:
            expression = split["pattern"].get("Regex")
    word = _ascii(expression) if expression else None
    added = sorted((re.escape(token["content"]) for token in described["added_tokens"]), key=len, reverse=True)
    if word is None or not added:
        return None
    return Words(backend, re.compile(f"({'|'.join(added)})"), word)


def _ascii(expression: str) -> re.Pattern[str] | None:
    """The expression for ASCII text alone; None if it asks for more than letters, digits and white space."""
    inside = re.compile(r"\[(?:\\.|[^\]\\])*\]")
    ranges = {r"\p{L}": "A-Za-z", r"\p{N}": "0-9"}

    def plain(text: str, form: str) -> str:
        for name, characters in ranges.items():
            text = text.replace(name, form.format(characters))
        return text

    parts, at = [], 0
    for found in inside.finditer(expression):
        parts += [plain(expression[at : found.start()], "[{}]"), plain(found[0], "{}")]
        at = found.end()
    text = "".join([*parts, plain(expression[at:], "[{}]")])
    if re.search(r"\\[^srnSt]|\(\?[^:!i]|&&", text.replace(r"\\", "")):
        return None
    try:
        made = re.compile(text, re.ASCII)
    except re.error:
        return None
    return made if not made.groups else None
