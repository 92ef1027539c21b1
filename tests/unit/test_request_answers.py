"""Answers are what vLLM 0.32 sent."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest

from shared_engine import (
    RateLimitError,
    RequestError,
    RequestRejectedError,
    ServerConnectionError,
    ServerError,
    ToolCall,
    ToolCallDelta,
)
from shared_engine.request.answers import (
    parse_embeddings,
    parse_models,
    parse_rerank,
    parse_result,
    parse_token_count,
    parse_tokens,
)
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
    (chunk,) = reader.chunks(event(choices=[{"index": 2, "delta": delta, "finish_reason": None}]))
    assert chunk.tool_calls == (ToolCallDelta(index=1, id="x", name="add", arguments=""),)
    (chunk,) = reader.chunks(event(choices=[{"index": 2, "text": "Hi", "finish_reason": "stop"}]))
    assert (chunk.text, chunk.index, chunk.finish_reason, chunk.usage) == ("Hi", 2, "stop", None)
    assert list(reader.chunks(event(choices=[], usage={"prompt_tokens": 4, "completion_tokens": 2}))) == []
    *_, last = reader.end("here", is_done=True, needs_done=True)
    assert last.usage is not None
    assert last.usage.total_tokens == 6


def test_an_error_in_a_stream_is_raised() -> None:
    data = b'{"error": {"message": "EngineCore encountered an issue.", "type": "InternalServerError", "code": 500}}'
    with pytest.raises(ServerError, match="EngineCore"):
        list(ChunkReader().chunks(data))


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
    *_, last = reader.end("here", is_done=True, needs_done=True)
    assert last.usage is not None
    assert last.usage.reasoning_tokens is None


def test_an_answer_that_the_server_cut_off_is_an_error() -> None:
    with pytest.raises(ServerConnectionError, match="finish_reason=abort"):
        parse_result(answer({"message": {"content": "Hal"}, "finish_reason": "abort"}))
    with pytest.raises(ServerConnectionError, match="finish_reason=abort"):
        list(ChunkReader().chunks(b'{"choices": [{"delta": {"content": "Hal"}, "finish_reason": "abort"}]}'))


@pytest.mark.parametrize(
    "thought",
    [
        {"reasoning": "Think"},
        {"reasoning_content": "Think"},
        {"reasoning_text": "Think"},
        {"thinking": "Think"},
        {
            "reasoning_details": [
                {"type": "reasoning.text", "text": "Thi"},
                {"type": "reasoning.summary", "summary": "nk"},
            ]
        },
        {"reasoning": "Think", "reasoning_content": "Think", "reasoning_details": [{"text": "Think"}]},
        {"reasoning": None, "reasoning_content": "Think"},
        {"reasoning": ["Think"]},
        {"content": [{"type": "thinking", "thinking": "Think"}, {"type": "text", "text": "Hi"}]},
    ],
)
def test_reasoning_has_many_names(thought: dict[str, Any]) -> None:
    message = {"content": "Hi", **thought}
    choice = parse_result(answer({"message": message, "finish_reason": "stop"})).choices[0]
    assert (choice.reasoning, choice.text) == ("Think", "Hi")
    (chunk,) = ChunkReader().chunks(answer({"delta": message, "finish_reason": "stop"}))
    assert (chunk.reasoning, chunk.text) == ("Think", "Hi")


FIELDS = {
    **dict.fromkeys(("id", "model", "object", "choices", "usage"), ""),
    **dict.fromkeys(("index", "finish_reason", "stop_reason", "logprobs"), "choice"),
    **dict.fromkeys(("content", "tool_calls", "reasoning"), "message"),
    **dict.fromkeys(("prompt_tokens", "completion_tokens", "prompt_tokens_details"), "usage"),
}
VALUES: list[Any] = [
    None,
    "",
    "x",
    "3",
    0,
    3,
    3.0,
    -1,
    True,
    [],
    ["x"],
    {},
    {"x": 1},
    [[]],
    [{"text": "x"}],
    10**30,
    "NaN",
]


@pytest.mark.parametrize("name", list(FIELDS))
def test_a_field_of_any_type_is_understood_or_a_typed_error(name: str) -> None:
    """Missing, null, of another type: never an untyped error, and what is not about it is read all the same."""
    for value in [..., *VALUES]:
        for kind in ("message", "delta"):
            message: dict[str, Any] = {"content": "Hi", "tool_calls": None, "reasoning": None}
            choice: dict[str, Any] = {
                "index": 0,
                kind: message,
                "finish_reason": "stop",
                "logprobs": None,
                "stop_reason": None,
            }
            usage: dict[str, Any] = {"prompt_tokens": 1, "completion_tokens": 2, "prompt_tokens_details": None}
            body: dict[str, Any] = {"id": "c", "model": "m", "object": "chat", "choices": [choice], "usage": usage}
            owner: dict[str, Any] = {"": body, "choice": choice, "message": message, "usage": usage}[FIELDS[name]]
            owner.pop(name, None)
            if value is not ...:
                owner[name] = value
            data = json.dumps(body).encode()
            try:
                if kind == "message":
                    text = parse_result(data).text
                else:
                    reader = ChunkReader()
                    text = "".join(chunk.text for chunk in reader.chunks(data))
                    list(reader.end("here", is_done=True, needs_done=False))
            except RequestError:
                assert name in ("choices", "finish_reason"), (name, value)
                continue
            assert text == "Hi" or name in ("content", "choices"), (name, value)


def test_an_error_of_any_form_is_an_error_in_the_servers_words() -> None:
    for error in (
        {"error": {"message": "it broke", "code": 500}},
        {"error": {"message": "it broke", "code": "500"}},
        {"error": {"message": "it broke", "type": "server_error"}},
        {"error": {"message": {"message": "it broke"}}},
        {"error": "it broke"},
        {"error": ["it broke"]},
        {"error": {"detail": "it broke"}},
        {"object": "error", "message": "it broke", "code": 500},
        {"message": "it broke"},
        {"error": {"message": "it broke"}, "choices": []},
        {"choices": [{"delta": {}, "finish_reason": "error", "error": {"message": "it broke", "code": 502}}]},
    ):
        data = json.dumps(error).encode()
        with pytest.raises(RequestError, match="it broke"):
            list(ChunkReader().chunks(data))
        with pytest.raises(RequestError, match="it broke"):
            parse_result(data)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (429, RateLimitError),
        ("429", RateLimitError),
        (400, RequestRejectedError),
        ("invalid_request_error", RequestRejectedError),
        ("server_error", ServerError),
        (None, ServerError),
        (7, ServerError),
    ],
)
def test_an_error_inside_a_200_has_its_kind(code: Any, kind: type[Exception]) -> None:
    with pytest.raises(kind):
        parse_result(json.dumps({"error": {"message": "no", "code": code}}).encode())


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("vectors in a list", b"[[1.0, 2.0], [3.0, 4.0]]", [[1, 2], [3, 4]]),
        ("each in a list of its own", b'[{"index": 0, "embedding": [[1.0, 2.0]]}]', [[1, 2]]),
        ("under another name", b'{"embeddings": [[1.0, 2.0]]}', [[1, 2]]),
        (
            "index as text",
            b'{"data": [{"index": "1", "embedding": [3]}, {"index": "0", "embedding": [1]}]}',
            [[1], [3]],
        ),
        ("index null", b'{"data": [{"index": null, "embedding": [1]}, {"index": null, "embedding": [3]}]}', [[1], [3]]),
    ],
)
def test_embeddings_of_other_servers(name: str, data: bytes, expected: list[list[float]]) -> None:
    assert parse_embeddings(data).embeddings == expected, name


@pytest.mark.parametrize(
    "data",
    [
        b'[{"index": 1, "score": 0.5}, {"index": 0, "score": 0.9}]',
        b'{"results": [{"index": "1", "relevance_score": "0.5"}, {"index": "0", "relevance_score": "0.9"}]}',
        b'{"data": [{"index": 1, "score": 0.5}, {"index": 0, "score": 0.9}]}',
    ],
)
def test_scores_of_other_servers(data: bytes) -> None:
    assert [(each.index, each.relevance_score) for each in parse_rerank(data).results] == [(0, 0.9), (1, 0.5)]


@pytest.mark.parametrize(
    "limit",
    [
        {"max_model_len": 2048},
        {"meta": {"n_ctx": 2048}},  # llama.cpp
        {"metadata": {"model_id": "m", "max_request_context_length": 2048}},  # Ray Serve LLM
    ],
)
def test_limits_of_other_servers_models(limit: dict[str, Any]) -> None:
    listed = json.dumps({"data": [{"id": "m", **limit}, {"id": "n"}]}).encode()
    assert parse_models(listed) == [("m", 2048), ("n", None)]


@pytest.mark.parametrize("parse", [parse_embeddings, parse_rerank, parse_models, parse_token_count, parse_tokens])
def test_what_no_one_understands_is_a_typed_error_or_nothing(parse: Any) -> None:
    for data in (
        b"",
        b"{",
        b"<html>",
        b"null",
        b"5",
        b'"x"',
        b"[]",
        b"{}",
        b'{"data": 5}',
        b'{"data": [5]}',
        b"[[[]]]",
    ):
        with contextlib.suppress(RequestError):
            assert parse(data) is not None


def test_choices_without_an_index_are_numbered() -> None:
    choices = [{"message": {"content": text}, "finish_reason": "stop"} for text in "ab"]
    result = parse_result(json.dumps({"choices": choices}).encode())
    assert [(choice.index, choice.text) for choice in result.choices] == [(0, "a"), (1, "b")]


def test_the_last_usage_that_counts_something_is_the_answers() -> None:
    reader = ChunkReader()
    for usage in ({"prompt_tokens": 3}, {"prompt_tokens": 3, "completion_tokens": 5}, {"prompt_tokens": 0}, None):
        choice = {"delta": {"content": "a"}, "finish_reason": "stop"}
        list(reader.chunks(json.dumps({"choices": [choice], "usage": usage}).encode()))
    (last,) = reader.end("here", is_done=True, needs_done=True)
    assert last.usage is not None
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (3, 5)
