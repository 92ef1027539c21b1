"""Refuses what can't be sent before anything starts, naming its position. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args

from shared_engine.errors import InvalidInputError, VLLMError
from shared_engine.results import OnError

ON_ERROR = get_args(OnError)
ROLES = ("system", "developer", "user", "assistant", "tool")

Message = Mapping[str, Any]
"""A message in OpenAI's form: ``{"role": ..., "content": ...}``."""


def check_prompt(prompt: object, position: str = "prompt") -> str:
    """Return ``prompt`` unchanged if it is a non-empty string.

    Raises:
        InvalidInputError: naming ``position``.
    """
    if not isinstance(prompt, str):
        raise InvalidInputError(f"{position} must be a string, got {type(prompt).__name__}: {prompt!r:.80}")
    if not prompt:
        raise InvalidInputError(f"{position} is empty: a model needs at least one token to continue from")
    return prompt


def check_prompts(prompts: object) -> list[str]:
    """Return ``prompts`` as a list if all are prompts.

    Raises:
        InvalidInputError: naming the position.
    """
    if isinstance(prompts, (str, bytes)) or not isinstance(prompts, Sequence):
        raise InvalidInputError(f"prompts must be a list of strings, got {type(prompts).__name__}: {prompts!r:.80}")
    return [check_prompt(prompt, f"prompts[{index}]") for index, prompt in enumerate(prompts)]


def check_messages(messages: object, position: str = "messages") -> Sequence[Message]:
    """Return ``messages`` unchanged if they are a conversation in OpenAI's form.

    Raises:
        InvalidInputError: naming the position of what is wrong.
    """
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        raise InvalidInputError(
            f"{position} must be a list of messages such as {{'role': 'user', 'content': 'Hello'}}, "
            f"got {type(messages).__name__}: {messages!r:.80}"
        )
    if not messages:
        raise InvalidInputError(f"{position} is an empty conversation: it needs at least one message")
    for index, message in enumerate(messages):
        _check_message(message, f"{position}[{index}]")
    return messages


def _check_message(message: object, position: str) -> None:
    if not isinstance(message, Mapping):
        raise InvalidInputError(f"{position} must be a dict with role and content, got {type(message).__name__}")
    role = message.get("role")
    if role not in ROLES:
        raise InvalidInputError(f"{position} has the unknown role {role!r}; known: {', '.join(ROLES)}")
    content = message.get("content")
    if content is None and role == "assistant":
        return
    if not isinstance(content, (str, list)):
        raise InvalidInputError(f"{position}.content must be a string or a list of parts, got {type(content).__name__}")
    for part_index, part in enumerate(content if isinstance(content, list) else ()):
        if not isinstance(part, (str, Mapping)):
            raise InvalidInputError(
                f"{position}.content[{part_index}] must be a string or a dict, got {type(part).__name__}"
            )


def check_tools(tools: object, position: str = "tools") -> Sequence[Mapping[str, Any]]:
    """Return ``tools`` unchanged if they are a list of dicts; what those say is for the server to judge.

    Raises:
        InvalidInputError: naming the position of what is wrong.
    """
    if isinstance(tools, (str, bytes, Mapping)) or not isinstance(tools, Sequence):
        raise InvalidInputError(
            f"{position} must be a list of tools such as {{'type': 'function', 'function': {{...}}}}, "
            f"got {type(tools).__name__}: {tools!r:.80}"
        )
    for index, tool in enumerate(tools):
        if not isinstance(tool, Mapping):
            raise InvalidInputError(f"{position}[{index}] must be a dict, got {type(tool).__name__}: {tool!r:.80}")
    return tools


def check_items(items: object, name: str, on_error: str) -> tuple[list[str], dict[int, VLLMError]]:
    """Return ``items`` as a list if all are strings; unless ``on_error`` is ``raise``, also those that are not, by
    position, with an empty text in their place. Empty ones are for the model to judge: many can embed them.

    Raises:
        InvalidInputError: naming the position.
    """
    if on_error not in ON_ERROR:
        raise InvalidInputError(f"on_error = {on_error!r}: must be one of {', '.join(map(repr, ON_ERROR))}")
    if isinstance(items, (str, bytes)) or not isinstance(items, Sequence):
        raise InvalidInputError(f"{name} must be a list of strings, got {type(items).__name__}: {items!r:.80}")
    failures: dict[int, VLLMError] = {}
    for index, item in enumerate(items):
        try:
            check_text(item, f"{name}[{index}]" if on_error == "raise" else f"the {name.removesuffix('s')}")
        except InvalidInputError as exc:
            if on_error == "raise":
                raise
            failures[index] = exc
    return ["" if index in failures else item for index, item in enumerate(items)], failures


def check_text(text: object, position: str) -> str:
    """Return ``text`` unchanged if it is a string.

    Raises:
        InvalidInputError: naming ``position``.
    """
    if not isinstance(text, str):
        raise InvalidInputError(f"{position} must be a string, got {type(text).__name__}: {text!r:.80}")
    return text


def check_number(name: str, value: int | None, least: int) -> None:
    """Accept None and whole numbers from ``least`` on.

    Raises:
        InvalidInputError: naming the parameter.
    """
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
        raise InvalidInputError(f"{name} = {value!r}: must be a whole number, {least} or more")
