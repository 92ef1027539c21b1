"""Answers are what vLLM 0.32 sent."""

from __future__ import annotations

import json
from typing import Any

import pytest

from shared_engine import ServerConnectionError, ServerError, ToolCall, ToolCallDelta
from shared_engine.request.answers import parse_result
from shared_engine.request.refusals import says_engine_died
from shared_engine.request.streams import ChunkReader


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
    result = parse_result(answer({"index": 0, "message": message, "finish_reason": "stop", "stop_reason": None}))
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
    result = parse_result(answer({"index": 0, "message": message, "finish_reason": "tool_calls"}))
    assert result.text == ""
    assert result.reasoning == "Think"
    assert result.tool_calls == (ToolCall(id="call-1", name="add", arguments='{"a": 1'),)


def test_a_text_answer() -> None:
    result = parse_result(answer({"index": 0, "text": "Hi", "finish_reason": "length", "stop_reason": 2}))
    assert (result.text, result.finish_reason, result.choices[0].stop_reason) == ("Hi", "length", 2)


def test_the_chunks_of_a_stream() -> None:
    def event(**fields: Any) -> bytes:
        return json.dumps({"id": "c", "model": "m", **fields}).encode()

    delta = {"content": None, "tool_calls": [{"index": 1, "id": "x", "function": {"name": "add", "arguments": ""}}]}
    reader = ChunkReader()
    (chunk,) = reader.chunks(event(choices=[{"index": 0, "delta": delta, "finish_reason": None}]))
    assert chunk.tool_calls == (ToolCallDelta(index=1, id="x", name="add", arguments=""),)
    (chunk,) = reader.chunks(event(choices=[{"index": 2, "text": "Hi", "finish_reason": "stop"}]))
    assert (chunk.text, chunk.index, chunk.finish_reason, chunk.usage) == ("Hi", 2, "stop", None)
    assert list(reader.chunks(event(choices=[], usage={"prompt_tokens": 4, "completion_tokens": 2}))) == []
    last = reader.usage()
    assert last is not None
    assert last.usage is not None
    assert last.usage.total_tokens == 6


def test_an_error_in_a_stream_is_raised() -> None:
    data = b'{"error": {"message": "EngineCore encountered an issue.", "type": "InternalServerError", "code": 500}}'
    with pytest.raises(ServerError, match="EngineCore") as caught:
        list(ChunkReader().chunks(data))
    assert says_engine_died(caught.value)


def test_what_is_no_answer_of_vllm_is_a_server_error() -> None:
    with pytest.raises(ServerError, match="not what vLLM sends"):
        parse_result(b"<html>proxy</html>")


def test_a_count_of_no_reasoning_is_not_believed_where_there_is_some() -> None:
    details = {"reasoning_tokens": 0}
    usage = {"prompt_tokens": 3, "completion_tokens": 9, "completion_tokens_details": details}
    message = {"role": "assistant", "content": "Hi", "reasoning": "Think"}
    assert (
        parse_result(answer({"message": message, "finish_reason": "stop"}, usage=usage)).usage.reasoning_tokens is None
    )
    details["reasoning_tokens"] = 5
    assert parse_result(answer({"message": message, "finish_reason": "stop"}, usage=usage)).usage.reasoning_tokens == 5


def test_a_streams_reader_drops_empty_chunks_and_false_counts() -> None:
    reader = ChunkReader()
    events: list[dict[str, Any]] = [
        {"choices": [{"delta": {"role": "assistant", "content": ""}}]},
        {"choices": [{"delta": {"reasoning": "Think"}}]},
        {"choices": [{"delta": {"content": "Hi"}, "finish_reason": "stop"}]},
        {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens_details": {"reasoning_tokens": 0}}},
    ]
    chunks = [chunk for event in events for chunk in reader.chunks(json.dumps(event).encode())]
    assert [(chunk.reasoning, chunk.text) for chunk in chunks] == [("Think", ""), (None, "Hi")]
    last = reader.usage()
    assert last is not None
    assert last.usage is not None
    assert last.usage.reasoning_tokens is None


def test_an_answer_that_the_server_cut_off_is_an_error() -> None:
    with pytest.raises(ServerConnectionError, match="finish_reason=abort"):
        parse_result(answer({"message": {"content": "Hal"}, "finish_reason": "abort"}))
    with pytest.raises(ServerConnectionError, match="finish_reason=abort"):
        list(ChunkReader().chunks(b'{"choices": [{"delta": {"content": "Hal"}, "finish_reason": "abort"}]}'))
