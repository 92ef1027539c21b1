"""Ollama's clients, Python's and JavaScript's: the gateway answers them what vLLM itself has to say.

`make test-clients`; named so that pytest finds it only when it is asked. What `make test` runs of it is in
tests/real/test_ollama_on_vllm.py.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import ollama
import pytest

from tests.clients.calls import CAPITAL, PERSON, SUM
from tests.clients.conftest import KEY, Server, run_node
from tests.support.pictures import RED
from tests.support.questions import ADD

OPTIONS = {"temperature": 0, "num_predict": 24}
GREEDY = {"temperature": 0, "max_tokens": 24}
ANNA = [{"role": "user", "content": "Anna Smith is 31 years old."}]
FORM = {"type": "json_schema", "json_schema": {"name": "format", "schema": PERSON}}
THINKS = {"chat_template_kwargs": {"enable_thinking": True}}
IMAGE = base64.b64encode(RED).decode()
SEEN = [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{IMAGE}"}}, {"type": "text", "text": "?"}]
# What a client of Ollama's is told to ask, and what vLLM is asked instead.
CHATS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({"messages": CAPITAL}, {"messages": CAPITAL}),
    "tools": ({"messages": SUM, "tools": [ADD]}, {"messages": SUM, "tools": [ADD]}),
    "form": ({"messages": ANNA, "format": PERSON}, {"messages": ANNA, "response_format": FORM}),
    "thinking": ({"messages": CAPITAL, "think": True}, {"messages": CAPITAL, **THINKS}),
    "not thinking": ({"messages": CAPITAL, "think": False}, {"messages": CAPITAL}),
}
each_chat = pytest.mark.parametrize("name", CHATS)


@pytest.fixture(scope="module")
def client(through: Server) -> Iterator[ollama.Client]:
    with ollama.Client(through.url, headers={"authorization": f"Bearer {KEY}"}) as client:
        yield client


def of_vllm(itself: Callable[[str], Server], path: str, body: dict[str, Any]) -> Any:
    server = itself(body.pop("model", "chat"))
    headers = {"authorization": f"Bearer {KEY}"}
    answer = httpx.post(server.v1 + path, json={"model": next(iter(server.models.values())), **body}, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.json()


def wanted(itself: Callable[[str], Server], asked: dict[str, Any]) -> dict[str, Any]:
    """What vLLM itself answers, by what Ollama calls it."""
    answer = of_vllm(itself, "/chat/completions", {**GREEDY, **asked})
    (choice,) = answer["choices"]
    message = choice["message"]
    return {
        "content": message.get("content") or "",
        "thinking": message.get("reasoning") or "",
        "calls": [
            (call["function"]["name"], json.loads(call["function"]["arguments"]))
            for call in message.get("tool_calls") or ()
        ],
        "done_reason": "length" if choice["finish_reason"] == "length" else "stop",
        "prompt_eval_count": answer["usage"]["prompt_tokens"],
        "eval_count": answer["usage"]["completion_tokens"],
    }


def joined(parts: list[Any]) -> dict[str, Any]:
    """All lines of an answer, as one."""
    messages = [part["message"] for part in parts]
    calls = [call["function"] for message in messages for call in message.get("tool_calls") or ()]
    last = parts[-1]
    assert [part["done"] for part in parts] == [False] * (len(parts) - 1) + [True]
    assert last["total_duration"] >= last["load_duration"] + last["eval_duration"] > 0
    return {
        "content": "".join(message.get("content") or "" for message in messages),
        "thinking": "".join(message.get("thinking") or "" for message in messages),
        "calls": [(call["name"], dict(call["arguments"])) for call in calls],
        **{name: last[name] for name in ("done_reason", "prompt_eval_count", "eval_count")},
    }


@each_chat
def test_pythons_client_gets_vllms_answer(client: ollama.Client, itself: Callable[[str], Server], name: str) -> None:
    asked: dict[str, Any] = {"model": "chat", "options": OPTIONS, **CHATS[name][0]}
    own = wanted(itself, CHATS[name][1])
    assert joined([client.chat(**asked).model_dump()]) == own
    assert joined([part.model_dump() for part in client.chat(**asked, stream=True)]) == own


def test_a_picture_is_seen_as_by_vllm_itself(seeing: Server, itself: Callable[[str], Server]) -> None:
    own = wanted(itself, {"model": "vision", "messages": [{"role": "user", "content": SEEN}]})
    messages: Any = [{"role": "user", "content": "?", "images": [IMAGE]}]
    with ollama.Client(seeing.url, headers={"authorization": f"Bearer {KEY}"}) as client:
        assert joined([client.chat("vision", messages, options=OPTIONS)]) == own
        assert client.show("vision").capabilities == ["completion", "tools", "vision"]


def test_javascripts_client_gets_vllms_answer(through: Server, itself: Callable[[str], Server]) -> None:
    calls = {
        f"{name}, stream={stream}": {"model": "chat", "options": OPTIONS, "stream": stream, **asked}
        for name, (asked, _) in CHATS.items()
        for stream in (True, False)
    }
    found = run_node("ask_ollama.mjs", {"url": through.url, "key": KEY, "calls": calls})
    for name in CHATS:
        own = wanted(itself, CHATS[name][1])
        assert joined(found[f"{name}, stream=True"]) == own
        assert joined(found[f"{name}, stream=False"]) == own
    names = {"models": ["chat", "brief", "polite", "minilm"], "version": client_version(through)}
    assert {name: found[name] for name in names} == names


def client_version(server: Server) -> str:
    answer = httpx.get(f"{server.url}/api/version", headers={"authorization": f"Bearer {KEY}"})
    return str(answer.json()["version"])


def test_a_text_with_a_template_around_it_and_without(client: ollama.Client, itself: Callable[[str], Server]) -> None:
    asked = str(CAPITAL[0]["content"])
    found = client.generate("chat", asked, options=OPTIONS)
    assert found.response == wanted(itself, CHATS["plain"][1])["content"]
    system = [{"role": "system", "content": "Be brief."}, *CAPITAL]
    own = of_vllm(itself, "/chat/completions", {**GREEDY, "messages": system})
    found = client.generate("chat", asked, system="Be brief.", options=OPTIONS)
    assert found.response == own["choices"][0]["message"]["content"]
    own = of_vllm(itself, "/completions", {**GREEDY, "prompt": "Hello"})
    parts = list(client.generate("chat", "Hello", raw=True, options=OPTIONS, stream=True))
    assert "".join(part.response or "" for part in parts) == own["choices"][0]["text"]
    assert parts[-1].eval_count == own["usage"]["completion_tokens"]


def test_vectors_are_vllms_with_length_one(client: ollama.Client, itself: Callable[[str], Server]) -> None:
    own = [
        each["embedding"] for each in of_vllm(itself, "/embeddings", {"model": "minilm", "input": ["a", "b"]})["data"]
    ]
    found = client.embed("minilm", ["a", "b"])
    assert [list(vector) for vector in found.embeddings] == [pytest.approx(vector, abs=1e-6) for vector in own]
    (cut,) = client.embed("minilm", "a", dimensions=8).embeddings
    assert len(cut) == 8
    assert math.isclose(sum(each * each for each in cut), 1, abs_tol=1e-6)
    assert list(client.embeddings("minilm", "a").embedding) == pytest.approx(own[0], abs=1e-6)
    long = "word " * 2000  # is cut, unless that is not wanted
    assert client.embed("minilm", long).prompt_eval_count
    with pytest.raises(ollama.ResponseError) as caught:
        client.embed("minilm", long, truncate=False)
    assert caught.value.status_code == 400


def test_a_conversation_with_a_tools_result_goes_on(client: ollama.Client) -> None:
    messages: list[Any] = list(SUM)
    first = client.chat("chat", messages, tools=[ADD], options=OPTIONS)
    (call,) = first.message.tool_calls or []
    messages += [first.message, {"role": "tool", "tool_name": call.function.name, "content": "5"}]
    assert "5" in (client.chat("chat", messages, tools=[ADD], options=OPTIONS).message.content or "")


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        ({"model": "gpt-4o", "messages": CAPITAL}, 404),
        ({"model": "chat", "messages": CAPITAL, "options": {"temperature": -1}}, 400),
        ({"model": "chat", "messages": [{"role": "user", "content": "a b " * 2000}]}, 400),
        ({"model": "minilm", "messages": CAPITAL}, 400),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
def test_errors_have_ollamas_form(client: ollama.Client, asked: dict[str, Any], status: int, stream: bool) -> None:
    def ask() -> None:
        ask_it: Any = client.chat
        list(ask_it(**asked, stream=stream))

    with pytest.raises(ollama.ResponseError) as caught:
        ask()
    assert caught.value.status_code == status
    assert caught.value.error


def test_models_are_shown_loaded_and_sent_away(client: ollama.Client) -> None:
    assert client.generate("chat").done_reason == "load"
    running = {each.model: each for each in client.ps().models}
    assert running["chat"].context_length == 2048
    assert running["chat"].expires_at is not None
    shown = client.show("chat")
    assert (shown.capabilities, (shown.modelinfo or {})["llama.context_length"]) == (
        ["completion", "tools", "thinking"],
        2048,
    )
    assert client.show("minilm").capabilities == ["embedding"]
