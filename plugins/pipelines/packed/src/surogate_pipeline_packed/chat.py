"""Messages → tokens and weights, through the chat template.

The text is always the template's own rendering of the whole conversation, so that training ids equal serving ids. What is left
to find is which part of it each assistant turn is:

* A template with ``{% generation %}`` marks says so itself.
* Otherwise turn i starts where the rendering of the messages before it, with a generation prompt, ends: there the model starts
  to write. It ends where the rendering of the messages up to and with it ends. Templates that render an earlier turn otherwise
  than a last one (Qwen 3 drops its thoughts) make the second no prefix of the whole; then the whole is rendered again with
  another text in that turn, and the part that both share at the end is what follows it.

Every piece found is compared with the whole, character by character. Where it does not fit, the sample is refused with a reason,
never guessed. The marker that ends a turn is trained with it; white space behind the marker is not.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from attrs import field, frozen
from jinja2 import TemplateError
from numpy.typing import NDArray

from surogate_core.contracts import Sample
from surogate_core.errors import BadRow, DataError
from surogate_pipeline_packed.plugin import Options
from surogate_pipeline_packed.quick import Quick, quick

Message = Mapping[str, Any]
Span = tuple[int, int, float]
"""Characters [start, stop) of a text, and the weight of predicting the tokens that start in them."""

GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
PLAIN_MARKER = re.compile(r"<[^<>\s]{1,40}>")  # an end-of-turn marker that the tokenizer does not know as one token
STAND_INS = "QZ"


def weigh(tokenizer: Any, text: str, spans: Sequence[Span], kind: str, marker: str, special: bool = False) -> Sample:
    """Tokenise ``text`` as it is (``special``: with the tokens that the tokenizer adds) and weigh each token by the last span in
    which it starts, 0 outside of them."""
    encoded = tokenizer(text, add_special_tokens=special, return_offsets_mapping=True, verbose=False)
    starts = np.array([start for start, _ in encoded["offset_mapping"]], dtype=np.int64)
    weights: NDArray[np.float32] = np.zeros(len(starts), dtype=np.float32)
    for start, stop, weight in spans:
        weights[(starts >= start) & (starts < stop)] = weight
    return Sample(input_ids=encoded["input_ids"], weights=weights.tolist(), kind=kind, marker=marker)


@frozen
class Renderer:
    """``render`` of a FormatContext: messages → Sample."""

    tokenizer: Any
    system: str | None
    loss_scale: str

    @classmethod
    def of(cls, own: Options, tokenizer: Any) -> Renderer:
        return cls(tokenizer, own.system, own.loss_scale)

    def check(self) -> None:
        """Raises DataError when the tokenizer cannot render conversations."""
        name = getattr(self.tokenizer, "name_or_path", "the tokenizer")
        if not self.tokenizer.chat_template:
            raise DataError("the tokenizer has no chat template", name, 'set template = "chatml", another name, or a Jinja file')
        if not self.tokenizer.is_fast:
            raise DataError(
                "the tokenizer cannot say where its tokens are in the text", name, "use its fast version (tokenizer.json)"
            )

    def __call__(self, messages: Sequence[Message], tools: Sequence[Any] | None = None, kind: str = "conversation") -> Sample:
        """Render and weigh a conversation of OpenAI messages. ``loss`` in a message (bool or number) overrides ``loss_scale``.

        Raises BadRow: no messages, a rendering that fails, or turns that cannot be told apart.
        """
        self.check()
        if not messages:
            raise BadRow("no messages")
        if self.system is not None and messages[0].get("role") != "system":
            messages = [{"role": "system", "content": self.system}, *messages]
        rest = background(self.loss_scale)
        weights = {i: weight for i, weight in turn_weights(messages, self.loss_scale).items() if weight != rest}
        shown = [{key: value for key, value in message.items() if key != "loss"} for message in messages]
        view = View(self.tokenizer, shown, list(tools) if tools else None, tuple(self.tokenizer.all_special_tokens))
        whole = view.prefix(len(shown))
        view.check_tools(whole)
        found = view.turns(whole, list(weights)) if weights else {}
        spans = [(0, len(whole), rest), *((*found[i], weight) for i, weight in weights.items())]
        return weigh(self.tokenizer, whole, spans, kind, "assistant text")


def background(loss_scale: str) -> float:
    """Weight of text that is not the assistant's."""
    return 1.0 if loss_scale == "all" else 0.0


