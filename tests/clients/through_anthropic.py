"""Anthropic's clients, Python's and JavaScript's, on /v1/messages: the gateway answers as vLLM itself does.

`make test-clients`; named so that pytest finds it only when it is asked.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anthropic
import pytest

from tests.clients.calls import CAPITAL, SUM
from tests.clients.conftest import KEY, Server, run_node, same
from tests.support.questions import ADD

TOOL = {"name": "add", "input_schema": ADD["function"]["parameters"]}
GREEDY = {"max_tokens": 24}  # as tiny_chat is by itself; the client has no temperature any more
CALLS: dict[str, dict[str, Any]] = {
    "message": {"messages": CAPITAL, **GREEDY},
    "stream": {"messages": CAPITAL, **GREEDY, "stream": True},
    "system": {"messages": CAPITAL, **GREEDY, "system": "Be brief."},
    "stopped": {"messages": CAPITAL, **GREEDY, "stop_sequences": ["France"]},
    "tool": {"messages": SUM, **GREEDY, "tools": [TOOL], "tool_choice": {"type": "any"}},
    "tool in a stream": {"messages": SUM, **GREEDY, "tools": [TOOL], "stream": True},
    "too long": {"messages": [{"role": "user", "content": "a b " * 2000}], **GREEDY},
    "too many": {"messages": CAPITAL, "max_tokens": -1},
}
each_call = pytest.mark.parametrize("name", CALLS)


def answer(server: Server, name: str) -> Any:
    body = CALLS[name]
    with anthropic.Anthropic(base_url=server.url, api_key=KEY, max_retries=0, timeout=600) as client:
        try:
            found: Any = client.messages.create(model=server.models["chat"], **body)
            return [each.model_dump() for each in found] if body.get("stream") else found.model_dump()
        except anthropic.APIStatusError as exc:
            return {"raised": type(exc).__name__, "status": exc.status_code, "body": exc.body}


@each_call
def test_pythons_client_gets_the_same(through: Server, itself: Callable[[str], Server], name: str) -> None:
    passed, own = answer(through, name), answer(itself("chat"), name)
    assert same(passed) == same(own)


@pytest.fixture(scope="module")
def in_javascript(through: Server, itself: Callable[[str], Server]) -> list[dict[str, Any]]:
    """From the gateway, and from vLLM itself, by call."""
    return [
        run_node(
            "ask_anthropic.mjs",
            {
                "url": server.url,
                "key": KEY,
                "calls": {name: {"model": server.models["chat"], **body} for name, body in CALLS.items()},
            },
        )
        for server in (through, itself("chat"))
    ]


@each_call
def test_javascripts_client_gets_the_same(in_javascript: list[dict[str, Any]], name: str) -> None:
    passed, own = (answers[name] for answers in in_javascript)
    assert same(passed) == same(own)


def test_tokens_are_counted(through: Server, itself: Callable[[str], Server]) -> None:
    counts = []
    for server in (through, itself("chat")):
        with anthropic.Anthropic(base_url=server.url, api_key=KEY, max_retries=0) as client:
            messages: Any = CAPITAL
            counts.append(client.messages.count_tokens(model=server.models["chat"], messages=messages).input_tokens)
    assert counts[0] == counts[1] > 0


def test_what_the_gateway_itself_says_has_anthropics_classes(through: Server) -> None:
    messages: Any = CAPITAL
    with anthropic.Anthropic(base_url=through.url, api_key=KEY, max_retries=0) as client:
        with pytest.raises(anthropic.NotFoundError, match="there are: chat"):
            client.messages.create(model="claude", messages=messages, max_tokens=8)
        with pytest.raises(anthropic.AuthenticationError):
            client.with_options(api_key="another").messages.create(model="chat", messages=messages, max_tokens=8)
