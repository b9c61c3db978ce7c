"""Rendering conversations faster: transformers' template and sandbox without what it does around them.

transformers copies all messages before every rendering, and jinja's sandbox looks a dictionary's key up as an attribute first. Here
the messages are looked at once, the sandbox goes to the key at once where there is no such attribute, and the places of generation
marks come with the text. What cannot be shown to render equally is left to transformers: tokenizers with a way of their own, values
that are no plain JSON, thoughts (which it copies under several names), and a template of which one of the first conversations is
rendered otherwise than transformers renders it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from threading import Lock
from types import BuiltinMethodType
from typing import Any

from attrs import Factory, define
from jinja2.runtime import LoopContext
from jinja2.utils import Namespace

Marks = list[tuple[int, int]]
Quick = Callable[[Sequence[Any], bool], tuple[str, Marks | None]]
"""(messages, with a generation prompt) → text, and the characters [start, stop) between each pair of generation marks; None where
their places cannot be told."""

COMPARED = 16
"""Conversations of which each process compares the rendering with that of transformers, for each template."""
THOUGHTS = {"reasoning", "reasoning_content", "thinking"}
DICT = frozenset(dir(dict))
FORMATS = ("format", "format_map")
OF_CONTEXT = ("_block_vars", "_loop_vars")  # what compiled code passes for functions that ask for the context
STATE = (Namespace, LoopContext)
PLAIN = (str, int, float, bool, type(None))


def quick(tokenizer: Any, messages: Sequence[dict[str, Any]], tools: Any) -> Quick | None:
    """A renderer for ``messages`` and parts of them; None where it cannot be trusted."""
    from transformers import PreTrainedTokenizerBase

    own_way = type(tokenizer).apply_chat_template is not PreTrainedTokenizerBase.apply_chat_template
    if own_way or any(THOUGHTS & message.keys() for message in messages) or not plain([messages, tools]):
        return None
    template = _compiled(tokenizer.get_chat_template(None, tools=tools))
    constants = {**tokenizer.special_tokens_map, "tools": tools, "documents": None}

    def render(part: Sequence[Any], prompt: bool) -> tuple[str, Marks | None]:
        given = [{key: value for key, value in message.items() if value is not None} for message in part]
        return template.render({"messages": given, "add_generation_prompt": prompt, **constants})

    if template.compared < COMPARED:
        template.compared += 1
        wanted = tokenizer.apply_chat_template(messages, tools=tools, tokenize=False)
        template.equal &= render(messages, False)[0] == wanted
    return render if template.equal else None


@define
class Template:
    """A compiled template, and what the comparisons with transformers have shown so far."""

    compiled: Any
    marks: Marks = Factory(list)
    texts: list[str] = Factory(list)  # what stands between the marks
    length: int = 0  # of what is rendered so far
    compared: int = 0
    equal: bool = True
    alone: Lock = Factory(Lock)

    def render(self, values: dict[str, Any]) -> tuple[str, Marks | None]:
        """Raises what the template raises."""
        blocks = []
        with self.alone:
            self.marks, self.texts, self.length = [], [], 0
            for block in self.compiled.generate(values):
                blocks.append(block)
                self.length += len(block)
            marks, texts = self.marks, self.texts
        text = "".join(blocks)
        # Marks in a macro are met before the text around them is written.
        placed = all(text[start:stop] == marked for (start, stop), marked in zip(marks, texts, strict=True))
        return text, marks if placed else None

    def marked(self, caller: Callable[[], str]) -> str:
        """Takes the place of transformers' note of what is between two marks, which joins all that precedes each time."""
        text = caller()
        self.marks.append((self.length, self.length + len(text)))
        self.texts.append(text)
        return text


def plain(value: Any) -> bool:
    """Whether there is nothing but exact JSON types in ``value``."""
    kind = type(value)
    if kind is dict:
        return all(type(key) is str and plain(item) for key, item in value.items())
    return all(map(plain, value)) if kind is list else kind in PLAIN


@lru_cache(maxsize=16)
def _compiled(text: str) -> Template:
    from transformers.utils.chat_template_utils import _compile_jinja_template

    environment = _compile_jinja_template(text).environment.overlay()
    by_attribute, is_safe, call = environment.getattr, environment.is_safe_attribute, environment.call
    known: dict[tuple[type, str], bool] = {}

    def safe(value: Any, name: str, attribute: Any) -> bool:
        """The sandbox's answer, which depends on type and name alone."""
        place = type(value), name
        if place not in known:
            known[place] = is_safe(value, name, attribute)
        return known[place]

    def getattr_(value: Any, name: str) -> Any:
        kind = type(value)
        if kind is dict and name not in DICT:
            return value[name] if name in value else environment.undefined(obj=value, name=name)
        if (kind in STATE or (kind is str and name not in FORMATS)) and known.get((kind, name)):
            found = getattr(value, name)
            if kind is str or type(found) in PLAIN:  # neither is str.format, which the sandbox wraps
                return found
        return by_attribute(value, name)

    def call_(context: Any, function: Any, *args: Any, **kwargs: Any) -> Any:
        if type(function) is BuiltinMethodType and type(function.__self__) is str and function.__name__ not in FORMATS:
            return function(*args, **{name: value for name, value in kwargs.items() if name not in OF_CONTEXT})
        return call(context, function, *args, **kwargs)

    environment.getattr, environment.is_safe_attribute, environment.call = getattr_, safe, call_
    found = Template(environment.from_string(text))
    for extension in environment.extensions.values():
        if hasattr(extension, "_generation_support"):
            extension._generation_support = found.marked
    return found
