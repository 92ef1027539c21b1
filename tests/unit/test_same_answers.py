"""Two streams of vLLM are the same whenever it has come to send them, and others are not."""

from __future__ import annotations

import json
from itertools import count
from typing import Any

import pytest

from tests.support.same_answers import without_its_own

_numbers = count()


def chunk(delta: dict[str, Any], reason: str | None = None, **more: Any) -> str:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason, **more}
    return json.dumps({"id": f"chatcmpl-{next(_numbers)}", "object": "chat.completion.chunk", "choices": [choice]})


def calling(**function: str) -> dict[str, Any]:
    return {"tool_calls": [{"index": 0, "function": function}]}


def stream(*data: str) -> bytes:
    return "".join(f"data: {each}\n\n" for each in (*data, "[DONE]")).encode().replace(b'": ', b'":')


BEGUN = chunk({"role": "assistant", "content": ""})
ENDED = chunk({}, "stop", stop_reason=None)
WHOLE = stream(BEGUN, chunk({"content": "Par"}), chunk({"content": "is"}), ENDED)
CALLED = stream(
    BEGUN,
    chunk(calling(name="add")),
    *(chunk(calling(arguments=piece)) for piece in ('{"a"', ": 1}")),
    chunk({}, "tool_calls"),
)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (WHOLE, stream(BEGUN, chunk({"content": "Paris"}), ENDED)),
        (WHOLE, stream(BEGUN, chunk({"content": "Paris"}, "stop", stop_reason=None))),
        (WHOLE, stream(BEGUN, chunk({"content": "Par"}), chunk({"content": "is"}, "stop", stop_reason=None))),
        (CALLED, stream(BEGUN, chunk(calling(name="add", arguments='{"a": 1}'), "tool_calls"))),
    ],
    ids=["text in one piece", "its end with it", "its end with the last piece", "a call in one piece"],
)
def test_the_same_in_other_events(one: bytes, other: bytes) -> None:
    assert without_its_own(one) == without_its_own(other)


@pytest.mark.parametrize(
    "other",
    [
        WHOLE.replace(b"is", b"as"),
        WHOLE.replace(b"stop", b"length", 1),
        WHOLE.replace(b"[DONE]", b""),
        WHOLE.replace(b"data: [DONE]\n\n", b""),
        WHOLE.replace(b"\n\n", b"\n", 1),
        WHOLE.replace(b"assistant", b"user"),
        stream(BEGUN, chunk({"content": "Paris"})),
        stream(chunk({"content": "Paris"}), ENDED),
        CALLED,
    ],
    ids=[
        "other text",
        "other reason",
        "other end",
        "no end",
        "one event less",
        "other role",
        "no reason",
        "no role",
        "a call",
    ],
)
def test_another_one(other: bytes) -> None:
    try:
        found = without_its_own(other)
    except ValueError:  # not even a stream
        return
    assert found != without_its_own(WHOLE)
