"""wire.py: bodies, answers and errors, as tables. Answers are what vLLM 0.32 sent."""

from __future__ import annotations

import json
from typing import Any

import pytest
from msgspec.structs import replace

from shared_engine import (
    AuthenticationError,
    ContextLengthError,
    GenerationParams,
    InvalidInputError,
    ModelNotFoundError,
    PermissionDeniedError,
    RateLimitError,
    RequestRejectedError,
    ServerError,
    TokenUsage,
    ToolCall,
    ToolCallDelta,
)
from shared_engine.request import wire

HELLO = [{"role": "user", "content": "Hello"}]
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}


def test_only_what_is_set_is_sent() -> None:
    assert wire.chat_body(HELLO, GenerationParams()) == {"messages": HELLO}


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
    body = wire.chat_body(HELLO, GenerationParams(**values, extra_body={"ignore_eos": True, "seed": 9}))
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
    body = wire.chat_body(HELLO, params)
    assert {name: body[name] for name in body if "logprobs" in name} == chat
    body = wire.completion_body("Hello", params)
    assert {name: body[name] for name in body if "logprobs" in name} == text


def test_a_completion_leaves_max_tokens_to_its_caller() -> None:
    assert wire.completion_body("Hello", GenerationParams()) == {"prompt": "Hello"}
    assert wire.completion_body("Hello", GenerationParams(max_tokens=7)) == {"prompt": "Hello", "max_tokens": 7}


def test_a_stream_asks_for_its_usage() -> None:
    body = wire.chat_body(HELLO, GenerationParams(), tools=[TOOL], tool_choice="auto", stream=True)
    assert body["stream"] is True
    assert body["stream_options"] == {"include_usage": True}
    assert body["tools"] == [TOOL]
    assert body["tool_choice"] == "auto"


def test_a_tool_choice_without_tools_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="needs tools"):
        wire.chat_body(HELLO, GenerationParams(), tool_choice="required")


@pytest.mark.parametrize(
    ("messages", "part"),
    [
        ("Hello", "messages must be a list"),
        ({"role": "user"}, "messages must be a list"),
        ([], "empty conversation"),
        (["Hello"], r"messages\[0\] must be a dict"),
        ([*HELLO, {"role": "robot", "content": "x"}], r"messages\[1\] has the unknown role 'robot'"),
        ([{"role": "user", "content": 5}], r"messages\[0\].content must be a string or a list"),
        ([{"role": "user", "content": None}], r"messages\[0\].content"),
        ([{"role": "user", "content": [5]}], r"messages\[0\].content\[0\]"),
    ],
)
def test_a_bad_conversation_is_refused_with_its_position(messages: Any, part: str) -> None:
    with pytest.raises(InvalidInputError, match=part):
        wire.check_messages(messages)


@pytest.mark.parametrize(("prompt", "part"), [(5, "must be a string, got int"), ("", "is empty"), (None, "NoneType")])
def test_a_bad_prompt_is_refused_with_its_position(prompt: Any, part: str) -> None:
    with pytest.raises(InvalidInputError, match=rf"prompts\[3\].*{part}"):
        wire.check_prompt(prompt, "prompts[3]")


def test_what_has_no_json_form_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="JSON"):
        wire.encode({"x": object()})


def answer(choice: dict[str, Any], **fields: Any) -> bytes:
    usage = {
        "prompt_tokens": 14,
        "total_tokens": 17,
        "completion_tokens": 3,
        "prompt_tokens_details": {"cached_tokens": 8, "created_cache_tokens": 0},
        "completion_tokens_details": None,
    }
    return json.dumps({"id": "chatcmpl-1", "model": "m", "choices": [choice], "usage": usage, **fields}).encode()


def test_a_chat_answer() -> None:
    message = {"role": "assistant", "content": "Hi", "reasoning": "Think", "refusal": None}
    result = wire.parse_result(answer({"index": 0, "message": message, "finish_reason": "stop", "stop_reason": None}))
    assert (result.text, result.reasoning, result.finish_reason, result.request_id) == (
        "Hi",
        "Think",
        "stop",
        "chatcmpl-1",
    )
    assert (result.usage.prompt_tokens, result.usage.completion_tokens, result.usage.total_tokens) == (14, 3, 17)
    assert result.usage.cached_tokens == 8
    assert result.usage.reasoning_tokens is None


