"""The tokens of a chat request as an adapter would send it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from shared_engine.engine import Engine
from shared_engine.params import GenerationParams, template_variables


def count_request_tokens(
    engine: Engine,
    messages: Sequence[Mapping[str, Any]],
    params: GenerationParams,
    tools: Sequence[Mapping[str, Any]] | None = None,
) -> int:
    """``usage.prompt_tokens`` of ``engine.chat(messages, params, tools=tools)``; see ``Engine.count_tokens``."""
    return engine.count_tokens(messages, tools=tools, chat_template_kwargs=template_variables(params))
