"""Chat templates by name, for tokenizers that have none (``template = "chatml"``), and templates from files.

All of them mark the assistant's text with ``{% generation %}``, its end-of-turn marker included, so that the template itself says
what is trained.

chatml   <|im_start|>role … <|im_end|>, with tools and tool calls as JSON in XML tags, as Hermes and Qwen 2.5 write them
qwen     the same; no default system prompt
llama3   <|start_header_id|>role<|end_header_id|> … <|eot_id|>
mistral  [INST] … [/INST] … </s>; the system prompt goes before the first user message
gemma    <start_of_turn>user|model … <end_of_turn>; the system prompt goes before the first user message

The last three know no tools.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from surogate_core.errors import DataError

_CHATML = """{%- set system = messages[0].content if messages and messages[0].role == 'system' else '' -%}
{%- if tools -%}
{{- '<|im_start|>system\\n' + (system + '\\n\\n' if system else '') -}}
{{- '# Tools\\n\\nYou may call one or more functions to assist with the user query.\\n\\n' -}}
{{- 'You are provided with function signatures within <tools></tools> XML tags:\\n<tools>' -}}
{%- for tool in tools -%}{{- '\\n' + tool | tojson -}}{%- endfor -%}
{{- '\\n</tools>\\n\\nFor each function call, return a json object with function name and arguments within ' -}}
{{- '<tool_call></tool_call> XML tags:\\n<tool_call>\\n' -}}
{{- '{"name": <function-name>, "arguments": <args-json-object>}\\n</tool_call><|im_end|>\\n' -}}
{%- elif system -%}
{{- '<|im_start|>system\\n' + system + '<|im_end|>\\n' -}}
{%- endif -%}
{%- for message in messages -%}
{%- if message.role == 'system' and loop.first -%}
{%- elif message.role == 'tool' -%}
{{- '<|im_start|>user' if loop.first or messages[loop.index0 - 1].role != 'tool' else '' -}}
{{- '\\n<tool_response>\\n' + (message.content or '') + '\\n</tool_response>' -}}
{{- '<|im_end|>\\n' if loop.last or messages[loop.index0 + 1].role != 'tool' else '' -}}
{%- elif message.role == 'assistant' -%}
{{- '<|im_start|>assistant\\n' -}}{%- generation -%}{{- message.content or '' -}}
{%- for call in message.tool_calls or [] -%}
{{- ('\\n' if message.content or not loop.first else '') + '<tool_call>\\n' -}}
{%- set call = call.function or call -%}
{{- '{"name": "' + call.name + '", "arguments": ' + call.arguments | tojson + '}\\n</tool_call>' -}}
{%- endfor -%}
{{- '<|im_end|>' -}}{%- endgeneration -%}{{- '\\n' -}}
{%- else -%}
{{- '<|im_start|>' + message.role + '\\n' + (message.content or '') + '<|im_end|>\\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"""

_LLAMA3 = """{{- bos_token or '' -}}
{%- for message in messages -%}
{{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' -}}
{%- if message.role == 'assistant' -%}
{%- generation -%}{{- (message.content or '') | trim + '<|eot_id|>' -}}{%- endgeneration -%}
{%- else -%}
{{- (message.content or '') | trim + '<|eot_id|>' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}{%- endif -%}"""

_MISTRAL = """{{- bos_token or '' -}}
{%- set first = namespace(system='') -%}
{%- for message in messages -%}
{%- if message.role == 'system' -%}
{%- set first.system = message.content + '\\n\\n' -%}
{%- elif message.role == 'assistant' -%}
{%- generation -%}{{- ' ' + (message.content or '') | trim + (eos_token or '</s>') -}}{%- endgeneration -%}
{%- else -%}
{{- '[INST] ' + first.system + message.content + ' [/INST]' -}}
{%- set first.system = '' -%}
{%- endif -%}
{%- endfor -%}"""

_GEMMA = """{{- bos_token or '' -}}
{%- set first = namespace(system='') -%}
{%- for message in messages -%}
{%- if message.role == 'system' -%}
{%- set first.system = message.content + '\\n\\n' -%}
{%- elif message.role == 'assistant' -%}
{{- '<start_of_turn>model\\n' -}}
{%- generation -%}{{- (message.content or '') | trim + '<end_of_turn>' -}}{%- endgeneration -%}{{- '\\n' -}}
{%- else -%}
{{- '<start_of_turn>user\\n' + first.system + message.content | trim + '<end_of_turn>\\n' -}}
{%- set first.system = '' -%}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<start_of_turn>model\\n' -}}{%- endif -%}"""

TEMPLATES: dict[str, str] = {
    "chatml": _CHATML,
    "qwen": _CHATML,
    "llama3": _LLAMA3,
    "mistral": _MISTRAL,
    "gemma": _GEMMA,
}


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


def apply_template(template: str | None, tokenizer: Any) -> None:
    """Give the tokenizer the chat template of this name, if it names one: it is saved with the tokenizer, so that what serves
    the model renders as training did."""
    if template is not None:
        tokenizer.chat_template = named_template(template)
