"""Messages → tokens and weights, through the chat template.

The text is always the template's own rendering of the whole conversation, so that training ids equal serving ids. What is left
to find is which part of it each assistant turn is:

* A template with ``{% generation %}`` marks says so itself.
* Otherwise turn i starts where the rendering of the messages before it, with a generation prompt, ends: there the model starts
  to write. It ends where the rendering of the messages up to and with it ends. Templates that render an earlier turn otherwise
  than a last one (Qwen 3 drops its thoughts) make the second no prefix of the whole; then the whole is rendered again with
  another text in that turn, and the part that both share at the end is what follows it.

Every piece found is compared with the whole, character by character. Where it does not fit, the sample is refused with a reason,
never guessed. The marker that ends a turn is trained with it; white space behind the marker is not, unless marks cover it.

Without a chat template (``use_chat_template = false``) the text is the contents of the messages, one after the other with nothing
between them, and EOS after each of the assistant's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from attrs import evolve, frozen
from numpy.typing import NDArray

from surogate_core.contracts import Sample
from surogate_core.errors import BadRow, DataError
from surogate_pipeline_packed.agents import AGENTS
from surogate_pipeline_packed.heads import encoded
from surogate_pipeline_packed.images.sight import Sight, look
from surogate_pipeline_packed.plugin import Options
from surogate_pipeline_packed.scale import LossScale, Span, told
from surogate_pipeline_packed.turns import Message, View, contents

Stretch = tuple[int, int, float] | Span
ROLES = {"user": "user turn", "tool": "tool result"}


def weigh(tokenizer: Any, text: str, spans: Sequence[Stretch], kind: str, marker: str, special: bool = False) -> Sample:
    """Tokenise ``text`` as it is and weigh each token by the last span in which it starts, 0 outside of them. A span may say why it
    weighs that much.

    ``special`` is for texts without a template, where no marker keeps an answer apart from what precedes it: the tokens that the
    tokenizer adds are added, and an answer's first token may begin in white space before the answer (GPT-2's " yes"). Where it
    begins in other text, BadRow is raised: it would be trained wholly or not at all.
    """
    ids, starts, ends = encoded(tokenizer, text, special)
    values = np.array([0.0, *(span[2] for span in spans)], dtype=np.float32)
    owners: NDArray[np.int64] = np.zeros(len(ids), dtype=np.int64)  # of each token, the number of its span from 1
    ascending = not special and bool((starts[1:] >= starts[:-1]).all())
    borders = np.searchsorted(starts, [span[:2] for span in spans]).tolist() if ascending and spans else ()
    for owner, (first, last) in enumerate(borders, 1):
        owners[first:last] = owner
    for owner, (start, stop, weight, *_) in enumerate(() if ascending else spans, 1):
        inside = (starts >= start) & (starts < stop)
        for i in np.flatnonzero((starts < start) & (ends > start)) if special and weight else ():
            inside[i] = values[owners[i]] > 0 or text[starts[i] : start].isspace()
            if not inside[i]:
                raise BadRow("the first token of an answer begins in the text before it: put white space between them")
        owners[inside] = owner
    whys = ["", *(span[3] if len(span) > 3 else told(span[2], marker) for span in spans)]
    changes = [0, *(np.flatnonzero(owners[1:] != owners[:-1]) + 1).tolist()] if len(owners) else []
    reasons = [(at, whys[owners[at]] or told(0, "outside of the spans")) for at in changes]
    return Sample(input_ids=ids, weights=values[owners], kind=kind, marker=marker, reasons=reasons)


@frozen
class Renderer:
    """``render`` of a FormatContext: messages → Sample."""

    tokenizer: Any
    own: Options
    scale: LossScale
    markers: tuple[str, ...]
    sight: Sight | None = None

    @classmethod
    def of(cls, own: Options, tokenizer: Any, sight: Sight | None = None) -> Renderer:
        markers = tuple(getattr(tokenizer, "all_special_tokens", ()))  # `text` asks less of a tokenizer
        return cls(tokenizer, own, LossScale.of(own.loss_scale), markers, sight)

    def check(self) -> None:
        """Raises DataError when the tokenizer cannot render conversations."""
        name = getattr(self.tokenizer, "name_or_path", "the tokenizer")
        if self.own.use_chat_template and not self.tokenizer.chat_template:
            raise DataError("the tokenizer has no chat template", name, 'set template = "chatml", another name, or a Jinja file')
        if not self.own.use_chat_template and self.tokenizer.eos_token is None:
            raise DataError("the tokenizer has no EOS token, with which answers end", name, "set eos_token")
        if not self.tokenizer.is_fast:
            raise DataError(
                "the tokenizer cannot say where its tokens are in the text", name, "use its fast version (tokenizer.json)"
            )

    def __call__(self, messages: Sequence[Message], tools: Sequence[Any] | None = None, kind: str = "conversation") -> Sample:
        """Render and weigh a conversation of OpenAI messages. ``loss`` in a message (bool or number) is the weight of its text,
        whatever ``loss_scale`` says.

        Raises BadRow: no messages, a rendering that fails, or turns that cannot be told apart.
        """
        self.check()
        if not messages:
            raise BadRow("no messages")
        messages, pictures = look(messages, self.sight, self.own)
        if self.own.system is not None and messages[0].get("role") != "system":
            messages = [{"role": "system", "content": self.own.system}, *messages]
        if self.own.agent_template:
            messages, tools = AGENTS[self.own.agent_template].rewrite(messages, tools), None
        weights = turn_weights(messages, self.scale.base)
        if not self.own.use_chat_template:
            return self._plain(messages, tools, weights, kind)
        opening = self.own.response_prefix or ""
        shown = [_shown(message, opening) for message in messages]
        view = View(self.tokenizer, shown, list(tools) if tools else None, self.markers, opening)
        whole = view.prefix(len(shown))
        view.check(whole)
        rest = self.scale.background
        wanted = [i for i, weight in weights.items() if weight != rest or (given(messages[i]) and self.scale.patterns)]
        turns = view.turns(whole, wanted) if wanted else {}
        whys = self._whys(messages, weights)
        spans: list[Span] = [(0, len(whole), rest, told(rest, "template text, tools"))]
        spans += [(start, stop, rest, whys[i]) for i, start, stop in contents(shown, whole, turns)]
        spans += [(start, stop, rest, whys[i]) for i, (start, stop) in turns.items() if i not in wanted]
        spans += self.scale.matches(whole, 0, len(whole), rest, "text")
        for i in wanted:
            spans += self._turn(whole, *turns[i], weights[i], messages[i], whys[i])
        sample = weigh(self.tokenizer, whole, spans, kind, "assistant text")
        if opening:
            self._check_openings(whole, [span[0] for span in spans if span[2] and whole.endswith(opening, 0, span[0])])
        return self.sight.expanded(sample, pictures) if self.sight is not None else sample

    def _check_openings(self, text: str, answers: Sequence[int]) -> None:
        """Answers whose first token begins in ``response_prefix``: the model never writes such a token behind it."""
        offsets = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)["offset_mapping"]
        if not {*answers} <= {start for start, _ in offsets}:
            raise BadRow("the first token of an answer begins in response_prefix: end it with no white space")

    def _turn(self, text: str, start: int, stop: int, weight: float, message: Message, why: str) -> Sequence[Span]:
        whole: Span = (start, stop, weight, why)
        return [whole] if given(message) else [whole, *self.scale.matches(text, start, stop, weight, why.partition(":")[0])]

    def _whys(self, messages: Sequence[Message], weights: Mapping[int, float]) -> list[str]:
        """What each message is, and which rule gave it its weight."""
        found, base = [], self.scale.base
        numbers = {i: number for number, i in enumerate(weights, 1)}
        for i, message in enumerate(messages):
            if i not in weights:
                role = str(message.get("role"))
                found.append(told(self.scale.background, ROLES.get(role, f"{role} message"), base if base == "all" else ""))
                continue
            rule = "loss of the message" if given(message) else base
            if rule == "last_round" and not weights[i]:
                rule = "last_round: an earlier turn"
            found.append(told(weights[i], f"assistant turn {numbers[i]}", rule))
        return found

    def _plain(self, messages: Sequence[Message], tools: Sequence[Any] | None, weights: dict[int, float], kind: str) -> Sample:
        """Plain concatenation."""
        if tools or any(message.get("tool_calls") for message in messages):
            raise BadRow("tools have no place without a chat template: set agent_template")
        text = ""
        rest: list[Span] = []
        spans: list[Span] = []
        end = self.tokenizer.eos_token
        for i, (message, why) in enumerate(zip(messages, self._whys(messages, weights), strict=True)):
            if i not in weights:
                rest.append((len(text), len(text) + len(message["content"]), self.scale.background, why))
                text += message["content"]
                continue
            text += self.own.response_prefix or ""
            start = len(text)
            thought = message.get("reasoning_content")
            text += (f"<think>\n{thought}\n</think>\n\n" if thought else "") + message["content"] + end
            spans += self._turn(text, start, len(text), weights[i], message, why)
        around: Span = (0, len(text), self.scale.background, told(self.scale.background, "response_prefix"))
        rest += self.scale.matches(text, 0, len(text), self.scale.background, "text")
        sample = weigh(self.tokenizer, text, [around, *rest, *spans], kind, "assistant text", special=True)
        if text.endswith(end) and list(sample.input_ids[-2:]) == [self.tokenizer.eos_token_id] * 2:  # the tokenizer adds EOS itself
            return evolve(sample, input_ids=sample.input_ids[:-1], weights=sample.weights[:-1])
        return sample


def _shown(message: Message, opening: str) -> dict[str, Any]:
    """The message as the template gets it: without ``loss``, and an answer with the text that it is given to start with."""
    shown = {key: value for key, value in message.items() if key != "loss"}
    if opening and shown.get("role") == "assistant" and not str(shown.get("content") or "").startswith(opening):
        shown["content"] = opening + (shown.get("content") or "")
    return shown


def background(loss_scale: str) -> float:
    """Weight of text that is not the assistant's."""
    return LossScale.of(loss_scale).background


def given(message: Message) -> bool:
    """Whether the message says itself how much it weighs."""
    return message.get("loss") is not None


def turn_weights(messages: Sequence[Message], base: str) -> dict[int, float]:
    """Weight of each assistant message, by its index. ``loss`` in a message overrides the base of ``loss_scale``."""
    last_user = max((i for i, message in enumerate(messages) if message.get("role") == "user"), default=-1)
    weights = {}
    for i, message in enumerate(messages):
        loss = message.get("loss")
        if loss is not None and not (isinstance(loss, (bool, int, float)) and 0 <= loss < float("inf")):
            raise BadRow("loss of a message is neither true, false nor a number from 0 on")
        if message.get("role") == "assistant":
            weights[i] = float(loss if loss is not None else base != "last_round" or i > last_user)
        elif loss is not None and bool(loss) != (base == "all"):
            raise BadRow("loss on a message that is not the assistant's")
    return weights
