"""openai's own clients on real vLLM: all that they can do here, over the private socket."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from shared_engine import Engine
from tests.support.in_flight import HELLO, LONG, is_cut_short
from tests.support.paths import TINY_CHAT
from tests.support.questions import ADD

CAPITAL: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]


class Person(BaseModel):
    name: str
    age: int


@pytest.fixture
def client(tiny_chat: dict[str, Any]) -> Iterator[openai.OpenAI]:
    with Engine(**tiny_chat).openai_client() as client:
        yield client


@pytest.mark.parametrize("model", ["default", str(TINY_CHAT), TINY_CHAT.name])
def test_the_answer_is_the_engines_own(client: openai.OpenAI, tiny_chat: dict[str, Any], model: str) -> None:
    answer = client.chat.completions.create(model=model, messages=CAPITAL, temperature=0)
    own = Engine(**tiny_chat).chat(CAPITAL, temperature=0)
    assert answer.choices[0].message.content == own.text
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (
        own.usage.prompt_tokens,
        own.usage.completion_tokens,
    )
    assert [each.id for each in client.models.list()] == [answer.model]


def test_another_models_name_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="gpt-4o"):
        client.chat.completions.create(model="gpt-4o", messages=CAPITAL)


def test_a_prompt_that_is_too_long_is_vllms_refusal(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="maximum context length"):
        client.chat.completions.create(model="default", messages=[{"role": "user", "content": "a b " * 2000}])


def test_a_text_and_its_stream(client: openai.OpenAI) -> None:
    wanted: dict[str, Any] = {"model": "default", "prompt": "Hello", "max_tokens": 8, "temperature": 0}
    whole = client.completions.create(**wanted).choices[0].text
    pieces = [chunk.choices[0].text for chunk in client.completions.create(stream=True, **wanted)]
    assert "".join(pieces) == whole
    assert len(pieces) > 1


def test_tools_are_called(client: openai.OpenAI) -> None:
    messages: list[Any] = [{"role": "user", "content": "Add 2 and 3."}]
    answer = client.chat.completions.create(model="default", messages=messages, tools=[ADD], tool_choice="required")
    (call,) = answer.choices[0].message.tool_calls or []
    assert call.type == "function"
    assert (call.function.name, json.loads(call.function.arguments)) == ("add", {"a": 2, "b": 3})
    messages += [answer.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "5"}]
    said = client.chat.completions.create(model="default", messages=messages, tools=[ADD], temperature=0)
    assert "5" in (said.choices[0].message.content or "")


def test_a_form_is_parsed(client: openai.OpenAI) -> None:
    messages: list[Any] = [{"role": "user", "content": "Extract: Anna Smith is 31 years old."}]
    answer = client.chat.completions.parse(model="default", messages=messages, response_format=Person, temperature=0)
    assert answer.choices[0].message.parsed == Person(name="Anna Smith", age=31)


def test_the_responses_api(client: openai.OpenAI) -> None:
    wanted: dict[str, Any] = {"model": "default", "input": "What is the capital of France?", "temperature": 0}
    answer = client.responses.create(**wanted)
    assert "Paris" in answer.output_text
    with client.responses.stream(**wanted) as events:
        pieces = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(pieces) == answer.output_text


async def test_an_asynchronous_stream_with_its_usage(tiny_chat: dict[str, Any]) -> None:
    async with Engine(**tiny_chat).async_openai_client() as client:
        chunks = await client.chat.completions.create(
            model="default", messages=CAPITAL, temperature=0, stream=True, stream_options={"include_usage": True}
        )
        got = [chunk async for chunk in chunks]
    assert "Paris" in "".join(choice.delta.content or "" for chunk in got for choice in chunk.choices)
    assert got[-1].usage is not None
    assert got[-1].usage.completion_tokens > 0


def test_leaving_a_stream_ends_the_request_in_vllm(client: openai.OpenAI, tiny_chat: dict[str, Any]) -> None:
    def leave() -> None:
        messages: list[Any] = HELLO
        with client.chat.completions.create(model="default", messages=messages, stream=True, **LONG) as chunks:
            next(chunks)

    assert any(is_cut_short(Engine(**tiny_chat), leave) for _ in range(20))


def test_vectors(minilm: dict[str, Any]) -> None:
    engine = Engine(**minilm)
    texts = ["Hello", "Good morning"]
    answer = engine.openai_client().embeddings.create(model="default", input=texts)
    own = engine.embed(texts)
    assert [each.embedding for each in answer.data] == [pytest.approx(vector, abs=1e-6) for vector in own.embeddings]
    assert answer.usage.prompt_tokens == own.usage.prompt_tokens
