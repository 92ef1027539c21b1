"""What two answers of vLLM to the same request have alike."""

from __future__ import annotations

import json
import re
from typing import Any

_ITS_OWN = re.compile(rb'"(id|created|request_id|item_id|created_at|completed_at|sequence_number)":("[^"]*"|[0-9.]+)')
"""What each request has of its own."""
_PIECES = ("content", "text", "arguments", "partial_json", "delta", "reasoning", "thinking")
"""Fields of which each event of a stream has a piece."""


def without_its_own(answer: bytes) -> Any:
    """An answer's bytes; of a stream, its events.

    vLLM sends what there is whenever it comes to it: two tokens are one event or two, and the reason why the text ends
    comes with its last piece or alone, as the clock has it. Events of one kind that follow each other are one here.
    """
    answer = _ITS_OWN.sub(rb'"\1":0', answer)
    if not answer.startswith((b"data:", b"event:", b":")):
        return answer
    events: list[tuple[str, Any]] = []
    for event in answer.decode().split("\n\n"):
        head, data, text = event.partition("data: ")
        value = json.loads(text) if data and text.startswith("{") else None
        kind = event if value is None else f"{head}{value.get('type') or value.get('object')}"
        if events and value is not None and events[-1][0] == kind:
            events[-1] = (kind, _joined(events[-1][1], value))
        else:
            events.append((kind, value))
    return events


def _joined(first: Any, then: Any, name: str = "") -> Any:
    if first is None or then is None:
        return then if first is None else first
    if isinstance(first, dict) and isinstance(then, dict):
        return {each: _joined(first.get(each), then.get(each), each) for each in {**first, **then}}
    if isinstance(first, list) and isinstance(then, list):
        return _by_index(first, then)
    if isinstance(first, str) and isinstance(then, str) and name in _PIECES:
        return first + then
    return then


def _by_index(first: list[Any], then: list[Any]) -> list[Any]:
    """Choices and calls say which one they are a part of; tokens follow each other."""
    whole = list(first)
    for each in then:
        index = each.get("index") if isinstance(each, dict) else None
        at = next((at for at, old in enumerate(whole) if index is not None and old.get("index") == index), None)
        if at is None:
            whole.append(each)
        else:
            whole[at] = _joined(whole[at], each)
    return whole
