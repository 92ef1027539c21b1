"""Model -> vLLM's tool-call and reasoning parser, from the chat template in the model's folder.

Covers the template formats this project has run; for others, name the parser with engine_args.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# What a template must contain -> the parser for what such a model writes.
_TOOL_FORMATS = ((("<tool_call>", "arguments"), "hermes"),)


def choose_parsers(model: str, engine_args: Mapping[str, Any]) -> dict[str, Any]:
    """Flags (as engine_args) that let ``model`` call tools; empty where the format is unknown or the user chose."""
    if "tool_call_parser" in engine_args:
        return {} if "enable_auto_tool_choice" in engine_args else {"enable_auto_tool_choice": True}
    template = chat_template(Path(model))
    for marks, parser in _TOOL_FORMATS:
        if template is not None and all(mark in template for mark in marks):
            return {"enable_auto_tool_choice": True, "tool_call_parser": parser}
    return {}


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
