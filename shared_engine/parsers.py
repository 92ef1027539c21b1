"""Model -> vLLM's tool-call and reasoning parser, from the chat template in the model's folder.

Covers the template formats this project has run; for others, name the parsers with engine_args.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# What a template must contain -> the parser for what such a model writes; the first match counts.
_TOOL_FORMATS = ((("<tool_call>", "arguments"), "hermes"),)
# A parser must agree with the template about what happens when a request does not mention thinking: one that waits
# for a </think> that never comes swallows the answer and leaves json_schema unenforced.
_REASONING_FORMATS = (
    (("<think>", "enable_thinking is defined and enable_thinking is false"), "qwen3"),  # on unless switched off
    (("<think></think>", "enable_thinking is defined and enable_thinking"), "deepseek_v3"),  # off unless switched on
)


def choose_parsers(model: str, engine_args: Mapping[str, Any]) -> dict[str, Any]:
    """Flags (as engine_args) for what ``model`` writes; the user's choice wins, an unknown format gets none."""
    template = chat_template(Path(model)) or ""
    chosen: dict[str, Any] = {}
    tool_parser = engine_args.get("tool_call_parser") or _first_match(_TOOL_FORMATS, template)
    if tool_parser is not None:
        chosen |= {"enable_auto_tool_choice": True, "tool_call_parser": tool_parser}
    reasoning_parser = _first_match(_REASONING_FORMATS, template)
    if reasoning_parser is not None:
        chosen["reasoning_parser"] = reasoning_parser
    return {**chosen, **engine_args}


def chat_template(folder: Path) -> str | None:
    """The chat template in a model's folder, None if there is none (or the model is not a folder)."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text()
    try:
        template = json.loads((folder / "tokenizer_config.json").read_text()).get("chat_template")
    except (OSError, ValueError):
        return None
    return template if isinstance(template, str) else None


def _first_match(formats: tuple[tuple[tuple[str, ...], str], ...], template: str) -> str | None:
    return next((parser for marks, parser in formats if all(mark in template for mark in marks)), None)
