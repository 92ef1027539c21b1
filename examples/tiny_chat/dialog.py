"""One training or test conversation, and how it becomes text: the chat template that vLLM will use, then the answer."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from jinja2.sandbox import ImmutableSandboxedEnvironment

HERE = Path(__file__).parent
END_OF_TURN = "<|im_end|>"
Message = dict[str, Any]
Tool = dict[str, Any]


@dataclass(frozen=True)
class Example:
    """A conversation up to the assistant's turn, and the answer wanted.

    `forced` holds stretches of the answer that a decoding grammar would write (JSON keys, say): no loss on them, so
    the model learns what to put between them even where the prompt never mentions them. `plain` is text to be
    continued (the completions endpoint), without the chat template.
    """

    skill: str
    messages: list[Message]
    answer: str
    tools: list[Tool] = field(default_factory=list)
    thinking: bool = False
    forced: tuple[str, ...] = ()
    plain: bool = False

    def prompt(self) -> str:
        if self.plain:
            return str(self.messages[0]["content"])
        return render(self.messages, self.tools, thinking=self.thinking)


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


def system(text: str) -> Message:
    return {"role": "system", "content": text}


def tool_calls(*calls: tuple[str, dict[str, Any]], text: str = "") -> Message:
    """The assistant message that asks for `calls` (name, arguments)."""
    return {
        "role": "assistant",
        "content": text,
        "tool_calls": [{"type": "function", "function": {"name": n, "arguments": a}} for n, a in calls],
    }


def tool_result(text: str) -> Message:
    return {"role": "tool", "content": text}


def call_text(*calls: tuple[str, dict[str, Any]]) -> str:
    """The same calls as the model has to write them."""
    return "\n".join(
        f'<tool_call>\n{{"name": "{name}", "arguments": {json.dumps(arguments, ensure_ascii=False)}}}\n</tool_call>'
        for name, arguments in calls
    )


@cache
def _template() -> Any:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    return environment.from_string((HERE / "chat_template.jinja").read_text())


def render(messages: list[Message], tools: list[Tool], *, thinking: bool) -> str:
    """The prompt text, ending where the assistant's answer begins."""
    text: str = _template().render(
        messages=messages, tools=tools or None, add_generation_prompt=True, enable_thinking=thinking
    )
    return text


def scored_spans(example: Example, start: int) -> list[tuple[int, int]]:
    """The character ranges of prompt + answer + end of turn that the loss counts."""
    whole = example.answer + END_OF_TURN
    spans, position = [], 0
    for piece in example.forced:
        found = whole.index(piece, position)
        spans.append((start + position, start + found))
        position = found + len(piece)
    spans.append((start + position, start + len(whole)))
    return [span for span in spans if span[1] > span[0]]
