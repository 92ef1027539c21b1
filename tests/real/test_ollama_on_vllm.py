"""Ollama's own client on real vLLM, through the gateway: it gets what the engine answers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ollama
import pytest

from shared_engine import Engine, GenerationResult
from tests.support.gateways import gateway
from tests.support.questions import ADD

CAPITAL = [{"role": "user", "content": "What is the capital of France?"}]
SUM = [{"role": "user", "content": "Add 2 and 3."}]
ANNA = [{"role": "user", "content": "Anna Smith is 31 years old."}]
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
}
FORM = {"type": "json_schema", "json_schema": {"name": "format", "schema": PERSON}}
OPTIONS = {"temperature": 0, "num_predict": 48}
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 48}


@pytest.fixture(scope="module")
def client(lora_chat: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[ollama.Client]:
    with (
        gateway({"models": {"chat": lora_chat}}, tmp_path_factory.mktemp("gate")) as gate,
        ollama.Client(gate.url, timeout=60) as client,
    ):
        yield client


def joined(parts: list[Any]) -> dict[str, Any]:
    """All lines of an answer as one."""
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
    calls = [call.function for part in parts for call in part.message.tool_calls or ()]
    return {
        "text": "".join(part.message.content or "" for part in parts),
        "reasoning": "".join(part.message.thinking or "" for part in parts),
        "calls": [(call.name, dict(call.arguments)) for call in calls],
        "counts": (parts[-1].done_reason, parts[-1].prompt_eval_count, parts[-1].eval_count),
    }


def of_engine(result: GenerationResult) -> dict[str, Any]:
    reason = "length" if result.finish_reason == "length" else "stop"
    return {
        "text": result.text,
        "reasoning": result.reasoning or "",
        "calls": [(call.name, json.loads(call.arguments)) for call in result.tool_calls],
        "counts": (reason, result.usage.prompt_tokens, result.usage.completion_tokens),
    }


@pytest.mark.parametrize(
    ("asked", "own"),
    [
        ({"messages": CAPITAL}, {"messages": CAPITAL}),
        ({"messages": CAPITAL, "model": "brief"}, {"messages": CAPITAL, "lora": "brief"}),
        ({"messages": CAPITAL, "think": True}, {"messages": CAPITAL, "enable_thinking": True}),
        ({"messages": CAPITAL, "think": False}, {"messages": CAPITAL, "enable_thinking": False}),
        ({"messages": SUM, "tools": [ADD]}, {"messages": SUM, "tools": [ADD]}),
        ({"messages": ANNA, "format": PERSON}, {"messages": ANNA, "response_format": FORM}),
        (
            {"messages": CAPITAL, "options": {"temperature": 0, "num_predict": 3}},
            {"messages": CAPITAL, "max_tokens": 3},
        ),
    ],
    ids=["plain", "adapter", "thinking", "not thinking", "tools", "form", "short"],
)
def test_a_chat_is_the_engines_own(
    client: ollama.Client, lora_chat: dict[str, Any], asked: dict[str, Any], own: dict[str, Any]
) -> None:
    wanted = of_engine(Engine(**lora_chat).chat(**{**GREEDY, **own}))
    asked = {"model": "chat", "options": OPTIONS, **asked}
    ask: Any = client.chat
    assert joined([ask(**asked)]) == wanted
    assert joined(list(ask(**asked, stream=True))) == wanted


def test_a_text_without_a_template_is_the_engines_own(client: ollama.Client, lora_chat: dict[str, Any]) -> None:
    own = Engine(**lora_chat).generate("Hello", **GREEDY)
    parts = list(client.generate("chat", "Hello", raw=True, options=OPTIONS, stream=True))
    assert "".join(part.response or "" for part in parts) == own.text
    assert (parts[-1].prompt_eval_count, parts[-1].eval_count) == (own.usage.prompt_tokens, own.usage.completion_tokens)


def test_a_conversation_goes_on_after_a_tools_result(client: ollama.Client) -> None:
    messages: list[Any] = list(SUM)
    first = client.chat("chat", messages, tools=[ADD], options=OPTIONS)
    (call,) = first.message.tool_calls or []
    messages += [first.message, {"role": "tool", "tool_name": call.function.name, "content": "5"}]
    assert "5" in (client.chat("chat", messages, tools=[ADD], options=OPTIONS).message.content or "")


def test_log_probabilities_are_the_engines_own(client: ollama.Client, lora_chat: dict[str, Any]) -> None:
    own = Engine(**lora_chat).chat(CAPITAL, **GREEDY, logprobs=2).logprobs
    assert own is not None
    for part in (
        [client.chat("chat", CAPITAL, logprobs=True, top_logprobs=2, options=OPTIONS)],
        list(client.chat("chat", CAPITAL, logprobs=True, top_logprobs=2, options=OPTIONS, stream=True)),
    ):
        found = [each for line in part for each in line.logprobs or ()]
        assert [each.token for each in found] == [each["token"] for each in own["content"]]
        assert [len(each.top_logprobs or ()) for each in found] == [2] * len(found)


def test_what_vllm_refuses_is_told(client: ollama.Client) -> None:
    with pytest.raises(ollama.ResponseError, match="maximum context length") as caught:
        client.chat("chat", [{"role": "user", "content": "a b " * 2000}])
    assert caught.value.status_code == 400


@pytest.mark.apart
def test_vectors_are_the_engines_own(minilm: dict[str, Any], tmp_path: Path) -> None:
    own = Engine(**minilm).embed(["a", "b"]).embeddings
    with gateway({"models": {"minilm": minilm}}, tmp_path) as gate, ollama.Client(gate.url) as client:
        found = client.embed("minilm", ["a", "b"]).embeddings
        assert [list(vector) for vector in found] == [pytest.approx(vector, abs=1e-6) for vector in own]
        (cut,) = client.embed("minilm", "a", dimensions=8).embeddings
        assert (len(cut), sum(each * each for each in cut)) == (8, pytest.approx(1))
        assert client.embed("minilm", "word " * 2000).prompt_eval_count == 256  # is cut
        with pytest.raises(ollama.ResponseError):
            client.embed("minilm", "word " * 2000, truncate=False)
        assert client.show("minilm").capabilities == ["embedding"]
