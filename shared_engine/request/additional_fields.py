"""What an answer has beside what our results name: token ids, prompt_logprobs, metrics, fields of other servers. Pure.

Kept as the server sent it. What says nothing (null, an empty list or object) is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

Fields = dict[str, Any]

_OF_ANSWERS = frozenset(("id", "object", "created", "model", "choices", "usage", "error"))
_OF_CHOICES = frozenset(("index", "text", "message", "delta", "finish_reason", "stop_reason", "logprobs"))
_OF_MESSAGES = frozenset(
    ("role", "content", "reasoning", "reasoning_content", "reasoning_text", "thinking", "tool_calls")
)
_OF_CALLS = frozenset(("id", "index", "type", "function"))
_OF_FUNCTIONS = frozenset(("name", "arguments"))
_OF_USAGE = frozenset(("prompt_tokens", "completion_tokens", "total_tokens", "reasoning_tokens"))
_OF_DETAILS = {
    "prompt_tokens_details": frozenset(("cached_tokens",)),
    "completion_tokens_details": frozenset(("reasoning_tokens",)),
}
_IN_PIECES = frozenset(("token_ids",))
"""Of a stream, each piece has its own; of other lists it is not known, so what comes tells."""


# Nearly every event of a stream is of this form, in which there is nothing else.
_NULL = msgspec.Raw(b"null")


class _PlainFunction(msgspec.Struct, forbid_unknown_fields=True):
    name: msgspec.Raw = _NULL
    arguments: msgspec.Raw = _NULL


class _PlainCall(msgspec.Struct, forbid_unknown_fields=True):
    id: msgspec.Raw = _NULL
    index: msgspec.Raw = _NULL
    type: msgspec.Raw = _NULL
    function: _PlainFunction | None = None


class _PlainMessage(msgspec.Struct, forbid_unknown_fields=True):
    role: msgspec.Raw = _NULL
    content: msgspec.Raw = _NULL
    reasoning: msgspec.Raw = _NULL
    reasoning_content: msgspec.Raw = _NULL
    tool_calls: list[_PlainCall] | None = None


class _PlainChoice(msgspec.Struct, forbid_unknown_fields=True):
    index: int = 0
    text: msgspec.Raw = _NULL
    message: _PlainMessage | None = None
    delta: _PlainMessage | None = None
    finish_reason: msgspec.Raw = _NULL
    stop_reason: msgspec.Raw = _NULL
    logprobs: msgspec.Raw = _NULL
    token_ids: None = None
    prompt_token_ids: None = None


class _Plain(msgspec.Struct, forbid_unknown_fields=True):
    id: str = ""
    object: str = ""
    created: int = 0
    model: str = ""
    choices: list[_PlainChoice] = []
    usage: None = None
    system_fingerprint: None = None
    prompt_token_ids: None = None


_plain = msgspec.json.Decoder(_Plain)


def of_event(data: bytes, choices: int) -> tuple[Fields, list[Fields]]:
    """As ``of_answer``, of one event of a stream: nearly all have none, which shows soon.

    Args:
        choices: how many are in it.
    """
    try:
        _plain.decode(data)
    except msgspec.DecodeError:
        return of_answer(data)
    return {}, [{}] * choices


def of_answer(data: bytes) -> tuple[Fields, list[Fields]]:
    """Those beside the choices (under ``usage`` those of the usage); and those of each choice and its message.

    Args:
        data: JSON that was understood as an answer.
    """
    raw = msgspec.json.decode(data)
    if not isinstance(raw, Mapping):
        return {}, []
    sent = raw.get("choices")
    return _beside_choices(raw), [_of_choice(choice) for choice in sent] if isinstance(sent, list) else []


def _beside_choices(raw: Mapping[str, Any]) -> Fields:
    found = _beside(raw, _OF_ANSWERS)
    usage = raw.get("usage")
    if isinstance(usage, Mapping):
        counts = _beside(usage, _OF_USAGE)
        for place, own in _OF_DETAILS.items():
            details = counts.pop(place, None)
            more = _beside(details, own) if isinstance(details, Mapping) else {}
            counted = {name: count for name, count in more.items() if count}
            counts |= {place: counted} if counted else {}
        found |= {"usage": counts} if counts else {}
    return found


def _of_choice(raw: Any) -> Fields:
    if not isinstance(raw, Mapping):
        return {}
    found = _beside(raw, _OF_CHOICES)
    message = raw.get("delta") or raw.get("message")
    if not isinstance(message, Mapping):
        return found
    calls = message.get("tool_calls")
    of_calls = [more for call in calls if (more := _of_call(call))] if isinstance(calls, list) else []
    return found | _beside(message, _OF_MESSAGES) | ({"tool_calls": of_calls} if of_calls else {})


def _of_call(raw: Any) -> Fields:
    """Those of a call, such as another provider's signature of it, with what tells which call it is."""
    if not isinstance(raw, Mapping):
        return {}
    found, function = _beside(raw, _OF_CALLS), raw.get("function")
    more = _beside(function, _OF_FUNCTIONS) if isinstance(function, Mapping) else {}
    found |= {"function": more} if more else {}
    return {**{name: raw[name] for name in ("id", "index") if raw.get(name) is not None}, **found} if found else {}


def _beside(raw: Mapping[str, Any], known: frozenset[str]) -> Fields:
    return {name: value for name, value in raw.items() if name not in known and value not in (None, [], {}, "")}


def merged(before: Fields, now: Fields) -> Fields:
    """The fields of two pieces of a stream as one. Lists go on, unless they begin with what there is; objects are
    merged by name; of all else the last value counts.
    """
    return {**before, **{name: _merged(name, before.get(name), value) for name, value in now.items()}}


def _merged(name: str, before: Any, now: Any) -> Any:
    if isinstance(before, list) and isinstance(now, list):
        is_whole = name not in _IN_PIECES and now[: len(before)] == before
        return now if is_whole else before + now
    if isinstance(before, dict) and isinstance(now, dict):
        return merged(before, now)
    return now
