"""A loaded tokenizer with its chat templates: from a text, or a conversation, to its tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from shared_engine.token_count.chat_template import ChatTemplate
from shared_engine.token_count.vllm_messages import doubt_of_messages, doubt_of_tools, template_tools


class DoubtError(Exception):
    """Why only the server counts exactly."""


class TokenCounter:
    """A loaded tokenizer, and its templates. Threads may share it.

    Args:
        templates: by name; of several, ``tool_use`` is the one for tools, ``default`` that for all else.
        content_format: ``string``, ``openai`` or ``auto``.
    """

    def __init__(
        self, tokenizer: Any, special_tokens: Mapping[str, str], templates: Mapping[str, str], content_format: str
    ) -> None:
        self._tokenizer = tokenizer
        self._special_tokens = special_tokens
        self._content_format: Any = None if content_format == "auto" else content_format
        self._texts = templates
        self._templates: dict[str, ChatTemplate] = {}

    def tokens(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def count_text(self, text: str) -> int:
        return len(self._tokenizer.encode(text))

    def count_conversation(
        self, messages: Sequence[Any], tools: Sequence[Any] | None, variables: Mapping[str, Any]
    ) -> int:
        doubt = doubt_of_messages(messages) or doubt_of_tools(tools or ())
        if doubt is not None:
            raise DoubtError(doubt)
        template = self._template("tool_use" if tools and "tool_use" in self._texts else "default")
        prompt = template.render(messages, template_tools(tools) if tools else None, variables, self._special_tokens)
        return len(self._tokenizer.encode(prompt, add_special_tokens=False))

    def _template(self, name: str) -> ChatTemplate:
        if name not in self._templates:
            if name not in self._texts:
                raise DoubtError("it has no chat template, or more than one to choose from")
            try:
                self._templates[name] = ChatTemplate(self._texts[name], self._content_format)
            except ImportError as exc:
                raise DoubtError(f"{exc.name} is not installed here: pip install jinja2") from exc
        return self._templates[name]