def turn_weights(messages: Sequence[Message], loss_scale: str) -> dict[int, float]:
    """Weight of each assistant message, by its index. ``loss`` in a message overrides ``loss_scale``."""
    last_user = max((i for i, message in enumerate(messages) if message.get("role") == "user"), default=-1)
    weights = {}
    for i, message in enumerate(messages):
        loss = message.get("loss")
        if loss is not None and not (isinstance(loss, (bool, int, float)) and 0 <= loss < float("inf")):
            raise BadRow("loss of a message is neither true, false nor a number from 0 on")
        if message.get("role") == "assistant":
            weights[i] = float(loss if loss is not None else loss_scale != "last_round" or i > last_user)
        elif loss is not None and bool(loss) != (loss_scale == "all"):
            raise BadRow("loss on a message that is not the assistant's")
    return weights


@frozen
class View:
    """Renderings of one conversation and of parts of it. ``markers`` are the tokenizer's special tokens."""

    tokenizer: Any
    messages: list[dict[str, Any]]
    tools: list[Any] | None
    markers: tuple[str, ...]
    rendered: dict[tuple[int, bool], str] = field(factory=dict)
    fast: list[Quick | None] = field(factory=list)  # filled once the whole is rendered and parts are asked for

    def prefix(self, count: int, prompt: bool = False) -> str:
        """The rendering of the first ``count`` messages, kept."""
        if (count, prompt) not in self.rendered:
            self.rendered[count, prompt] = self._render(self.messages[:count], prompt)
        return self.rendered[count, prompt]

    def check_tools(self, whole: str) -> None:
        """Templates that know no tools leave them out without a word."""
        calls = [call for message in self.messages for call in message.get("tool_calls") or []]
        for what, entries in (("tools", self.tools or []), ("tool calls", calls)):
            names = [entry.get("function", entry).get("name") for entry in entries]
            if not all(isinstance(name, str) and name in whole for name in names):
                raise BadRow(f"the chat template does not show the {what}")

    def _render(self, messages: Sequence[Message], prompt: bool = False) -> str:
        whole = self.rendered.get((len(self.messages), False))
        if whole is not None and not self.fast:
            self.fast.append(quick(self.tokenizer, self.messages, self.tools, whole))
        try:
            if self.fast and self.fast[0] is not None:
                return self.fast[0](messages, prompt)
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
        from transformers.utils.chat_template_utils import render_jinja_template

        turns = [i for i, message in enumerate(self.messages) if message.get("role") == "assistant"]
        special = self.tokenizer.special_tokens_map
        texts, marks = render_jinja_template(
            [self.messages], tools=self.tools, chat_template=template, return_assistant_tokens_mask=True, **special
        )
        if texts[0] != whole:
            raise BadRow("the chat template renders otherwise with generation marks")
        if len(marks[0]) != len(turns):
            raise BadRow("another number of generation marks than of assistant messages")
        return {i: (start, stop + self._marker(whole, stop)) for i, (start, stop) in zip(turns, marks[0], strict=True)}

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
            raise BadRow("the chat template renders the messages before an assistant turn otherwise in the whole conversation")
        agreed = prompt[: _shared(prompt, whole)]
        ends = [agreed.rfind("\n") + 1, *(agreed.rfind(token) + len(token) for token in self.markers if token in agreed)]
        if max(ends) <= len(before):
            raise BadRow("an assistant turn does not start with the chat template's generation prompt")
        return max(ends)

    def _stop(self, whole: str, i: int, start: int) -> int:
        """Where turn i ends, its end-of-turn marker included."""
        upto = self.prefix(i + 1)
        turn = whole[start : len(upto)].rstrip()
        if whole.startswith(upto) and turn.endswith(self.markers):
            return start + len(turn)
        message = self.messages[i]
        content = message.get("content")
        last = content.rstrip()[-1:] if isinstance(content, str) and not message.get("tool_calls") else ""
        stand_in = next(letter for letter in STAND_INS if letter != last)
        other = self._render([*self.messages[:i], {"role": "assistant", "content": stand_in * 8}, *self.messages[i + 1 :]])
        shared = _shared(whole[::-1], other[::-1])
        if not other[: len(other) - shared].endswith(stand_in * 8):
            raise BadRow("the end of an assistant turn cannot be told in the chat template's rendering")
        stop = len(whole) - shared
        plain = PLAIN_MARKER.match(whole, stop)
        return stop + (self._marker(whole, stop) or (plain.end() - stop if plain else 0))

    def _marker(self, whole: str, at: int) -> int:
        """Length of the special token that the text has at this place, 0 if none."""
        return max((len(token) for token in self.markers if whole.startswith(token, at)), default=0)


def _shared(one: str, other: str) -> int:
    """Number of characters that both start with."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
