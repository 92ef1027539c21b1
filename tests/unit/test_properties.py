"""What holds for any input: wire, messages, settings."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared_engine.errors import VLLMError
from shared_engine.params import GenerationParams
from shared_engine.request import answers
from shared_engine.request.bodies import chat_request, completion_request, tokenize_request
from shared_engine.request.checks import ROLES, check_items, check_messages, check_prompts
from shared_engine.request.client import split_events
from shared_engine.request.refusals import error_from_response
from shared_engine.request.streams import ChunkReader
from shared_engine.results import GenerationChunk
from shared_engine.settings import EngineSettings
from tests.support.generated import NESTED, few, garbage, json_values, texts


def read_event(data: bytes) -> list[GenerationChunk]:
    reader = ChunkReader()
    return [*reader.chunks(data), *reader.end("the server", is_done=True, needs_done=False)]


PARSERS = [
    answers.parse_result, read_event, answers.parse_embeddings, answers.parse_rerank, answers.parse_models,
    answers.parse_token_count, answers.parse_tokens,
]  # fmt: skip
encodable = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)  # no lone surrogates


# ---- from the wire


@pytest.mark.parametrize("parse", PARSERS, ids=lambda parse: parse.__name__)
@pytest.mark.slow
def test_an_answer_is_understood_or_is_an_error_of_ours(parse: Callable[[bytes], Any]) -> None:
    @few
    @given(garbage("id", "model", "choices", "usage", "error", "data", "results", "count", "tokens"))
    def holds(data: bytes) -> None:
        with contextlib.suppress(VLLMError):
            parse(data)

    holds()
    for data in NESTED:
        with pytest.raises(VLLMError):
            parse(data)


@few
@given(st.integers(400, 599), garbage("error", "message", "detail", "code"))
@pytest.mark.slow
def test_a_failed_answer_has_words(status: int, body: bytes) -> None:
    for each in (body, *NESTED):
        error = error_from_response(status, each)
        assert error.status == status
        assert error.message


@pytest.mark.slow
@few
@given(st.lists(encodable, max_size=5), st.lists(st.integers(1, 30), max_size=40), st.sampled_from([b"\n", b"\r\n"]))
def test_events_are_the_same_however_the_bytes_are_cut(values: list[str], cuts: list[int], end: bytes) -> None:
    sent = [json.dumps({"text": value}).encode() for value in values]
    stream = b"".join(b": ping" + end + end + b"data: " + event + end + end for event in sent)
    buffer, events = bytearray(), []
    while stream:
        size = cuts.pop() if cuts else len(stream)
        buffer += stream[:size]
        stream = stream[size:]
        events += list(split_events(buffer))
    assert events == sent


@pytest.mark.slow
@few
@given(st.lists(encodable, min_size=1, max_size=3), st.integers(0, 10**6), st.sampled_from(["stop", "length", None]))
def test_what_a_server_says_comes_through(contents: list[str], tokens: int, finish_reason: str | None) -> None:
    choices = [
        {"index": index, "message": {"role": "assistant", "content": content}, "finish_reason": finish_reason}
        for index, content in enumerate(contents)
    ]
    data = {"id": "1", "model": "m", "choices": choices, "usage": {"prompt_tokens": tokens, "completion_tokens": 1}}
    try:
        result = answers.parse_result(json.dumps(data).encode())
    except VLLMError:
        assert finish_reason is None
        return
    assert [choice.text for choice in result.choices] == contents
    assert {choice.finish_reason for choice in result.choices} == {finish_reason}
    assert result.usage.prompt_tokens == tokens


# ---- to the wire


@pytest.mark.slow
@few
@given(st.lists(st.fixed_dictionaries({"role": st.sampled_from(ROLES), "content": encodable}), min_size=1, max_size=4))
def test_a_conversation_is_sent_as_it_is(messages: list[dict[str, str]]) -> None:
    for request in (chat_request(messages, GenerationParams()), tokenize_request(messages, None, None)):
        body = msgspec.json.decode(request.for_server("m"))
        assert (body["model"], body["messages"]) == ("m", messages)


@few
@given(encodable.filter(bool), st.integers(1, 10**6), st.floats(0, 2))
def test_a_prompt_is_sent_as_it_is(prompt: str, max_tokens: int, temperature: float) -> None:
    params = GenerationParams(max_tokens=max_tokens, temperature=temperature)
    body = msgspec.json.decode(completion_request(prompt, params).for_server("m"))
    assert (body["prompt"], body["max_tokens"], body["temperature"]) == (prompt, max_tokens, temperature)


@pytest.mark.slow
@few
@given(json_values)
def test_any_input_is_accepted_or_refused_by_us(value: Any) -> None:
    for check in (check_messages, check_prompts, lambda each: check_items(each, "texts", "raise")):
        with contextlib.suppress(VLLMError):
            check(value)


@pytest.mark.slow
@few
@given(st.dictionaries(texts, json_values, max_size=2), json_values, texts)
def test_any_message_is_sent_or_refused_by_us(message: dict[str, Any], content: Any, text: str) -> None:
    for each in ({"role": "user", "content": content}, {"role": "user", "content": text, **message}):
        with contextlib.suppress(VLLMError):
            chat_request(check_messages([each]), GenerationParams())


# ---- settings


@pytest.mark.slow
@few
@given(st.sampled_from(sorted(EngineSettings.model_fields)), json_values)
def test_any_setting_is_accepted_or_refused_by_us(name: str, value: Any) -> None:
    fields = {"model": "m", name: value}
    try:
        settings = EngineSettings(**fields)
    except VLLMError:
        return
    again = EngineSettings(**settings.model_dump(exclude_unset=True))
    if not isinstance(value, float) or math.isfinite(value):
        assert again == settings


@pytest.mark.slow
@few
@given(st.sampled_from(sorted(GenerationParams.model_fields)), json_values)
def test_any_parameter_is_accepted_or_refused_by_us(name: str, value: Any) -> None:
    with contextlib.suppress(VLLMError):
        GenerationParams(**{name: value})
