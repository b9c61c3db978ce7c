"""Tools as text, for models whose chat template knows no tools (``agent_template``).

The tools are described in the system message, calls are written into the assistant's text, and results come back as user messages.

hermes  the form of Hermes 2 Pro and Qwen 2.5: JSON in <tools>, <tool_call> and <tool_response>; results in a row share a message
react   ReAct (Yao et al. 2022, arXiv:2210.03629): Thought, Action, Action Input, Observation; one call a turn
llama3  the form of Llama 3.1's custom tools: a call is {"name": …, "parameters": …}, results come as JSON; one call a turn
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from attrs import frozen

from surogate_core.errors import BadRow

Message = Mapping[str, Any]


@frozen
class Agent:
    """How one form writes tools, calls, and the results that come in a row."""

    tools: Callable[[Sequence[Mapping[str, Any]]], str]
    calls: Callable[[Sequence[tuple[str, Any]]], str]
    results: Callable[[Sequence[str]], str]

    def rewrite(self, messages: Sequence[Message], tools: Sequence[Any] | None) -> list[Message]:
        """The same conversation without tools, calls and results of their own. Raises BadRow where the form cannot say it."""
        found: list[Message] = []
        pending: list[str] = []
        for message in messages:
            if message.get("role") == "tool":
                if "loss" in message and message["loss"] is not None:
                    raise BadRow("loss on a message that is not the assistant's")
                pending.append(message["content"])
                continue
            self._flush(pending, found)
            found.append(self._spoken(message))
        self._flush(pending, found)
        return self._introduced(found, tools) if tools else found

    def _flush(self, pending: list[str], found: list[Message]) -> None:
        if pending:
            found.append({"role": "user", "content": self.results(pending)})
            pending.clear()

    def _spoken(self, message: Message) -> Message:
        if not message.get("tool_calls"):
            return message
        rest = {key: value for key, value in message.items() if key != "tool_calls"}
        functions = [call.get("function", call) for call in message["tool_calls"]]
        text = self.calls([(function["name"], function.get("arguments", {})) for function in functions])
        return {**rest, "content": f"{message['content']}\n{text}" if message.get("content") else text}

    def _introduced(self, messages: list[Message], tools: Sequence[Any]) -> list[Message]:
        text = self.tools(tools)
        if messages and messages[0].get("role") == "system":
            first = messages[0]
            return [{**first, "content": f"{first['content']}\n\n{text}" if first["content"] else text}, *messages[1:]]
        return [{"role": "system", "content": text}, *messages]


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _one(calls: Sequence[tuple[str, Any]], form: str) -> tuple[str, Any]:
    if len(calls) > 1:
        raise BadRow(f'agent_template "{form}" has one tool call in a message')
    return calls[0]


def _hermes_tools(tools: Sequence[Mapping[str, Any]]) -> str:
    return (
        "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
        "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n"
        + "\n".join(_json(tool) for tool in tools)
        + "\n</tools>\n\nFor each function call, return a json object with function name and arguments within "
        "<tool_call></tool_call> XML tags:\n<tool_call>\n"
        '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
    )


def _hermes_calls(calls: Sequence[tuple[str, Any]]) -> str:
    return "\n".join(f'<tool_call>\n{{"name": "{name}", "arguments": {_json(given)}}}\n</tool_call>' for name, given in calls)


def _hermes_results(results: Sequence[str]) -> str:
    return "\n".join(f"<tool_response>\n{result}\n</tool_response>" for result in results)


def _react_tools(tools: Sequence[Mapping[str, Any]]) -> str:
    functions = [tool.get("function", tool) for tool in tools]
    described = [
        f"{function.get('name')}: {function.get('description', '')} Parameters: {_json(function.get('parameters', {}))}"
        for function in functions
    ]
    names = ", ".join(str(function.get("name")) for function in functions)
    return (
        "Answer the following questions as best you can. You have access to the following tools:\n\n"
        + "\n\n".join(described)
        + "\n\nUse the following format:\n\n"
        "Question: the input question you must answer\n"
        "Thought: you should always think about what to do\n"
        f"Action: the action to take, should be one of [{names}]\n"
        "Action Input: the input to the action\n"
        "Observation: the result of the action\n"
        "... (this Thought/Action/Action Input/Observation can be repeated zero or more times)\n"
        "Thought: I now know the final answer\n"
        "Final Answer: the final answer to the original input question\n\nBegin!"
    )


def _react_calls(calls: Sequence[tuple[str, Any]]) -> str:
    name, given = _one(calls, "react")
    return f"Action: {name}\nAction Input: {_json(given)}"


def _react_results(results: Sequence[str]) -> str:
    return "\n".join(f"Observation: {result}" for result in results)


def _llama3_tools(tools: Sequence[Mapping[str, Any]]) -> str:
    return (
        "You have access to the following functions. To call a function, please respond with JSON for a function call. "
        'Respond in the format {"name": function name, "parameters": dictionary of argument name and its value}. '
        "Do not use variables.\n\n" + "\n\n".join(json.dumps(tool, indent=4, ensure_ascii=False) for tool in tools)
    )


def _llama3_calls(calls: Sequence[tuple[str, Any]]) -> str:
    name, given = _one(calls, "llama3")
    return f'{{"name": "{name}", "parameters": {_json(given)}}}'


def _llama3_results(results: Sequence[str]) -> str:
    return "\n".join(_json(result) for result in results)


AGENTS: dict[str, Agent] = {
    "hermes": Agent(_hermes_tools, _hermes_calls, _hermes_results),
    "react": Agent(_react_tools, _react_calls, _react_results),
    "llama3": Agent(_llama3_tools, _llama3_calls, _llama3_results),
}
