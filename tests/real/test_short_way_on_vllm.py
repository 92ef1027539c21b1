"""The short way in vLLM's application on real vLLM: its answers, and its refusals, are those of the whole way."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from shared_engine import Engine
from shared_engine.request.routes import CHAT, COMPLETIONS
from tests.support.same_answers import without_its_own

SHORT, WHOLE = "application/json", "application/json; charset=utf-8"
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
CASES = [(CHAT, {"messages": MESSAGES} | more) for more in CHATS.values()]
CASES += [(COMPLETIONS, {"prompt": "Hello"} | more) for more in TEXTS.values()]
NAMES = [*(f"chat, {name}" for name in CHATS), *(f"text, {name}" for name in TEXTS)]


@pytest.fixture
def client(tiny_chat: dict[str, Any]) -> Iterator[httpx.Client]:
    engine = Engine(**tiny_chat)
    engine.warmup()
    transport = httpx.HTTPTransport(uds=engine.status().socket)
    with httpx.Client(transport=transport, base_url="http://engine", timeout=60) as client:
        yield client


def whole_ways(client: httpx.Client) -> float:
    """How many requests have gone through all of vLLM's middlewares, one of which counts them."""
    counts = re.findall(r"^http_requests_total\{[^}]*\} (\S+)$", client.get("/metrics").text, re.MULTILINE)
    return sum(map(float, counts))


@pytest.mark.parametrize(("path", "body"), CASES, ids=NAMES)
def test_it_answers_as_the_whole_way_does(client: httpx.Client, path: str, body: dict[str, Any]) -> None:
    body = {"model": client.get("/v1/models").json()["data"][0]["id"], **ASKED, **body}
    before = whole_ways(client)
    short = client.post(path, json=body, headers={"content-type": SHORT})
    went_the_whole_way = whole_ways(client) - before
    whole = client.post(path, json=body, headers={"content-type": WHOLE})
    assert whole_ways(client) - before > went_the_whole_way
    assert short.status_code == whole.status_code
    assert short.headers["content-type"] == whole.headers["content-type"]
    assert without_its_own(short.content) == without_its_own(whole.content)
    is_refused_by_its_model = short.status_code == 400 and "validation" in short.text
    assert (went_the_whole_way == 0) is not is_refused_by_its_model
