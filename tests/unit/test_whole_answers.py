"""What ends before it is whole is an error, never a short answer; and what a server means as whole is no error."""

from __future__ import annotations

import json
from typing import Any

import pytest

from shared_engine import Engine, ServerConnectionError, ServerError, TokenUsage
from tests.support.raw_server import (
    CHUNKED,
    DONE,
    LAST_CHUNK,
    STREAM,
    Conversation,
    chunked,
    event,
    piece,
    raw_server,
    sends,
    whole,
)

pytestmark = pytest.mark.usefixtures("no_waiting")

HELLO = [{"role": "user", "content": "Hello"}]
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
BEGUN = event(piece("a")) + event(piece("b"))
ENDED = BEGUN + event(piece("", "stop"))
CALL = {"index": 0, "id": "x", "type": "function", "function": {"name": "add", "arguments": '{"a": '}}
CALLING = event({"index": 0, "delta": {"tool_calls": [CALL]}, "finish_reason": None})
TEXT = event({"index": 0, "text": "a", "finish_reason": None})
TWO = event(piece("a", index=0)) + event(piece("b", index=1)) + event(piece(None, "stop", index=0))


def streamed(url: str, *, chat: bool = True, max_retries: int = 0) -> tuple[str, TokenUsage | None]:
    engine = Engine(base_url=url, model="served", max_retries=max_retries)
    chunks = list(engine.stream_chat(HELLO) if chat else engine.stream_generate("Hello", max_tokens=5))
    usage = [chunk.usage for chunk in chunks if chunk.usage is not None]
    assert len(usage) <= 1
    return "".join(chunk.text for chunk in chunks), usage[0] if usage else None


@pytest.mark.parametrize(
    "answer",
    [
        CHUNKED + chunked(ENDED, event(usage=USAGE), DONE) + LAST_CHUNK,
        CHUNKED + chunked(ENDED + event(usage=USAGE)) + LAST_CHUNK,
        CHUNKED + chunked(ENDED, event(piece(None), usage=USAGE), DONE) + LAST_CHUNK,
        STREAM + b"Connection: close\r\n\r\n" + ENDED + event(usage=USAGE) + DONE,
        STREAM + b"Connection: close\r\n\r\n" + ENDED + event(usage=USAGE),
        STREAM + b"Connection: close\r\n\r\n" + ENDED + event(usage=USAGE) + b"data: [DONE]",
        whole(ENDED + event(usage=USAGE) + DONE, STREAM),
        CHUNKED + chunked(ENDED, event(usage=USAGE), DONE),  # all that was to be said has been
    ],
    ids=["vllm", "no-done", "usage-in-a-choice", "closed", "closed-no-done", "no-last-newline", "length", "cut-after"],
)
def test_what_is_whole_is_no_error(answer: bytes) -> None:
    with raw_server(sends(answer)) as server:
        assert streamed(server.url) == ("ab", TokenUsage(prompt_tokens=3, completion_tokens=2))


def test_a_server_that_sends_no_usage_is_no_error() -> None:
    with raw_server(sends(CHUNKED + chunked(ENDED, DONE) + LAST_CHUNK)) as server:
        assert streamed(server.url) == ("ab", None)


CUT = {
    "no-finish-reason": (BEGUN + DONE, "choice 0 has no finish_reason"),
    "neither": (BEGUN, "choice 0 has no finish_reason"),
    "text": (TEXT + DONE, "choice 0 has no finish_reason"),
    "tool-call": (CALLING + DONE, "choice 0 has no finish_reason"),
    "second-choice": (TWO + event(usage=USAGE) + DONE, "choice 1 has no finish_reason"),
    "empty-finish-reason": (event(piece("a", "")) + DONE, "choice 0 has no finish_reason"),
    "only-done": (DONE, "nothing of an answer came"),
    "only-usage": (event(usage=USAGE) + DONE, "nothing of an answer came"),
    "nothing": (b"\n", "nothing of an answer came"),
    "half-an-event": (ENDED + b'data: {"choices": [{"ind', "ends in the middle"),
}


@pytest.mark.parametrize("framing", ["chunked", "closed", "length"])
@pytest.mark.parametrize("case", list(CUT))
def test_a_stream_that_is_not_whole_is_an_error(case: str, framing: str) -> None:
    events, message = CUT[case]
    answer = {
        "chunked": CHUNKED + chunked(events) + LAST_CHUNK,
        "closed": STREAM + b"Connection: close\r\n\r\n" + events,
        "length": whole(events, STREAM),
    }[framing]
    with raw_server(sends(answer)) as server, pytest.raises(ServerConnectionError, match=message) as caught:
        streamed(server.url, chat=case != "text")
    assert server.url in str(caught.value)


