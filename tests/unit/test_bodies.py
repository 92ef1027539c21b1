"""Bodies of requests, encoded once; what only the server can say is put in front of them."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from shared_engine import GenerationParams, InvalidInputError
from shared_engine.request.bodies import (
    chat_body,
    chat_request,
    completion_body,
    completion_request,
    embedding_request,
    encode,
    prompt_tokens_request,
    request_of,
    text_tokens_request,
)

HELLO = [{"role": "user", "content": "Hello"}]
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}


def test_only_what_is_set_is_sent() -> None:
    assert chat_body(HELLO, GenerationParams()) == {"messages": HELLO}


def test_every_parameter_reaches_the_body() -> None:
    values: dict[str, Any] = {
        "temperature": 0.1,
        "top_p": 0.2,
        "top_k": 3,
        "min_p": 0.4,
        "max_tokens": 5,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.1,
        "frequency_penalty": 0.2,
        "stop": ["x"],
        "seed": 6,
        "n": 2,
        "response_format": {"type": "json_object"},
        "structured_outputs": {"regex": "a"},
    }
    body = chat_body(HELLO, GenerationParams(**values, extra_body={"ignore_eos": True, "seed": 9}))
    assert body == {"messages": HELLO, **values, "ignore_eos": True, "seed": 9}


@pytest.mark.parametrize(
    ("logprobs", "chat", "text"),
    [
        (None, {}, {}),
        (False, {}, {}),
        (True, {"logprobs": True}, {"logprobs": 1}),
        (3, {"logprobs": True, "top_logprobs": 3}, {"logprobs": 3}),
        (0, {"logprobs": True, "top_logprobs": 0}, {"logprobs": 0}),
    ],
)
def test_logprobs_in_the_words_of_each_route(
    logprobs: int | bool | None, chat: dict[str, Any], text: dict[str, Any]
) -> None:
    params = GenerationParams(logprobs=logprobs)
    body = chat_body(HELLO, params)
    assert {name: body[name] for name in body if "logprobs" in name} == chat
    body = completion_body("Hello", params)
    assert {name: body[name] for name in body if "logprobs" in name} == text


def test_a_completion_leaves_max_tokens_to_its_caller() -> None:
    assert completion_body("Hello", GenerationParams()) == {"prompt": "Hello"}
    assert completion_body("Hello", GenerationParams(max_tokens=7)) == {"prompt": "Hello", "max_tokens": 7}


def test_a_stream_asks_for_its_usage() -> None:
    body = chat_body(HELLO, GenerationParams(), tools=[TOOL], tool_choice="auto", stream=True)
    assert body["stream"] is True
    assert body["stream_options"] == {"include_usage": True}
    assert body["tools"] == [TOOL]
    assert body["tool_choice"] == "auto"


def test_a_tool_choice_without_tools_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="needs tools"):
        chat_body(HELLO, GenerationParams(), tool_choice="required")


def test_what_has_no_json_form_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="JSON"):
        encode({"x": object()})


@pytest.mark.parametrize("number", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize(
    ("place", "extra"),
    [
        ("penalty", lambda number: {"penalty": number}),
        ("options.scales[1]", lambda number: {"options": {"scales": [1.0, number]}}),
    ],
)
def test_a_number_that_json_would_leave_out_is_refused_with_its_place(number: float, place: str, extra: Any) -> None:
    params = GenerationParams(extra_body=extra(number))
    with pytest.raises(InvalidInputError) as of_a_chat:
        chat_request(HELLO, params)
    with pytest.raises(InvalidInputError) as of_a_text:
        completion_request("Hello", params)
    assert str(of_a_chat.value) == str(of_a_text.value)
    assert str(of_a_chat.value).startswith(f"{place} is not a finite number")
    tool = {"type": "function", "function": {"name": "f", "parameters": {"properties": {"x": {"maximum": number}}}}}
    with pytest.raises(InvalidInputError, match=r"tools\[0\].function.parameters.properties.x.maximum"):
        chat_request(HELLO, GenerationParams(), tools=[tool])
    assert chat_request([{"role": "assistant", "content": None}], GenerationParams()).body.count(b"null") == 1


@pytest.mark.parametrize(
    ("params", "variables"),
    [
        ({"enable_thinking": True}, {"enable_thinking": True, "thinking": True}),
        ({"enable_thinking": False}, {"enable_thinking": False, "thinking": False}),
        ({"reasoning_effort": "none"}, {"enable_thinking": False, "thinking": False}),
        ({"reasoning_effort": "low"}, {"enable_thinking": True, "thinking": True}),
        ({"reasoning_effort": "low", "enable_thinking": False}, {"enable_thinking": False, "thinking": False}),
        (
            {"enable_thinking": True, "chat_template_kwargs": {"thinking": False, "x": 1}},
            {"enable_thinking": True, "thinking": False, "x": 1},
        ),
        ({"chat_template_kwargs": {"x": 1}}, {"x": 1}),
    ],
)
def test_thinking_is_switched_under_both_names_that_templates_have(
    params: dict[str, Any], variables: dict[str, Any]
) -> None:
    body = chat_body(HELLO, GenerationParams(**params))
    assert body["chat_template_kwargs"] == variables
    assert body.get("reasoning_effort") == params.get("reasoning_effort")


def sent(request: Any, *said: Any) -> dict[str, Any]:
    """What the server reads; a field that stands twice is an error."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len({name for name, _ in pairs}) == len(pairs), pairs
        return dict(pairs)

    decoded: dict[str, Any] = json.loads(request.for_server(*said), object_pairs_hook=once)
    return decoded


