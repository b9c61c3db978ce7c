"""Messages → tokens and weights, through the chat template.

The text is always the template's own rendering of the whole conversation, so that training ids equal serving ids. What is left to find is which
part of it each assistant turn is:

* A template with ``{% generation %}`` marks says so itself.
* Otherwise turn i starts where the rendering of the messages before it, with a generation prompt, ends: there the model starts to
  write. It ends where the rendering of the messages up to and with it ends. Templates that render an earlier turn otherwise than a last
  one (Qwen 3 drops its thoughts) make the second no prefix of the whole; then the whole is rendered again with another text in
  that turn, and the part that both share at the end is what follows it.

Every piece found is compared with the whole, character by character. Where it does not fit, the sample is refused with a reason,
never guessed. The marker that ends a turn is trained with it; white space behind the marker is not.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from attrs import frozen
from jinja2 import TemplateError
from numpy.typing import NDArray

from surogate_core.config.options import CoreOptions
from surogate_core.contracts import Sample
from surogate_core.errors import BadRow, DataError

Message = Mapping[str, Any]
Span = tuple[int, int, float]
"""Characters [start, stop) of a text, and the weight of predicting the tokens that start in them."""

GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
PLAIN_MARKER = re.compile(r"<[^<>\s]{1,40}>")  # an end-of-turn marker that the tokenizer does not know as one token
STAND_INS = "QZ"


def weigh(tokenizer: Any, text: str, spans: Sequence[Span], kind: str, marker: str, special: bool = False) -> Sample:
    """Tokenise ``text`` as it is (``special``: with the tokens that the tokenizer adds) and weigh each token by the span in which it
    starts, 0 outside of them."""
    encoded = tokenizer(text, add_special_tokens=special, return_offsets_mapping=True, verbose=False)
    starts = np.array([start for start, _ in encoded["offset_mapping"]], dtype=np.int64)
    weights: NDArray[np.float32] = np.zeros(len(starts), dtype=np.float32)
    for start, stop, weight in spans:
        weights[(starts >= start) & (starts < stop)] = weight
    return Sample(input_ids=encoded["input_ids"], weights=weights, kind=kind, marker=marker)


@frozen
class Renderer:
    """``render`` of a FormatContext: messages → Sample."""

    tokenizer: Any
    system: str | None
    loss_scale: str

    @classmethod
    def of(cls, core: CoreOptions, tokenizer: Any) -> Renderer:
        return cls(tokenizer, core.system, core.loss_scale)

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
        weights = message_weights(messages, self.loss_scale)
        shown = [{key: value for key, value in message.items() if key != "loss"} for message in messages]
        view = View(self.tokenizer, shown, list(tools) if tools else None)
        whole = view.text()
        turns = [i for i, message in enumerate(shown) if message.get("role") == "assistant"]
        spans: list[Span] = [(0, len(whole), 1.0)] if self.loss_scale == "all" else []
        wanted = [i for i, weight in enumerate(weights) if weight is not None]
        if self.loss_scale == "all":
            wanted = [i for i in wanted if weights[i] != 1]
        if any(i not in turns and weights[i] for i in wanted) or (self.loss_scale == "all" and any(i not in turns for i in wanted)):
            raise BadRow("loss on a message that is not the assistant's")
        found = view.turns(whole, turns, [i for i in wanted if i in turns])
        spans += [(*found[i], float(weights[i] or 0)) for i in wanted if i in turns]
        return weigh(self.tokenizer, whole, spans, kind, "assistant text")


def message_weights(messages: Sequence[Message], loss_scale: str) -> list[float | None]:
    """Weight of each message's text; None where it is as ``loss_scale`` has it for what is not the assistant's."""
    roles = [message.get("role") for message in messages]
    last_user = max((i for i, role in enumerate(roles) if role == "user"), default=-1)
    weights: list[float | None] = []
    for i, message in enumerate(messages):
        loss = message.get("loss")
        if loss is not None:
            if not isinstance(loss, (bool, int, float)) or not 0 <= loss < float("inf"):
                raise BadRow("loss of a message is neither true, false nor a number from 0 on")
            weights.append(float(loss))
        elif roles[i] == "assistant":
            weights.append(float(loss_scale != "last_round" or i > last_user))
        else:
            weights.append(None)
    return weights


@frozen
class View:
    """Renderings of one conversation and of parts of it."""

    tokenizer: Any
    messages: list[dict[str, Any]]
    tools: list[Any] | None

    def text(self, messages: Sequence[Message] | None = None, prompt: bool = False) -> str:
        messages = self.messages if messages is None else messages
        try:
            return self.tokenizer.apply_chat_template(messages, tools=self.tools, tokenize=False, add_generation_prompt=prompt)
        except (TemplateError, TypeError, ValueError, KeyError, AttributeError, IndexError) as error:
            raise BadRow(f"the chat template fails: {type(error).__name__}: {str(error)[:100]}") from error

    def turns(self, whole: str, turns: list[int], wanted: list[int]) -> dict[int, tuple[int, int]]:
        """Characters [start, stop) of the wanted assistant turns in ``whole``."""
        template = self.tokenizer.get_chat_template(None, tools=self.tools)
        if GENERATION.search(template):
            marks = self._marks(whole, template)
            if len(marks) != len(turns):
                raise BadRow(f"{len(marks)} generation marks for {len(turns)} assistant messages")
            found = dict(zip(turns, marks, strict=True))
            return {i: (found[i][0], found[i][1] + self._special(whole, found[i][1])) for i in wanted}
        spans: dict[int, tuple[int, int]] = {}
        for i in wanted:
            start = self._start(whole, i)
            stop = self._stop(whole, i, start)
            if stop <= start:
                raise BadRow("the chat template shows nothing of an assistant message")
            spans[i] = (start, stop)
        return spans

    def _marks(self, whole: str, template: str) -> list[tuple[int, int]]:
        from transformers.utils.chat_template_utils import render_jinja_template

        texts, marks = render_jinja_template(
            [self.messages],
            tools=self.tools,
            chat_template=template,
            return_assistant_tokens_mask=True,
            **self.tokenizer.special_tokens_map,
        )
        if texts[0] != whole:
            raise BadRow("the chat template renders otherwise with generation marks")
        return [(int(start), int(stop)) for start, stop in marks[0]]

    def _start(self, whole: str, i: int) -> int:
        """Where the model starts to write turn i."""
        before = self.messages[:i]
        prompt = self.text(before, prompt=True)
        if whole.startswith(prompt):
            history = None
        else:
            # The prompt ends in something that this turn does not start with (an empty thought): keep the lines that agree.
            history = self.text(before)
            if not whole.startswith(history):
                raise BadRow("the chat template renders the messages before an assistant turn otherwise in the whole conversation")
            agreed = prompt[: len(os.path.commonprefix([prompt, whole]))]
            ends = [agreed.rfind("\n") + 1, *(agreed.rfind(token) + len(token) for token in self._markers() if token in agreed)]
            prompt = agreed[: max(ends)]
            if len(prompt) <= len(history):
                raise BadRow("an assistant turn does not start with the chat template's generation prompt")
        start = len(prompt)
        content = self.messages[i].get("content")
        if history is None and isinstance(content, str) and content.strip() and prompt == self.text(before):
            # Without a generation prompt, a header of the turn would be taken for its text.
            if not whole[start:].lstrip().startswith(content.strip()):
                raise BadRow("the chat template has no generation prompt, and an assistant turn does not start with its text")
        return start

    def _stop(self, whole: str, i: int, start: int) -> int:
        """Where turn i ends, its end-of-turn marker included."""
        upto = self.text(self.messages[: i + 1])
        if whole.startswith(upto):
            turn = whole[start : len(upto)].rstrip()
            if turn.endswith(tuple(self._markers())):
                return start + len(turn)
        content = self.messages[i].get("content")
        last = content.rstrip()[-1:] if isinstance(content, str) and not self.messages[i].get("tool_calls") else ">"
        stand_in = next(letter for letter in STAND_INS if letter != last)
        other = self.text([*self.messages[:i], {"role": "assistant", "content": stand_in * 8}, *self.messages[i + 1 :]])
        shared = len(os.path.commonprefix([whole[::-1], other[::-1]]))
        if not other[: len(other) - shared].endswith(stand_in * 8):
            raise BadRow("the end of an assistant turn cannot be told in the chat template's rendering")
        stop = len(whole) - shared
        plain = PLAIN_MARKER.match(whole, stop)
        return stop + (self._special(whole, stop) or (plain.end() - stop if plain else 0))

    def _special(self, whole: str, at: int) -> int:
        """Length of the special token that the text has at this place, 0 if none."""
        return max((len(token) for token in self._markers() if whole.startswith(token, at)), default=0)

    def _markers(self) -> list[str]:
        return self.tokenizer.all_special_tokens