@pytest.mark.parametrize("events", [BEGUN, ENDED])
def test_a_connection_that_is_cut_is_an_error(events: bytes) -> None:
    """Also after the finish reason, as long as neither [DONE] nor the end of the HTTP message has come."""
    with raw_server(sends(CHUNKED + chunked(events))) as server, pytest.raises(ServerConnectionError):
        streamed(server.url)


def first_time(cut: bytes, then: bytes) -> Any:
    async def script(conversation: Conversation) -> None:
        await conversation.request()
        await conversation.send(cut if conversation.number == 1 else then)

    return script


@pytest.mark.parametrize(
    "cut", [b"", CHUNKED, CHUNKED + LAST_CHUNK, CHUNKED + chunked(event(piece("")), DONE) + LAST_CHUNK]
)
def test_where_nothing_has_reached_the_caller_it_is_tried_again(cut: bytes) -> None:
    with raw_server(first_time(cut, CHUNKED + chunked(ENDED, DONE) + LAST_CHUNK)) as server:
        assert streamed(server.url, max_retries=1)[0] == "ab"
        assert server.connections == 2


def test_what_has_reached_the_caller_is_not_asked_for_again() -> None:
    with raw_server(first_time(CHUNKED + chunked(BEGUN, DONE) + LAST_CHUNK, b"")) as server:
        stream = Engine(base_url=server.url, model="served", max_retries=5).stream_chat(HELLO)
        assert next(stream).text == "a"
        with pytest.raises(ServerConnectionError):
            list(stream)
        assert server.connections == 1


# ---- answers in one piece


def answered(message: dict[str, Any] | None, **choice: Any) -> bytes:
    body = {"id": "c", "model": "served", "choices": [{"index": 0, "message": message, **choice}], "usage": USAGE}
    return json.dumps(body).encode()


NOT_WHOLE = {
    "no-finish-reason": answered({"content": "Hal"}),
    "null": answered({"content": "Hal"}, finish_reason=None),
    "empty": answered({"content": "Hal"}, finish_reason=""),
    "abort": answered({"content": "Hal"}, finish_reason="abort"),
    "tool-call": answered({"content": None, "tool_calls": [CALL]}),
    "text": answered(None, text="Hal"),
    "half-a-json": answered({"content": "Hal"}, finish_reason="stop")[:-20],
    "nothing": b"",
    "blank": b"  \n",
}


@pytest.mark.parametrize("case", list(NOT_WHOLE))
def test_an_answer_that_is_not_whole_is_tried_again_and_then_an_error(case: str) -> None:
    good = whole(answered({"content": "Half"}, finish_reason="stop"))
    with raw_server(first_time(whole(NOT_WHOLE[case]), good)) as server:
        assert Engine(base_url=server.url, model="served", max_retries=1).chat(HELLO).text == "Half"
    with raw_server(sends(whole(NOT_WHOLE[case]))) as server, pytest.raises(ServerConnectionError):
        Engine(base_url=server.url, model="served", max_retries=1).chat(HELLO)
    assert server.connections == 2


def test_the_second_of_two_choices_must_be_whole_too() -> None:
    choices = [{"index": 0, "message": {"content": "a"}, "finish_reason": "stop"}, {"index": 1, "message": {}}]
    with (
        raw_server(sends(whole(json.dumps({"choices": choices}).encode()))) as server,
        pytest.raises(ServerConnectionError, match="choice 1 has no finish_reason"),
    ):
        Engine(base_url=server.url, model="served", max_retries=0).chat(HELLO, n=2)


def test_embeddings_and_counts_that_end_in_the_middle_are_errors() -> None:
    with raw_server(sends(whole(b'{"data": [{"embedding": [1.0, '))) as server:
        engine = Engine(base_url=server.url, model="served", max_retries=0)
        with pytest.raises(ServerConnectionError):
            engine.embed(["Hello"])
        with pytest.raises(ServerConnectionError):
            engine.count_tokens("Hello")


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_the_server_gave_up_is_its_failure(stream: bool) -> None:
    body = event(piece("a", "error")) + DONE if stream else answered({"content": "a"}, finish_reason="error")
    with raw_server(sends(CHUNKED + chunked(body) + LAST_CHUNK if stream else whole(body))) as server:
        engine = Engine(base_url=server.url, model="served", max_retries=0)
        ask = engine.stream_chat if stream else engine.chat
        with pytest.raises(ServerError, match="finish_reason=error"):
            tuple(ask(HELLO))  # type: ignore[arg-type]
