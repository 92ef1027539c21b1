"""Every server's way to speak is understood alike, by the engine and by both adapters."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from langchain_core.messages import AIMessage, AIMessageChunk
from llama_index.core.base.llms.types import ThinkingBlock
from llama_index.core.llms import ChatMessage, ChatResponse
from llama_index.core.tools import FunctionTool

from langchain_vllm_local import ChatVLLM
from llama_index_vllm_local import VLLM
from shared_engine import ContextLengthError, Engine, EngineState, RequestError, ServerConnectionError, VLLMError
from tests.support.dialects import (
    CALLS,
    COMPLETION_TOKENS,
    DIALECTS,
    LIMIT,
    PROMPT_TOKENS,
    TEXT,
    THOUGHT,
    Dialect,
    app_of,
)
from tests.support.remote_server import running_app

ANSWER, THOUGHTS = "".join(TEXT), "".join(THOUGHT)
TOOLS = [{"type": "function", "function": {"name": name, "parameters": {"type": "object"}}} for name, _ in CALLS]
Served = tuple[Dialect, str]


def say(what: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": what}]


QUICK = ("vllm", "litellm", "tgi-1", "loose")


@pytest.fixture(
    params=[*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in DIALECTS if name not in QUICK)]
)
def served(request: pytest.FixtureRequest, no_waiting: None) -> Iterator[Served]:
    dialect = DIALECTS[request.param]
    with running_app(app_of(dialect)) as url:
        yield dialect, url


def thought_of(dialect: Dialect) -> str | None:
    return THOUGHTS if dialect.has.thought else None


def calls_of(dialect: Dialect) -> list[tuple[str, Any]]:
    return list(dialect.calls())


def check_ids(ids: list[str | None]) -> None:
    assert all(isinstance(each, str) and each for each in ids)
    assert len(set(ids)) == len(ids)


# ---- the engine


def test_an_answer(served: Served) -> None:
    dialect, url = served
    result = Engine(base_url=url).chat(say("say"))
    assert (result.text, result.reasoning, result.finish_reason) == (ANSWER, thought_of(dialect), "stop")
    assert (result.usage.prompt_tokens, result.usage.completion_tokens) == (PROMPT_TOKENS, COMPLETION_TOKENS)


def test_a_text(served: Served) -> None:
    _, url = served
    result = Engine(base_url=url).generate("say", max_tokens=9)
    assert (result.text, result.finish_reason) == (ANSWER, "stop")


def test_calls(served: Served) -> None:
    dialect, url = served
    result = Engine(base_url=url).chat(say("call"), tools=TOOLS)
    assert [(call.name, json.loads(call.arguments)) for call in result.tool_calls] == calls_of(dialect)
    assert result.text == ""
    check_ids([call.id for call in result.tool_calls])


def test_a_stream(served: Served) -> None:
    dialect, url = served
    chunks = list(Engine(base_url=url).stream_chat(say("say")))
    assert "".join(chunk.text for chunk in chunks) == ANSWER
    assert ("".join(chunk.reasoning or "" for chunk in chunks) or None) == thought_of(dialect)
    assert [chunk.finish_reason for chunk in chunks if chunk.finish_reason] == ["stop"]
    counts = [(c.usage.prompt_tokens, c.usage.completion_tokens) for c in chunks if c.usage is not None]
    assert counts == [(PROMPT_TOKENS, COMPLETION_TOKENS)], "once, and at the end"
    assert chunks[-1].usage is not None


def test_streamed_calls(served: Served) -> None:
    dialect, url = served
    chunks = list(Engine(base_url=url).stream_chat(say("call"), tools=TOOLS))
    found: dict[int, dict[str, str]] = {}
    for delta in (delta for chunk in chunks for delta in chunk.tool_calls):
        call = found.setdefault(delta.index, {"id": "", "name": "", "arguments": ""})
        for name in call:
            call[name] += getattr(delta, name) or ""
    assert [(call["name"], json.loads(call["arguments"])) for call in found.values()] == calls_of(dialect)
    check_ids([call["id"] for call in found.values()])
    assert [chunk.finish_reason for chunk in chunks if chunk.finish_reason] in (["tool_calls"], ["stop"])


@pytest.mark.parametrize("stream", [False, True])
def test_what_is_too_long_has_its_numbers(served: Served, stream: bool) -> None:
    dialect, url = served
    engine = Engine(base_url=url)
    ask = engine.stream_chat if stream else engine.chat
    with pytest.raises(RequestError) as caught:
        tuple(ask(say("long")))  # type: ignore[arg-type]
    if dialect.has.limit_in_refusal:
        assert isinstance(caught.value, ContextLengthError)
        assert caught.value.max_model_len == LIMIT
    assert "<" not in caught.value.message.replace("<=", ""), "no page of HTML"


@pytest.mark.parametrize("stream", [False, True])
def test_what_is_busy_is_asked_again(served: Served, stream: bool) -> None:
    _, url = served
    engine = Engine(base_url=url, model="m", max_retries=1)
    text = "".join(c.text for c in engine.stream_chat(say("busy"))) if stream else engine.chat(say("busy")).text
    assert text == ANSWER


def test_what_is_busy_is_said_in_the_servers_words(served: Served) -> None:
    dialect, url = served
    with pytest.raises(RequestError) as caught:
        Engine(base_url=url, model="m", max_retries=0).chat(say("busy"))
    assert caught.value.status == dialect.busy()[0]
    assert any(words in caught.value.message for words in ("later", "Loading", "overloaded", "502 Bad Gateway"))


@pytest.mark.parametrize("stream", [False, True])
def test_an_error_inside_a_200_is_an_error(served: Served, stream: bool) -> None:
    dialect, url = served
    engine = Engine(base_url=url, max_retries=0)
    ask = engine.stream_chat if stream else engine.chat
    with pytest.raises(RequestError) as caught:
        tuple(ask(say("fail")))  # type: ignore[arg-type]
    if not stream or dialect.has.stream_error:
        assert "it broke" in caught.value.message
    else:
        assert isinstance(caught.value, ServerConnectionError)


def test_health_and_status(served: Served) -> None:
    _, url = served
    engine = Engine(base_url=url)
    engine.warmup()
    assert engine.status().state is EngineState.READY
    assert engine.is_ready()
    assert engine.metrics() == {}


def test_the_limit(served: Served) -> None:
    dialect, url = served
    engine = Engine(base_url=url)
    engine.chat(say("say"))
    assert engine.context_window == (LIMIT if dialect.has.lists_limit else None)


def test_tokens_are_counted_exactly_or_not_at_all(served: Served) -> None:
    dialect, url = served
    engine = Engine(base_url=url, max_retries=0)
    if dialect.has.counts_tokens:
        assert engine.count_tokens("a b c") == 3
        assert engine.tokenize("a b c") == [1, 2, 3]
        return
    for ask in (engine.count_tokens, engine.tokenize):
        with pytest.raises(VLLMError):
            ask("a b c")


# ---- LangChain


@pytest.mark.parametrize("stream", [False, True])
def test_langchain(served: Served, stream: bool) -> None:
    dialect, url = served
    model = ChatVLLM(base_url=url)
    message: AIMessage = added_up(model.stream("say")) if stream else model.invoke("say")
    assert message.text == ANSWER
    assert message.response_metadata["finish_reason"] == "stop"
    usage = message.usage_metadata
    assert usage is not None
    assert (usage["input_tokens"], usage["output_tokens"]) == (PROMPT_TOKENS, COMPLETION_TOKENS)
    thoughts = [block["reasoning"] for block in message.content_blocks if block["type"] == "reasoning"]
    assert ("".join(thoughts) or None) == thought_of(dialect)


@pytest.mark.parametrize("stream", [False, True])
def test_langchain_calls(served: Served, stream: bool) -> None:
    dialect, url = served
    model = ChatVLLM(base_url=url).bind_tools(TOOLS)
    message: AIMessage = added_up(model.stream("call")) if stream else model.invoke("call")
    assert [(call["name"], call["args"]) for call in message.tool_calls] == calls_of(dialect)
    assert message.invalid_tool_calls == []
    check_ids([call["id"] for call in message.tool_calls])


def added_up(chunks: Iterator[Any]) -> AIMessageChunk:
    first, *rest = chunks
    whole: AIMessageChunk = first
    for chunk in rest:
        whole += chunk
    return whole


@pytest.mark.parametrize("stream", [False, True])
def test_langchain_errors(served: Served, stream: bool) -> None:
    _, url = served
    model = ChatVLLM(base_url=url, max_retries=0)
    for what in ("long", "fail"):
        with pytest.raises(RequestError):
            list(model.stream(what)) if stream else model.invoke(what)


# ---- LlamaIndex


@pytest.mark.parametrize("stream", [False, True])
def test_llama_index(served: Served, stream: bool) -> None:
    dialect, url = served
    llm, messages = VLLM(base_url=url), [ChatMessage(content="say")]
    response: ChatResponse = list(llm.stream_chat(messages))[-1] if stream else llm.chat(messages)
    assert response.message.content == ANSWER
    thoughts = [block.content for block in response.message.blocks if isinstance(block, ThinkingBlock)]
    assert ("".join(each or "" for each in thoughts) or None) == thought_of(dialect)
    assert response.additional_kwargs["prompt_tokens"] == PROMPT_TOKENS
    assert response.additional_kwargs["completion_tokens"] == COMPLETION_TOKENS


@pytest.mark.parametrize("stream", [False, True])
def test_llama_index_calls(served: Served, stream: bool) -> None:
    dialect, url = served
    llm = VLLM(base_url=url)
    tools = [FunctionTool.from_defaults(lambda: 0, name=name, description="a tool") for name, _ in CALLS]
    if stream:
        response = list(llm.stream_chat_with_tools(tools, user_msg="call"))[-1]
    else:
        response = llm.chat_with_tools(tools, user_msg="call")
    selections = llm.get_tool_calls_from_response(response)
    assert [(each.tool_name, each.tool_kwargs) for each in selections] == calls_of(dialect)
    check_ids([each.tool_id for each in selections])


@pytest.mark.parametrize("stream", [False, True])
def test_llama_index_errors(served: Served, stream: bool) -> None:
    _, url = served
    llm = VLLM(base_url=url, max_retries=0)
    for what in ("long", "fail"):
        with pytest.raises(RequestError):
            list(llm.stream_chat([ChatMessage(content=what)])) if stream else llm.chat([ChatMessage(content=what)])
