"""The short way in vLLM's application on real vLLM: its answers, and its refusals, are those of the whole way."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from shared_engine import Engine
from shared_engine.request.routes import CHAT, COMPLETIONS
from tests.support.same_answers import without_its_own
from tests.support.short_way import by_both_ways, socket_client

ASKED = {"temperature": 0, "max_tokens": 12}
MESSAGES = [{"role": "user", "content": "What is the capital of France?"}]
CHATS: dict[str, dict[str, Any]] = {
    "plain": {},
    "stream": {"stream": True, "stream_options": {"include_usage": True}},
    "several, with logprobs": {"n": 2, "temperature": 1, "seed": 7, "logprobs": True, "top_logprobs": 2},
    "schema": {"response_format": {"type": "json_object"}},
    "a field that nobody knows": {"unknown": 1},
    "another model": {"model": "other"},
    "too long": {"max_tokens": 1 << 30},
    "no number": {"max_tokens": "many"},
    "no role": {"messages": [{"content": "Hello"}]},
    "nothing asked": {"messages": []},
}
TEXTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "stream": {"stream": True},
    "several": {"prompt": ["Hello", "Bye"]},
    "no prompt": {"prompt": None},
    "echo": {"echo": True, "logprobs": 1},
}


REFUSED_BY_ITS_MODEL = ("no number", "no role", "no prompt")
CASES = [(CHAT, {"messages": MESSAGES} | more, name not in REFUSED_BY_ITS_MODEL) for name, more in CHATS.items()]
CASES += [(COMPLETIONS, {"prompt": "Hello"} | more, name not in REFUSED_BY_ITS_MODEL) for name, more in TEXTS.items()]
NAMES = [*(f"chat, {name}" for name in CHATS), *(f"text, {name}" for name in TEXTS)]


@pytest.fixture
def client(tiny_chat: dict[str, Any]) -> Iterator[httpx.Client]:
    with socket_client(Engine(**tiny_chat)) as client:
        yield client


@pytest.mark.parametrize(("path", "body", "is_short"), CASES, ids=NAMES)
def test_it_answers_as_the_whole_way_does(
    client: httpx.Client, path: str, body: dict[str, Any], is_short: bool
) -> None:
    first, second, was_short = by_both_ways(client, path, ASKED | body)
    assert first.status_code == second.status_code
    assert first.headers["content-type"] == second.headers["content-type"]
    assert without_its_own(first.content) == without_its_own(second.content)
    assert was_short is is_short