def test_an_answer_with_tool_calls_and_the_older_name_of_reasoning() -> None:
    call = {"id": "call-1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1'}}
    message = {"content": None, "reasoning_content": "Think", "tool_calls": [call]}
    result = wire.parse_result(answer({"index": 0, "message": message, "finish_reason": "tool_calls"}))
    assert result.text == ""
    assert result.reasoning == "Think"
    assert result.tool_calls == (ToolCall(id="call-1", name="add", arguments='{"a": 1'),)


def test_a_text_answer() -> None:
    result = wire.parse_result(answer({"index": 0, "text": "Hi", "finish_reason": "length", "stop_reason": 2}))
    assert (result.text, result.finish_reason, result.choices[0].stop_reason) == ("Hi", "length", 2)


def test_the_chunks_of_a_stream() -> None:
    def event(**fields: Any) -> bytes:
        return json.dumps({"id": "c", "model": "m", **fields}).encode()

    delta = {"content": None, "tool_calls": [{"index": 1, "id": "x", "function": {"name": "add", "arguments": ""}}]}
    (chunk,) = wire.parse_event(event(choices=[{"index": 0, "delta": delta, "finish_reason": None}]))
    assert chunk.tool_calls == (ToolCallDelta(index=1, id="x", name="add", arguments=""),)
    (chunk,) = wire.parse_event(event(choices=[{"index": 2, "text": "Hi", "finish_reason": "stop"}]))
    assert (chunk.text, chunk.index, chunk.finish_reason, chunk.usage) == ("Hi", 2, "stop", None)
    (chunk,) = wire.parse_event(event(choices=[], usage={"prompt_tokens": 4, "completion_tokens": 2}))
    assert chunk.usage is not None
    assert chunk.usage.total_tokens == 6


def test_an_error_in_a_stream_is_raised() -> None:
    data = b'{"error": {"message": "EngineCore encountered an issue.", "type": "InternalServerError", "code": 500}}'
    with pytest.raises(ServerError, match="EngineCore") as caught:
        wire.parse_event(data)
    assert wire.says_engine_died(caught.value)


def test_what_is_no_answer_of_vllm_is_a_server_error() -> None:
    with pytest.raises(ServerError, match="not what vLLM sends"):
        wire.parse_result(b"<html>proxy</html>")


def test_events_are_taken_whole_from_any_cut_of_the_bytes() -> None:
    stream = b': ping\n\ndata: {"a": 1}\r\n\r\ndata:{"b": "\xc3\xa9"}\n\ndata: [DONE]\n\n'
    for size in (1, 2, 7, 1000):
        buffer, events = bytearray(), []
        for start in range(0, len(stream), size):
            buffer += stream[start : start + size]
            events += list(wire.split_events(buffer))
        assert events == [b'{"a": 1}', b'{"b": "\xc3\xa9"}', b"[DONE]"]
        assert not buffer


TOO_LONG = (
    "This model's maximum context length is 2048 tokens. However, your prompt contains at least 2049 input tokens, "
    "which exceeds this limit even without any output tokens. Please reduce the length of the input prompt. "
    "(parameter=input_tokens, value=2049)"
)


@pytest.mark.parametrize(
    ("status", "body", "kind", "message"),
    [
        (400, {"error": {"message": "no", "code": 400}}, RequestRejectedError, "no"),
        (401, {"error": "Unauthorized"}, AuthenticationError, "Unauthorized"),
        (403, {"detail": "not you"}, PermissionDeniedError, "not you"),
        (404, {"error": {"message": "The model `x` does not exist."}}, ModelNotFoundError, "The model `x`"),
        (404, {"detail": "Not Found"}, ModelNotFoundError, "Not Found"),
        (429, {"error": {"message": "slow down"}}, RateLimitError, "slow down"),
        (500, {"error": {"message": "oops"}}, ServerError, "oops"),
        (503, "busy", ServerError, "busy"),
        (502, "", ServerError, "gave no reason"),
        (400, {"error": {"message": TOO_LONG}}, ContextLengthError, "maximum context length"),
    ],
)
def test_each_status_becomes_its_error_with_the_servers_words(
    status: int, body: Any, kind: type[Exception], message: str
) -> None:
    data = body if isinstance(body, str) else json.dumps(body)
    error = wire.error_from_response(status, data.encode())
    assert type(error) is kind
    assert message in error.message
    assert error.status == status


def test_a_too_long_prompt_carries_both_numbers() -> None:
    error = wire.error_from_response(400, json.dumps({"error": {"message": TOO_LONG}}).encode())
    assert isinstance(error, ContextLengthError)
    assert (error.max_model_len, error.prompt_tokens) == (2048, 2049)


def test_metrics_are_summed_over_labels() -> None:
    text = (
        "# HELP vllm:num_requests_running x\n"
        'vllm:num_requests_running{engine="0",model_name="a b"} 2.0\n'
        'vllm:num_requests_running{engine="1",model_name="a b"} 3.0\n'
        'vllm:request_success_total{finished_reason="stop"} 7.0\n'
        'vllm:e2e_request_latency_seconds_bucket{le="1"} 7.0\n'
        "process_cpu_seconds_total 3\n"
    )
    assert wire.parse_metrics(text) == {"num_requests_running": 5.0, "request_success": 7.0}


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
    body = wire.chat_body(HELLO, GenerationParams(**params))
    assert body["chat_template_kwargs"] == variables
    assert body.get("reasoning_effort") == params.get("reasoning_effort")


def test_a_count_of_no_reasoning_is_not_believed_where_there_is_some() -> None:
    usage = TokenUsage(prompt_tokens=3, completion_tokens=9, reasoning_tokens=0)
    assert wire.without_false_zero(usage).reasoning_tokens is None
    assert wire.without_false_zero(replace(usage, reasoning_tokens=5)).reasoning_tokens == 5
