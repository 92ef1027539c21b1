"""Tools on real vLLM: what the model is told of them, the calls it makes, and what becomes of their results."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable
from typing import Any, Literal

import pytest
from llama_index.core.base.llms.types import ThinkingBlock, ToolCallBlock
from llama_index.core.chat_engine.types import AgentChatResponse
from llama_index.core.llms import ChatMessage, ChatResponse
from llama_index.core.tools import FunctionTool
from pydantic import BaseModel

from llama_index_vllm_local import VLLM
from shared_engine.errors import InvalidInputError, LengthFinishReasonError
from tests.llama_index.agent_runs import ADD, GET_WEATHER, MULTIPLY
from tests.llama_index.ways import alist
from tests.support.agent_tools import SUM, TWO_CITIES, WEATHER
from tests.support.remote_server import RemoteServer
from tests.support.scripted import answers, call

# The four ways to ask, alike: each gives its responses, one, or all pieces of a stream.
WAYS: dict[str, Callable[..., list[ChatResponse]]] = {
    "chat": lambda llm, *args, **kw: [llm.chat_with_tools(*args, **kw)],
    "stream_chat": lambda llm, *args, **kw: list(llm.stream_chat_with_tools(*args, **kw)),
    "achat": lambda llm, *args, **kw: [asyncio.run(llm.achat_with_tools(*args, **kw))],
    "astream_chat": lambda llm, *args, **kw: asyncio.run(alist(llm.astream_chat_with_tools(*args, **kw))),
}
every_way = pytest.mark.parametrize("ask", list(WAYS.values()), ids=list(WAYS))
whole_and_streamed = pytest.mark.parametrize("ask", [WAYS["chat"], WAYS["stream_chat"]], ids=["whole", "streamed"])


def calls_of(llm: VLLM, response: ChatResponse) -> list[tuple[str, dict[str, Any]]]:
    selections = llm.get_tool_calls_from_response(response, error_on_no_tool_call=False)
    return [(selection.tool_name, selection.tool_kwargs) for selection in selections]


# ---- calls


@every_way
@pytest.mark.parametrize("choice", [{}, {"tool_required": True}, {"tool_choice": "get_weather"}], ids=str)
def test_the_model_calls_a_tool(llm: VLLM, ask: Callable[..., list[ChatResponse]], choice: dict[str, Any]) -> None:
    last = ask(llm, [GET_WEATHER], WEATHER, **choice)[-1]
    (selection,) = llm.get_tool_calls_from_response(last)
    assert (selection.tool_name, selection.tool_kwargs) == ("get_weather", {"city": "Paris"})
    assert last.raw["usage"]["completion_tokens"] > 5
    (block,) = last.message.blocks
    assert isinstance(block, ToolCallBlock)
    assert block.tool_call_id == selection.tool_id != ""
    (mirrored,) = last.message.additional_kwargs["tool_calls"]
    assert mirrored["id"] == selection.tool_id


def test_the_model_can_be_kept_from_calling(llm: VLLM) -> None:
    response = llm.chat_with_tools([GET_WEATHER], WEATHER, tool_choice="none")
    assert not calls_of(llm, response)
    with pytest.raises(ValueError, match="the model called no tool"):
        llm.get_tool_calls_from_response(response)


@every_way
def test_calls_come_in_parallel_only_if_allowed(llm: VLLM, ask: Callable[..., list[ChatResponse]]) -> None:
    both = ask(llm, [GET_WEATHER], TWO_CITIES, allow_parallel_tool_calls=True)[-1]
    assert calls_of(llm, both) == [("get_weather", {"city": "Oslo"}), ("get_weather", {"city": "Madrid"})]
    assert len({selection.tool_id for selection in llm.get_tool_calls_from_response(both)}) == 2
    assert calls_of(llm, ask(llm, [GET_WEATHER], TWO_CITIES)[-1]) == [("get_weather", {"city": "Oslo"})]


def test_a_call_is_shown_while_it_streams(llm: VLLM) -> None:
    pieces = [calls_of(llm, piece) for piece in llm.stream_chat_with_tools([ADD, MULTIPLY], SUM)]
    shown = [kwargs for calls in pieces for _, kwargs in calls]
    assert shown[0] == {}
    assert {"a": 12, "b": 3} in shown
    assert shown[-1] == {"a": 12, "b": 30}


@whole_and_streamed
def test_a_tool_without_parameters_is_called(llm: VLLM, ask: Callable[..., list[ChatResponse]]) -> None:
    bare = {"type": "function", "function": {"name": "get_time"}}
    for choice in ({}, {"tool_required": True}):
        assert calls_of(llm, ask(llm, [bare], "Call get_time.", **choice)[-1]) == [("get_time", {})]


@whole_and_streamed
def test_a_tool_is_called_by_the_name_it_has(llm: VLLM, ask: Callable[..., list[ChatResponse]]) -> None:
    """Core writes other names for OpenAI, and would not find the tool again."""
    odd = FunctionTool.from_defaults(fn=GET_WEATHER.fn, name="get weather[city]")
    for choice in ({}, {"tool_choice": "get weather[city]"}):
        assert calls_of(llm, ask(llm, [odd], WEATHER, **choice)[-1]) == [("get weather[city]", {"city": "Paris"})]


@pytest.mark.parametrize(
    ("choice", "city"),
    [
        ({}, "Paris"),
        ({"strict": True}, "Rome"),
        ({"tool_required": True}, "Rome"),
        ({"tool_choice": "get_weather"}, "Rome"),
        ({"tool_required": True, "strict": False}, "Paris"),
    ],
    ids=str,
)
def test_arguments_follow_the_schema_where_a_call_is_forced_or_tools_are_strict(
    llm: VLLM, choice: dict[str, Any], city: str
) -> None:
    parameters = {"type": "object", "properties": {"city": {"enum": ["Rome"]}}, "required": ["city"]}
    only_rome = {"type": "function", "function": {"name": "get_weather", "parameters": parameters}}
    assert calls_of(llm, llm.chat_with_tools([only_rome], WEATHER, **choice)) == [("get_weather", {"city": city})]


class OnlyRome(BaseModel):
    city: Literal["Rome"]


def test_a_model_can_be_strict_for_all_its_calls(llm: VLLM) -> None:
    tool = FunctionTool.from_defaults(fn=GET_WEATHER.fn, name="get_weather", fn_schema=OnlyRome)
    assert calls_of(llm, llm.chat_with_tools([tool], WEATHER)) == [("get_weather", {"city": "Paris"})]
    strict = llm.model_copy(update={"strict": True})
    assert calls_of(strict, strict.chat_with_tools([tool], WEATHER)) == [("get_weather", {"city": "Rome"})]


@whole_and_streamed
def test_a_model_thinks_before_it_calls(llm: VLLM, ask: Callable[..., list[ChatResponse]]) -> None:
    pieces = ask(llm, [ADD, MULTIPLY], SUM, enable_thinking=True, max_tokens=96)
    (thought,) = [block for block in pieces[-1].message.blocks if isinstance(block, ThinkingBlock)]
    assert thought.content
    assert calls_of(llm, pieces[-1]) == [("add", {"a": 12, "b": 30})]


# ---- calls that were cut off


@every_way
def test_a_call_that_was_cut_off_is_an_error(llm: VLLM, ask: Callable[..., list[ChatResponse]]) -> None:
    """The arguments that have come may be valid JSON with a little help, and wrong: 3 where 30 was meant."""
    for choice in ({}, {"tool_required": True}, {"tool_choice": "add"}):
        last = ask(llm, [ADD, MULTIPLY], SUM, max_tokens=14, **choice)[-1]
        with pytest.raises(LengthFinishReasonError, match="raise max_tokens"):
            llm.get_tool_calls_from_response(last)


def test_a_call_is_whole_with_the_token_that_ends_it(llm: VLLM) -> None:
    last = WAYS["stream_chat"](llm, [ADD, MULTIPLY], SUM, max_tokens=16)[-1]
    assert last.raw["choices"][0]["finish_reason"] == "length"
    assert calls_of(llm, last) == [("add", {"a": 12, "b": 30})]


# ---- results


@every_way
def test_the_answer_uses_what_the_tool_returned(llm: VLLM, ask: Callable[..., list[ChatResponse]]) -> None:
    asked = ChatMessage(role="user", content=WEATHER)
    called = ask(llm, [GET_WEATHER], chat_history=[asked])[-1]
    (selection,) = llm.get_tool_calls_from_response(called)
    told = ChatMessage(role="tool", content="It's raining.", additional_kwargs={"tool_call_id": selection.tool_id})
    history = [asked, called.message, told]
    before = copy.deepcopy(history)
    answer = ask(llm, [GET_WEATHER], chat_history=history)[-1]
    assert answer.message.content == "It's raining."
    assert not calls_of(llm, answer)
    assert history == before


def test_results_are_told_in_the_order_of_their_calls(llm: VLLM) -> None:
    """The template writes them without ids, and tiny_chat repeats them in the order that it reads."""
    called = llm.chat_with_tools([GET_WEATHER], TWO_CITIES, allow_parallel_tool_calls=True)
    oslo, madrid = (selection.tool_id for selection in llm.get_tool_calls_from_response(called))

    def told(call_id: str, result: str) -> ChatMessage:
        return ChatMessage(role="tool", content=result, additional_kwargs={"tool_call_id": call_id})

    history = [ChatMessage(role="user", content=TWO_CITIES), called.message]
    sun, rain = told(oslo, "It's sunny."), told(madrid, "It's raining.")
    for results in ([sun, rain], [rain, sun]):
        answer = llm.chat_with_tools([GET_WEATHER], chat_history=[*history, *results])
        assert (answer.message.content or "").startswith("It's sunny. It's raining.")


# ---- predict_and_call

CALLED: dict[str, Callable[..., AgentChatResponse]] = {
    "sync": lambda llm, *args, **kw: llm.predict_and_call(*args, **kw),
    "async": lambda llm, *args, **kw: asyncio.run(llm.apredict_and_call(*args, **kw)),
}
either_way = pytest.mark.parametrize("predict", list(CALLED.values()), ids=list(CALLED))


def broken_tool() -> FunctionTool:
    def get_weather(city: str) -> str:
        """Get the weather for a city."""
        raise KeyError(f"no such city: {city}")

    return FunctionTool.from_defaults(fn=get_weather)


@either_way
def test_predict_and_call_returns_what_the_tool_said(llm: VLLM, predict: Callable[..., AgentChatResponse]) -> None:
    answer = predict(llm, [GET_WEATHER], WEATHER)
    assert answer.response == "It's sunny in Paris."
    assert [(source.tool_name, source.is_error) for source in answer.sources] == [("get_weather", False)]


@either_way
def test_predict_and_call_calls_in_parallel(llm: VLLM, predict: Callable[..., AgentChatResponse]) -> None:
    answer = predict(llm, [GET_WEATHER], TWO_CITIES, allow_parallel_tool_calls=True)
    assert answer.response == "It's sunny in Oslo.\n\nIt's sunny in Madrid."
    assert predict(llm, [GET_WEATHER], TWO_CITIES).response == "It's sunny in Oslo."


@either_way
def test_predict_and_call_without_a_call(llm: VLLM, predict: Callable[..., AgentChatResponse]) -> None:
    with pytest.raises(ValueError, match="the model called no tool; it answered: 'Hello!"):
        predict(llm, [GET_WEATHER], "Hello")
    answer = predict(llm, [GET_WEATHER], "Hello", error_on_no_tool_call=False)
    assert answer.response.startswith("Hello!")
    assert not answer.sources


@either_way
def test_predict_and_call_of_a_tool_that_fails(llm: VLLM, predict: Callable[..., AgentChatResponse]) -> None:
    answer = predict(llm, [broken_tool()], WEATHER)
    assert answer.sources[0].is_error
    assert "no such city: Paris" in answer.response
    with pytest.raises(ValueError, match="no such city: Paris"):
        predict(llm, [broken_tool()], WEATHER, error_on_tool_error=True)


@either_way
def test_predict_and_call_makes_no_call_that_was_cut_off(llm: VLLM, predict: Callable[..., AgentChatResponse]) -> None:
    for choice in ({}, {"tool_required": True}):
        with pytest.raises(LengthFinishReasonError, match="raise max_tokens"):
            predict(llm, [ADD], SUM, max_tokens=14, error_on_no_tool_call=True, **choice)


# ---- what is sent, and what no model of ours would say: a server that says it


@pytest.fixture
def remote(server: RemoteServer) -> VLLM:
    return VLLM(base_url=f"{server.url}/v1", model="served")


def test_a_request_says_what_was_asked_for(server: RemoteServer, remote: VLLM) -> None:
    answers(server, call("add", a=1, b=2))
    remote.chat_with_tools([ADD], "1 + 2?", tool_choice="add", allow_parallel_tool_calls=True, temperature=0.5)
    (_, body) = server.requests[-1]
    assert body["tool_choice"] == {"type": "function", "function": {"name": "add"}}
    assert (body["parallel_tool_calls"], body["temperature"]) == (True, 0.5)
    assert body["tools"][0]["function"]["strict"] is True
    remote.chat_with_tools([ADD], "1 + 2?")
    (_, body) = server.requests[-1]
    assert (body["tool_choice"], body["parallel_tool_calls"]) == ("auto", False)
    assert "strict" not in body["tools"][0]["function"]


def test_tools_beside_a_schema_are_strict(server: RemoteServer, remote: VLLM) -> None:
    """vLLM lets the model choose between the two only if it can hold it to both."""
    remote.chat_with_tools([ADD], "1 + 2?", response_format={"type": "json_object"})
    (_, body) = server.requests[-1]
    assert body["tools"][0]["function"]["strict"] is True


def test_a_tool_without_parameters_goes_out_with_an_empty_schema(server: RemoteServer, remote: VLLM) -> None:
    """vLLM takes it as it is, vllm-router does not."""
    remote.chat_with_tools([{"type": "function", "function": {"name": "get_time"}}], "What time is it?")
    (_, body) = server.requests[-1]
    assert body["tools"][0]["function"]["parameters"] == {"type": "object", "properties": {}}


def test_a_required_call_without_any_tool_is_refused(remote: VLLM) -> None:
    with pytest.raises(InvalidInputError, match="tool_choice = 'required' needs tools"):
        remote.chat_with_tools([], "Hi", tool_required=True)


@whole_and_streamed
def test_broken_arguments_are_an_error_and_nothing_is_called(
    server: RemoteServer, remote: VLLM, ask: Callable[..., list[ChatResponse]]
) -> None:
    """tiny_chat writes no broken JSON; vLLM sends what a model wrote as its arguments, whatever it is."""
    answers(server, call("add", '{"a": 12, "b": oops}'))
    answered = ask(remote, [ADD], "1 + 2?")[-1]
    with pytest.raises(ValueError, match="the call of 'add' is not made: its arguments are not valid JSON"):
        remote.get_tool_calls_from_response(answered)
    with pytest.raises(ValueError, match="the call of 'add' is not made: its arguments are not valid JSON"):
        remote.predict_and_call([ADD], "1 + 2?")
    assert calls_of(remote, answered) == [("add__malformed_arguments", {})]  # as agents ask
