"""The gateway before real vLLM: openai's client gets from it what it would get from vLLM itself."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from shared_engine import Engine
from tests.support.adapters import ADAPTERS
from tests.support.gateways import Gateway, gateway
from tests.support.in_flight import ATTEMPTS, LONG, is_cut_short
from tests.support.same_answers import without_its_own

CAPITAL = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def gate(lora_chat: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """Two models: one engine with its adapters, under two names and two ways to answer."""
    models = {"chat": {**lora_chat, "aliases": {"chat:short": {"max_tokens": 3}}}}
    with gateway(
        {"models": models, "api_keys": [{"name": "me", "key": "gate-key"}]}, tmp_path_factory.mktemp("gate")
    ) as gate:
        yield gate


@pytest.fixture
def client(gate: Gateway) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{gate.url}/v1", api_key="gate-key", max_retries=0) as client:
        yield client


@pytest.fixture
def engine(lora_chat: dict[str, Any]) -> Engine:
    engine = Engine(**lora_chat)
    engine.warmup()
    return engine


def itself(engine: Engine, path: str, body: dict[str, Any]) -> httpx.Response:
    """vLLM's own answer, over its socket."""
    with httpx.Client(transport=httpx.HTTPTransport(uds=engine.status().socket), timeout=60) as direct:
        return direct.post(f"http://vllm{path}", json={"model": engine.settings.model, **body})


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": CAPITAL, "temperature": 0, "max_tokens": 8}),
        ("/v1/chat/completions", {"messages": CAPITAL, "temperature": 0, "max_tokens": 8, "stream": True}),
        ("/v1/completions", {"prompt": "Hello", "temperature": 0, "max_tokens": 8, "logprobs": 2}),
        ("/v1/completions", {"prompt": "Hello", "temperature": 0, "max_tokens": 8, "stream": True}),
        ("/v1/responses", {"input": "Hello", "temperature": 0, "max_output_tokens": 8}),
        ("/v1/messages", {"messages": CAPITAL, "temperature": 0, "max_tokens": 8, "stream": True}),
        ("/v1/chat/completions", {"messages": CAPITAL, "max_tokens": -1}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a b " * 2000}]}),
        ("/v1/embeddings", {"input": "Hello"}),
        ("/tokenize", {"prompt": "Hello"}),
    ],
)
def test_the_answer_is_vllms_own(gate: Gateway, engine: Engine, path: str, body: dict[str, Any]) -> None:
    with gate.client(headers={"Authorization": "Bearer gate-key"}) as client:
        passed = client.post(path, json={**body, "model": "chat"})
    own = itself(engine, path, body)
    assert passed.status_code == own.status_code
    assert without_its_own(passed.content) == without_its_own(own.content)
    assert passed.headers["content-type"] == own.headers["content-type"]


def test_openais_client_chats_streams_and_lists(client: openai.OpenAI, lora_chat: dict[str, Any]) -> None:
    wanted: Any = {"model": "chat", "messages": CAPITAL, "temperature": 0}
    own = Engine(**lora_chat).chat(CAPITAL, temperature=0)
    assert client.chat.completions.create(**wanted).choices[0].message.content == own.text
    chunks = client.chat.completions.create(stream=True, **wanted)
    assert "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices) == own.text
    short = client.chat.completions.create(**{**wanted, "model": "chat:short"})
    assert short.usage is not None
    assert short.usage.completion_tokens == 3
    listed = [each.id for each in client.models.list()]
    assert listed == ["chat", *ADAPTERS]
    with pytest.raises(openai.NotFoundError, match="there are: chat"):
        client.chat.completions.create(**{**wanted, "model": "gpt-4o"})
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="another").models.list()


def test_an_adapter_is_a_model_of_its_own(client: openai.OpenAI, lora_chat: dict[str, Any]) -> None:
    wanted: Any = {"messages": CAPITAL, "temperature": 0, "max_tokens": 16}
    for name in ADAPTERS:
        own = Engine(**lora_chat).chat(CAPITAL, temperature=0, max_tokens=16, lora=name)
        assert client.chat.completions.create(model=name, **wanted).choices[0].message.content == own.text


def test_outputs_of_many_are_those_of_an_engines_batch(gate: Gateway, engine: Engine) -> None:
    params: Any = {"temperature": 0, "max_tokens": 8, "logprobs": 2}
    prompts, conversations = ["Hello", "The capital of"], [CAPITAL, CAPITAL[:1]]
    with gate.client(headers={"Authorization": "Bearer gate-key"}) as client:
        texts = client.post("/generate", json={"model": "chat", "prompts": prompts, "params": params}).json()
        chats = client.post("/chat", json={"model": "chat", "conversations": conversations, "params": params}).json()
        one = client.post(
            "/api/v1/inference/generate", json={"model": "chat", "messages": CAPITAL, "params": params}
        ).json()
        (model,) = client.get("/api/v1/inference/status").json()["models"]
    own: tuple[Any, Any] = (engine.generate_batch(prompts, **params), engine.chat_batch(conversations, **params))
    for outputs, results in zip((texts, chats), own, strict=True):
        assert [each["text"] for (each,) in outputs] == [result.text for result in results]
        assert [sorted(each["logprobs"]) for (each,) in outputs] == [sorted(result.logprobs) for result in results]
    assert one["outputs"][0]["text"] == own[1][0].text
    assert one["usage"]["completion_tokens"] == own[1][0].usage.completion_tokens
    assert model["state"] == "ready"
    assert model["tokens"]["completion"] > 0
    assert model["memory_bytes"] > 0


def test_a_stream_that_is_left_is_aborted_in_vllm(client: openai.OpenAI, engine: Engine) -> None:
    messages: Any = CAPITAL

    def leave() -> None:
        with client.chat.completions.create(model="chat", messages=messages, stream=True, **LONG) as chunks:
            next(iter(chunks))

    assert any(is_cut_short(engine, leave) for _ in range(ATTEMPTS))


@pytest.mark.long
@pytest.mark.apart
def test_embeddings_are_vllms_own(minilm: dict[str, Any], tmp_path: Path) -> None:
    with gateway({"models": {"minilm": minilm}}, tmp_path) as gate:
        client = openai.OpenAI(base_url=f"{gate.url}/v1", api_key="none", max_retries=0)
        with client:
            passed = client.embeddings.create(model="minilm", input=["a", "b"], encoding_format="float")
    own = json.loads(itself(Engine(**minilm), "/v1/embeddings", {"input": ["a", "b"]}).content)
    assert [each.embedding for each in passed.data] == [each["embedding"] for each in own["data"]]