def test_the_servers_name_and_limit_are_put_in_front_of_the_encoded_rest() -> None:
    text = completion_request("Hello", GenerationParams(temperature=0))
    assert sent(text, 'm"1', 2048) == {"model": 'm"1', "max_tokens": 2048, "prompt": "Hello", "temperature": 0}
    assert text.for_server("m", 5).endswith(text.body[1:])
    chat = chat_request(HELLO, GenerationParams())
    assert not chat.needs_max_tokens
    assert sent(chat, "m") == {"model": "m", "messages": HELLO}
    assert sent(completion_request("Hello", GenerationParams(max_tokens=7)), "m") == {
        "model": "m",
        "prompt": "Hello",
        "max_tokens": 7,
    }


def test_what_extra_body_says_of_model_and_limit_wins() -> None:
    extra = GenerationParams(extra_body={"model": "other", "max_tokens": 3})
    request = completion_request("Hello", extra)
    assert not request.needs_max_tokens
    assert sent(request, "m", 2048) == {"prompt": "Hello", "model": "other", "max_tokens": 3}
    assert sent(chat_request(HELLO, extra), "m") == {"messages": HELLO, "model": "other", "max_tokens": 3}
    embedding = embedding_request(["a"], "float", {"model": "x"})
    assert (embedding.model, sent(embedding, "x")["model"]) == ("x", "x"), "the endpoint says what the server calls it"
    named = completion_request("Hello", GenerationParams(extra_body={"model": "other"}))
    assert sent(named, "m", 2048) == {"max_tokens": 2048, "prompt": "Hello", "model": "other"}


def test_the_tokens_of_a_requests_prompt_are_asked_for_without_what_counts_nothing() -> None:
    chat = chat_request(HELLO, GenerationParams(max_tokens=3, enable_thinking=True), tools=[TOOL])
    tokenize = prompt_tokens_request(chat)
    assert tokenize is not None
    assert tokenize.path == "/tokenize"
    variables = {"enable_thinking": True, "thinking": True}
    assert sent(tokenize, "m") == {
        "model": "m",
        "messages": HELLO,
        "tools": [TOOL],
        "chat_template_kwargs": variables,
    }
    text = prompt_tokens_request(completion_request("Hello", GenerationParams(extra_body={"model": "other"})))
    assert text is not None
    assert sent(text, "m") == {"model": "other", "prompt": "Hello"}
    assert prompt_tokens_request(embedding_request(["a"], "float", {})) is None
    assert sent(text_tokens_request("a", add_special_tokens=False), "m")["add_special_tokens"] is False


def test_a_request_is_refused_when_it_is_made() -> None:
    with pytest.raises(InvalidInputError, match="JSON"):
        request_of("/x", {"x": object()})
