"""What is asked of ``generate``, ``/generate`` and ``/chat``, and the request to vLLM that it is. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from shared_engine.errors import InvalidInputError
from shared_engine.params import ChatFields, DefaultFields, GenerationParams, SamplingFields
from shared_engine.request.bodies import chat_body, completion_body
from shared_engine.request.checks import check_messages, check_prompt
from shared_engine.request.routes import CHAT, COMPLETIONS
from shared_engine.validation import say_unknown

_ELSEWHERE = ("lora", "model", "extra_body")
PARAMETERS = tuple(
    name
    for name in (
        *DefaultFields.model_fields, *SamplingFields.model_fields, *ChatFields.model_fields,
        "n", "continue_final_message", "response_format",
    )
    if name not in _ELSEWHERE
)  # fmt: skip
"""What ``params`` may have; the model is named beside it."""


class Generate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One prompt, or one conversation."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Any] | None = None
    params: dict[str, Any] = {}
    tools: list[dict[str, Any]] | None = None
    tool_choice: Any = None
    stream: bool = False
    keep_alive: Any = None


class GenerateMany(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Many prompts."""

    prompts: list[Any]
    model: str | None = None
    params: dict[str, Any] = {}
    keep_alive: Any = None


class ChatMany(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Many conversations, with the same tools."""

    conversations: list[Any]
    model: str | None = None
    params: dict[str, Any] = {}
    tools: list[dict[str, Any]] | None = None
    tool_choice: Any = None
    keep_alive: Any = None


def params_of(given: Mapping[str, Any]) -> GenerationParams:
    """
    Raises:
        InvalidInputError: a value is out of range, or a name is unknown.
    """
    for name in given:
        if name in _ELSEWHERE:
            raise InvalidInputError(f"params: {name}: name the model, or the adapter, as model; no other field is sent")
        if name not in PARAMETERS:
            raise InvalidInputError(f"params: {say_unknown('parameter', name, PARAMETERS)}")
    return GenerationParams(**given)


def of_prompt(
    prompt: object, params: GenerationParams, context_window: int | None, *, stream: bool = False
) -> tuple[str, dict[str, Any]]:
    """The route of vLLM's, and its body.

    Args:
        context_window: in place of max_tokens, where it is not given: the route would stop after 16 tokens, where it
            stops at the model's limit.

    Raises:
        InvalidInputError: it is not one.
    """
    body = completion_body(check_prompt(prompt), params, stream=stream)
    return COMPLETIONS, {"max_tokens": context_window, **body}


def of_messages(
    messages: Any,
    params: GenerationParams,
    tools: Sequence[Mapping[str, Any]] | None,
    tool_choice: Any,
    *,
    stream: bool = False,
) -> tuple[str, dict[str, Any]]:
    """The same of a conversation.

    Raises:
        InvalidInputError: it is none.
    """
    checked = check_messages(messages)
    return CHAT, chat_body(checked, params, tools=tools, tool_choice=tool_choice, stream=stream)
