"""Chat templates by name, for tokenizers that have none (``template = "chatml"``), and templates from files.

All of them mark the assistant's text with ``{% generation %}``, its end-of-turn marker included, so that the template itself says
what is trained. They render what the published templates of these models render; README.md has the table.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from surogate_core.errors import DataError

_PLACE = Path(__file__).with_name("chat_templates")

TEMPLATES: dict[str, str] = {path.stem: path.read_text(encoding="utf-8") for path in sorted(_PLACE.glob("*.jinja"))}
TEMPLATES["qwen"] = TEMPLATES["chatml"]


def named_template(name: str) -> str:
    """The template of this name, or the text of the Jinja file at this path. Raises DataError when there is neither."""
    if name in TEMPLATES:
        return TEMPLATES[name]
    path = Path(name).expanduser()
    if path.is_file():
        return path.read_text(encoding="utf-8")
    raise DataError(
        "no chat template has this name", f'template = "{name}"', f"use {', '.join(TEMPLATES)}, or the path of a Jinja file"
    )


def apply_template(template: str | None, tokenizer: Any, response_prefix: str | None = None) -> None:
    """Give the tokenizer the chat template of this name, if it names one, and a generation prompt that ends in ``response_prefix``:
    it is saved with the tokenizer, so that what serves the model renders as training did."""
    if template is not None:
        tokenizer.chat_template = named_template(template)
    current = getattr(tokenizer, "chat_template", None)
    if response_prefix and current:
        several = isinstance(current, dict)
        tokenizer.chat_template = (
            {name: _prompting(text, response_prefix) for name, text in current.items()}
            if several
            else _prompting(current, response_prefix)
        )


def _prompting(template: str, text: str) -> str:
    """The template with a generation prompt that ends in ``text``. Jinja drops one line break at the end of a template."""
    addition = "{{ " + json.dumps(text) + " if add_generation_prompt else '' }}"
    return template if template.endswith(addition) else template.removesuffix("\n") + addition
