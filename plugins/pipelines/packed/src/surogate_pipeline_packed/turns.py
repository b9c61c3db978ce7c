"""Which characters of a rendered conversation each assistant turn is, found by rendering parts of it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from attrs import field, frozen
from jinja2 import TemplateError

from surogate_core.errors import BadRow
from surogate_pipeline_packed.quick import Marks, Quick, quick

Message = Mapping[str, Any]

GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
PLAIN_MARKER = re.compile(r"<[^<>\s]{1,40}>")  # an end-of-turn marker that the tokenizer does not know as one token
STAND_INS = "QZ"
EMPTY_THOUGHT = re.compile(r"(<think>\s*</think>)?\s*")


@frozen
class View:
    """Renderings of one conversation and of parts of it. ``markers`` are the tokenizer's special tokens; ``opening`` is the text
    that each assistant turn is given to start with (``response_prefix``)."""

    tokenizer: Any
    messages: list[dict[str, Any]]
    tools: list[Any] | None
    markers: tuple[str, ...]
    opening: str = ""
    rendered: dict[tuple[int, bool], str] = field(factory=dict)
    fast: list[Quick | None] = field(factory=list)  # filled when first asked for
    marks: list[Marks | None] = field(factory=list)  # of the whole, filled with ``fast``

    def prefix(self, count: int, prompt: bool = False) -> str:
        """The rendering of the first ``count`` messages, kept."""
        if (count, prompt) not in self.rendered:
            self.rendered[count, prompt] = self._render(self.messages[:count], prompt)
        return self.rendered[count, prompt]

    def check(self, whole: str) -> None:
        """Templates leave out without a word what they do not know: tools, calls, thoughts, roles. Raises BadRow for that."""
        calls = [call for message in self.messages for call in message.get("tool_calls") or []]
        template = self.tokenizer.get_chat_template(None, tools=self.tools)
        for what, key, entries in (("tools", "tools", self.tools or []), ("tool calls", "tool_calls", calls)):
            names = [entry.get("function", entry).get("name") for entry in entries]
            if not all(isinstance(name, str) and name in whole for name in names):
                raise BadRow(f"the chat template does not show the {what}")
            # A name may stand in the text by chance; a template that never reads the key shows nothing of it.
            if entries and key not in template:
                raise BadRow(f"the chat template does not show the {what}")
        for i, message in enumerate(self.messages):
            content, thought = message.get("content"), message.get("reasoning_content")
            if message.get("role") == "assistant" and isinstance(content, str):
                content = content.split("</think>")[-1]
            texts = [content] if isinstance(content, str) else [part.get("text", "") for part in content or ()]
            if not all(_shown(text, whole) for text in texts):
                raise BadRow(f"the chat template does not show a message of role {message.get('role')}")
            # A thought may be left out of the history, as it is when the model is served, but not out of the turn itself.
            if isinstance(thought, str) and not _shown(thought, whole) and not _shown(thought, self.prefix(i + 1)):
                raise BadRow("the chat template does not show the reasoning")

    def _render(self, messages: Sequence[Message], prompt: bool = False) -> str:
        try:
            if not self.fast:
                self.fast.append(quick(self.tokenizer, self.messages, self.tools))
            if self.fast[0] is not None:
                text, marks = self.fast[0](messages, prompt)
                if not self.marks and not prompt and len(messages) == len(self.messages):
                    self.marks.append(marks)
                return text
            return self.tokenizer.apply_chat_template(messages, tools=self.tools, tokenize=False, add_generation_prompt=prompt)
        except (TemplateError, TypeError, ValueError, KeyError, AttributeError, IndexError) as error:
            raise BadRow(f"the chat template fails: {type(error).__name__}: {str(error)[:100]}") from error

    def turns(self, whole: str, wanted: Sequence[int]) -> dict[int, tuple[int, int]]:
        """Characters [start, stop) of the wanted assistant turns in ``whole``."""
        template = self.tokenizer.get_chat_template(None, tools=self.tools)
        if GENERATION.search(template):
            return self._marked(whole, template)
        self._check_prompt(whole, wanted[0])
        spans = {}
        for i in wanted:
            start = self._start(whole, i)
            spans[i] = start, self._stop(whole, i, start)
            if spans[i][1] <= start:
                raise BadRow("the chat template shows nothing of an assistant message")
        return spans

    def _marked(self, whole: str, template: str) -> dict[int, tuple[int, int]]:
        turns = [i for i, message in enumerate(self.messages) if message.get("role") == "assistant"]
        marks = self.marks[0] if self.marks else self._marks(whole, template)
        if marks is None:
            raise BadRow("the chat template has generation marks in a macro, where their places cannot be told")
        if len(marks) != len(turns):
            raise BadRow("another number of generation marks than of assistant messages")
        spans = {}
        for i, (start, stop) in zip(turns, marks, strict=True):
            if not whole.startswith(self.opening, start):
                raise BadRow("an assistant turn does not start with response_prefix in the chat template's rendering")
            # Marks may leave out the end-of-turn marker. A marker behind one that they cover is the next message's.
            length = 0 if whole[start:stop].rstrip().endswith(self.markers) else self._marker(whole, stop)
            if length and self._header(whole).startswith(whole[stop : stop + length]):
                length = 0
            spans[i] = start + len(self.opening), stop + length
        return spans

    def _marks(self, whole: str, template: str) -> Marks:
        from transformers.utils.chat_template_utils import render_jinja_template

        special = self.tokenizer.special_tokens_map
        texts, marks = render_jinja_template(
            [self.messages], tools=self.tools, chat_template=template, return_assistant_tokens_mask=True, **special
        )
        if texts[0] != whole:
            raise BadRow("the chat template renders otherwise with generation marks")
        return marks[0]

    def _header(self, whole: str) -> str:
        """What the generation prompt adds to the whole."""
        prompt = self._prompted(whole)
        return prompt[_shared(whole, prompt) :]

    def _check_prompt(self, whole: str, i: int) -> None:
        """Without a generation prompt, a turn's header would be taken for its text."""
        before, content = self.prefix(i), self.messages[i].get("content")
        if before != self.prefix(i, prompt=True) or not isinstance(content, str):
            return
        if not whole[len(before) :].lstrip().startswith(content.strip()):
            raise BadRow("the chat template has no generation prompt, and an assistant turn does not start with its text")

    def _start(self, whole: str, i: int) -> int:
        """Where the model starts to write turn i."""
        prompt = self.prefix(i, prompt=True)
        if whole.startswith(prompt):
            return len(prompt)
        # The prompt ends in something that this turn does not start with (an empty thought): keep the lines that agree.
        before = self.prefix(i)
        if not whole.startswith(before):
            return self._start_within(whole, i)
        agreed = prompt[: _shared(prompt, whole)]
        start = self._line_ends(agreed)[0]
        if start <= len(before):
            raise BadRow("an assistant turn does not start with the chat template's generation prompt")
        if not whole.startswith(self.opening, start):
            raise BadRow("an assistant turn does not start with response_prefix in the chat template's rendering")
        return start + len(self.opening)

    def _start_within(self, whole: str, i: int) -> int:
        """The same where what comes before turn i is rendered otherwise in the whole. The whole is rendered with two other texts in
        that turn: what both share ends where the text starts. The last generation prompt in it is the turn's own, if nothing but
        an empty thought follows it."""
        before, prompt = self.prefix(i), self.prefix(i, prompt=True)
        one, other = (self._replaced(i, letter) for letter in STAND_INS)
        shared = one[: _shared(one, other)]
        agreed = whole[: _shared(whole, shared)]
        addition = prompt[_shared(before, prompt) :]
        for end in [len(addition), *([] if self.opening else self._line_ends(addition))]:
            at = agreed.rfind(addition[:end]) + end
            if at >= end > 0 and EMPTY_THOUGHT.fullmatch(shared, at):
                return at
        raise BadRow("the chat template renders the messages before an assistant turn otherwise in the whole conversation")

    def _prompted(self, whole: str) -> str:
        """The whole with a generation prompt; without one where the template refuses."""
        try:
            return self.prefix(len(self.messages), prompt=True)
        except BadRow:
            return whole

    def _line_ends(self, text: str) -> list[int]:
        """Places behind a line break or a marker, the last one first; 0 if there is none."""
        ends = {at.end() for at in re.finditer("|".join(["\n", *map(re.escape, self.markers)]), text)}
        return sorted(ends, reverse=True) or [0]

    def _replaced(self, i: int, letter: str) -> str:
        """The whole with another text in turn i."""
        said = {"role": "assistant", "content": self.opening + letter * 8}
        return self._render([*self.messages[:i], said, *self.messages[i + 1 :]])

    def _stop(self, whole: str, i: int, start: int) -> int:
        """Where turn i ends, its end-of-turn marker included."""
        upto = self.prefix(i + 1)
        turn = whole[start : len(upto)].rstrip()
        # What the template adds at the end of a conversation (it is not there with a generation prompt) is no part of the turn.
        ended = upto == whole and not self._prompted(whole).startswith(whole)
        if whole.startswith(upto) and turn.endswith(self.markers) and not ended:
            return start + len(turn)
        message = self.messages[i]
        content = message.get("content")
        last = content.rstrip()[-1:] if isinstance(content, str) and not message.get("tool_calls") else ""
        stand_in = next(letter for letter in STAND_INS if letter != last)
        other = self._replaced(i, stand_in)
        shared = _shared(whole[::-1], other[::-1])
        if not other[: len(other) - shared].endswith(stand_in * 8):
            raise BadRow("the end of an assistant turn cannot be told in the chat template's rendering")
        stop = len(whole) - shared
        plain = PLAIN_MARKER.match(whole, stop)
        return stop + (self._marker(whole, stop) or (plain.end() - stop if plain else 0))

    def _marker(self, whole: str, at: int) -> int:
        """Length of the special token that the text has at this place, 0 if none."""
        return max((len(token) for token in self.markers if whole.startswith(token, at)), default=0)


def contents(messages: Sequence[Message], whole: str, turns: Mapping[int, tuple[int, int]]) -> Iterator[tuple[int, int, int]]:
    """(index, start, stop) of the contents of messages other than ``turns`` in ``whole``, as far as they stand there as they are
    and in order; for descriptions only."""
    at = 0
    following = sorted((i, start) for i, (start, _) in turns.items())
    for i, message in enumerate(messages):
        if i in turns:
            at = max(at, turns[i][1])
            continue
        said = message.get("content")
        limit = next((start for k, start in following if k > i), len(whole))
        for part in said if isinstance(said, list) else [said]:  # texts between images
            found = part.get("text") if isinstance(part, Mapping) else part
            text = found.strip() if isinstance(found, str) else ""
            start = whole.find(text, at, limit) if text else -1
            if start >= 0:
                at = start + len(text)
                yield i, start, at


def _shown(text: str, whole: str) -> bool:
    """Whether ``whole`` has this text, as it is or written as JSON, white space around it aside."""
    text = text.strip()
    return text in whole or json.dumps(text, ensure_ascii=False)[1:-1] in whole or json.dumps(text)[1:-1] in whole


def _shared(one: str, other: str) -> int:
    """Number of characters that both start with."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
