"""What servers have refused of conversations, learned from what they said: once for each server and model.

For servers whose chat template can't be seen, such as remote ones.
"""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Awaitable, Callable, Sequence
from functools import lru_cache
from typing import TypeVar

from shared_engine.conversations.traits import MERGED, NONE, Trait
from shared_engine.errors import ContextLengthError, RequestError
from shared_engine.request.bodies import Request, without_traits
from shared_engine.request.endpoint import Connection
from shared_engine.request.green_threads import held
from shared_engine.request.refusals import NOT_LOADED

T = TypeVar("T")
_log = logging.getLogger("shared_engine")

MAX_KNOWN = 1000
_known: dict[tuple[str, str], Trait] = {}
_lock = threading.Lock()

# Tried in this order, each beside those before it.
_STEPS = (
    MERGED | Trait.EMPTY,
    Trait.OPENING | Trait.ENDING | Trait.USER_AFTER_TOOL | Trait.UNPAIRED | Trait.CALL_IDS,
    Trait.SYSTEM,
    Trait.TOOLS,
)
# Chat templates say what they want: "Conversation roles must alternate", "System role not supported", "No user query
# found in messages", "Tool call IDs should be alphanumeric"; mistral-common: "Expected last role User or Tool".
# mlx_lm says it with status 404, llama.cpp with 500.
_ABOUT_ROLES = re.compile(
    r"\broles?\b|alternat|system message|system prompt|user (?:query|message)|assistant message|tool.call.ids?\b|"
    r"tool output|function calls and|chat template|jinja",
    re.IGNORECASE,
)
_IN_WORDS = {
    Trait.SYSTEM: "a system message (it is put before what the user says first)",
    Trait.LATE_SYSTEM: "a late or second system message (it is moved to the front)",
    Trait.NEIGHBOURS: "two messages of one role in a row (they are joined)",
    Trait.OPENING: "a conversation that the user does not begin (the user's words are put before it)",
    Trait.ENDING: "a conversation that ends with the assistant (the user's words are put behind it)",
    Trait.EMPTY: "a message of the assistant's without text (it is left out)",
    Trait.TOOLS: "calls and results of tools (they are written as text)",
    Trait.USER_AFTER_TOOL: "the user's words after a tool's result (the assistant's are put between them)",
    Trait.UNPAIRED: "a call without a result, or a result without a call (they are told so, or as text)",
    Trait.CALL_IDS: "such ids of calls (others are made)",
    Trait.MEDIA: "images, sound or video of tools and of earlier turns (a note takes their place)",
}
_STATUSES = (400, 404, 422, 500)
# vllm/multimodal/registry.py, multimodal/processing/{context,processor}.py
_ABOUT_MEDIA = re.compile(
    r"is not a multimodal model|At most 0 (?:image|audio|video)|Failed to apply prompt replacement|"
    r"Unexpected item type in content|"
    r"(?:images?|audio|videos?|multimodal) (?:input )?(?:is|are) not supported|does not support (?:image|audio|video)",
    re.IGNORECASE,
)


async def sent_in_form(
    request: Request, connection: Connection, send: Callable[[Request, Connection], Awaitable[T]]
) -> T:
    """What ``send`` gives; of a conversation that the server's chat template refuses, in a form that it takes.

    Nothing of an answer has come by then. What a server has refused is not sent to it a second time.

    Raises:
        RequestError: the first refusal, where the server takes no form of it; any other error.
    """
    refused, first = refused_before(connection), None
    while True:
        try:
            answer = await send(without_traits(request, refused), connection)
        except RequestError as exc:
            step = next_step(request, refused, exc)
            if step is not None:
                refused, first = refused | step, first or exc
                continue
            if first is not None and refusable(exc):
                raise first from None
            raise
        if first is not None:
            remember(connection, request.traits & refused, first)
        return answer


def next_step(request: Request, refused: Trait, refusal: RequestError) -> Trait | None:
    """What to leave out next, beside what is ``refused``, after this refusal; None where nothing may help."""
    steps = refusable(refusal) if request.traits else ()
    sent = without_traits(request, refused).body if steps else b""
    return next((step for step in steps if without_traits(request, refused | step).body != sent), None)


def refusable(error: RequestError) -> Sequence[Trait]:
    """What the error may be about, in the order in which to try without it; empty for an error about other things."""
    if error.status not in _STATUSES or isinstance(error, ContextLengthError):
        return ()
    if _ABOUT_MEDIA.search(error.message) or NOT_LOADED.search(error.message):
        return (Trait.MEDIA,)
    if not _ABOUT_ROLES.search(error.message):
        return ()
    tried = NONE
    steps = []
    for step in _STEPS:
        tried |= step
        steps.append(tried)
    return steps


def refused_before(connection: Connection) -> Trait:
    """What this server has refused of this model's conversations, as far as it was seen."""
    return _known.get(_key(connection), NONE)


def remember(connection: Connection, refused: Trait, said: RequestError) -> None:
    """That the server takes the conversation without what it ``refused``; not what only one conversation had, such as a
    link that leads nowhere any more.
    """
    if NOT_LOADED.search(said.message):
        return
    key = _key(connection)
    with held(_lock):
        before = _known.pop(key, NONE)
        _known[key] = before | refused
        while len(_known) > MAX_KNOWN:
            del _known[next(iter(_known))]
    if refused & ~before:
        say_reshaped(f"{connection.model} at {connection.client.where}", refused & ~before, said.message)


@lru_cache(maxsize=MAX_KNOWN)
def say_reshaped(model: str, refused: Trait, reason: str) -> None:
    """In the log, once."""
    _log.info(
        '%s does not take %s: %s; merge_messages="never" sends all as it is',
        model,
        "; ".join(_IN_WORDS[trait] for trait in refused),
        reason[:300],
    )


def _forget_in_child() -> None:
    """A thread of the parent may have held the lock."""
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_forget_in_child)


def _key(connection: Connection) -> tuple[str, str]:
    return connection.client.where, connection.model
