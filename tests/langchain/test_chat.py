"""ChatVLLM on real vLLM."""

from __future__ import annotations

import asyncio
from functools import reduce
from typing import Any, Literal

import pytest
from langchain_core.exceptions import ContextOverflowError
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, SystemMessage, ToolMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from pydantic import BaseModel

from langchain_vllm_local import VLLM, ChatVLLM
from shared_engine import ContextLengthError
from tests.support.waiting import wait_until


@pytest.fixture
def llm(tiny_chat: dict[str, Any]) -> ChatVLLM:
    return ChatVLLM(**tiny_chat, temperature=0.0, max_tokens=32)


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def assert_whole(message: AIMessage) -> None:
    """An answer that tells what it cost, why it ended, and who gave it."""
    assert message.text
    usage = message.usage_metadata
    assert usage is not None
    assert 0 < usage["output_tokens"] <= 32
    assert usage["input_tokens"] + usage["output_tokens"] == usage["total_tokens"]
    metadata = message.response_metadata
    assert metadata["finish_reason"] in ("stop", "length")
    assert metadata["model_provider"] == "vllm"
    assert metadata["model_name"].endswith("tiny_chat")
    assert metadata["id"].startswith("chatcmpl-")


def assert_streamed(chunks: list[AIMessageChunk]) -> None:
    """Several pieces that add up to a whole, with usage and the end marked on exactly one."""
    assert len([chunk for chunk in chunks if chunk.text]) > 1
    assert [chunk for chunk in chunks if chunk.usage_metadata] == chunks[-1:]
    assert [chunk for chunk in chunks if chunk.chunk_position == "last"] == chunks[-1:]
    assert_whole(reduce(lambda left, right: left + right, chunks))


async def test_all_ways_to_ask_give_the_same_answer(llm: ChatVLLM) -> None:
    whole = await asyncio.to_thread(llm.invoke, "Hello")
    assert_whole(whole)
    streamed = await asyncio.to_thread(lambda: list(llm.stream("Hello")))
    assert_streamed(streamed)
    assert_whole(await llm.ainvoke("Hello"))
    astreamed = [chunk async for chunk in llm.astream("Hello")]
    assert_streamed(astreamed)
    (batched,) = await asyncio.to_thread(llm.batch, ["Hello"])
    (abatched,) = await llm.abatch(["Hello"])
    texts = {
        whole.text,
        "".join(chunk.text for chunk in streamed),
        (await llm.ainvoke("Hello")).text,
        "".join(chunk.text for chunk in astreamed),
        batched.text,
        abatched.text,
    }
    assert len(texts) == 1


def test_a_chain_of_prompt_model_and_parser(llm: ChatVLLM) -> None:
    chain = ChatPromptTemplate.from_messages([("system", "You greet."), ("human", "{text}")]) | llm | StrOutputParser()
    assert chain.invoke({"text": "Hello"})
    assert len(chain.batch([{"text": "Hello"}] * 3)) == 3


def greet(greeting: Literal["你好", "Grüß Gott"]) -> str:
    """Greet somebody."""
    return greeting


@pytest.mark.parametrize("stream", [False, True])
def test_text_beyond_ascii_in_arguments_and_results(llm: ChatVLLM, stream: bool) -> None:
    with_tools = llm.bind_tools([greet], tool_choice="greet")
    question = HumanMessage("Greet me.")
    if stream:
        called: AIMessage = reduce(lambda left, right: left + right, with_tools.stream([question]))
    else:
        called = with_tools.invoke([question])
    (call,) = called.tool_calls
    assert call["args"]["greeting"] in ("你好", "Grüß Gott")
    assert llm.invoke([question, called, ToolMessage("你好", tool_call_id=str(call["id"]))]).text


def test_a_tool_is_called_and_its_result_answered_from(llm: ChatVLLM) -> None:
    with_tool = llm.bind_tools([add])
    question = HumanMessage("What is 2 + 3?")
    called = with_tool.invoke([question])
    (call,) = called.tool_calls
    assert (call["name"], call["args"]) == ("add", {"a": 2, "b": 3})
    assert called.response_metadata["finish_reason"] == "tool_calls"
    answer = with_tool.invoke([question, called, ToolMessage(str(add(**call["args"])), tool_call_id=call["id"])])
    assert not answer.tool_calls
    assert "5" in answer.text


@pytest.mark.parametrize("choice", ["any", "add", "auto"])
def test_a_streamed_tool_call_adds_up(llm: ChatVLLM, choice: str) -> None:
    chunks = list(llm.bind_tools([add], tool_choice=choice).stream("What is 2 + 3?"))
    assert len([chunk for chunk in chunks if chunk.tool_call_chunks]) > 1
    whole = reduce(lambda left, right: left + right, chunks)
    (call,) = whole.tool_calls
    assert (call["name"], call["args"]) == ("add", {"a": 2, "b": 3})
    assert call["id"]
    assert not whole.invalid_tool_calls


class Sum(BaseModel):
    """Add two numbers."""

    a: int
    b: int


@pytest.mark.parametrize("choice", ["any", "Sum"])
def test_a_forced_call_is_made_whatever_was_said(llm: ChatVLLM, choice: str) -> None:
    (call,) = llm.bind_tools([Sum], tool_choice=choice).invoke("Hello").tool_calls
    assert Sum(**call["args"])


async def test_structured_output(llm: ChatVLLM) -> None:
    structured = llm.with_structured_output(Sum)
    assert await structured.ainvoke("What is 2 + 3?") == Sum(a=2, b=3)
    assert await asyncio.to_thread(lambda: list(structured.stream("What is 2 + 3?"))[-1]) == Sum(a=2, b=3)


def test_n_answers_whose_usage_adds_up(llm: ChatVLLM) -> None:
    result = llm.generate([[HumanMessage("Hello")]], n=2, temperature=1.0)
    messages = [generation.message for generation in result.generations[0]]
    assert len(messages) == 2
    assert all(message.text for message in messages)
    assert messages[0].usage_metadata["output_tokens"] > 1
    assert messages[1].usage_metadata is None


def test_stop_ends_the_answer(llm: ChatVLLM) -> None:
    whole = llm.invoke("Hello").text
    word = whole.split()[1]
    stopped = llm.invoke("Hello", stop=[word])
    assert stopped.text == whole[: whole.index(word)]
    assert stopped.response_metadata["finish_reason"] == "stop"
    assert stopped.response_metadata["stop_reason"] == word


def test_log_probabilities_of_the_whole_and_of_the_stream(llm: ChatVLLM) -> None:
    whole = llm.invoke("Hello", logprobs=True, top_logprobs=2).response_metadata["logprobs"]["content"]
    assert {len(entry["top_logprobs"]) for entry in whole} == {2}
    chunks = list(llm.stream("Hello", logprobs=True, top_logprobs=2))
    streamed = reduce(lambda left, right: left + right, chunks).response_metadata["logprobs"]["content"]
    assert [entry["token"] for entry in streamed] == [entry["token"] for entry in whole]


def test_a_prompt_over_the_limit_is_langchains_error_with_both_numbers(llm: ChatVLLM) -> None:
    with pytest.raises(ContextOverflowError, match="limit is 2048") as caught:
        llm.invoke("word " * 3000)
    assert isinstance(caught.value, ContextLengthError)
    assert caught.value.max_model_len == 2048
    assert caught.value.prompt_tokens is not None
    assert caught.value.prompt_tokens > 3000


@pytest.mark.parametrize(
    "settings", [{}, {"enable_thinking": True}, {"reasoning_effort": "none"}], ids=["as it is", "thinks", "no effort"]
)
@pytest.mark.parametrize("tools", [None, [add]], ids=["no tools", "tools"])
def test_tokens_are_counted_as_a_request_costs(
    llm: ChatVLLM, tiny_chat: dict[str, Any], settings: dict[str, Any], tools: list[Any] | None
) -> None:
    conversation = [
        SystemMessage("You are brief."),
        HumanMessage("What is 2 + 3?"),
        AIMessage("", tool_calls=[{"name": "add", "args": {"a": 2, "b": 3}, "id": "1"}]),
        ToolMessage("5", tool_call_id="1"),
    ]
    counted = ChatVLLM(**tiny_chat, **settings).get_num_tokens_from_messages(conversation, tools)
    asked = llm.bind_tools(tools) if tools else llm
    usage = asked.invoke(conversation, **settings).usage_metadata
    assert usage is not None and counted == usage["input_tokens"]
    never_started = ChatVLLM(**{**tiny_chat, "max_model_len": 2000})
    assert 0 < never_started.get_num_tokens("You are brief.") < counted
    assert never_started.engine.status().starts == 0
    assert (llm.get_num_tokens_from_messages([], tools) > 0) is bool(tools)


# ---- concurrency


def test_one_object_serves_one_event_loop_after_another(llm: ChatVLLM) -> None:
    async def ask() -> AIMessage:
        return await llm.ainvoke("Hello")

    assert len({asyncio.run(ask()).text for _ in range(3)}) == 1


async def test_many_at_once(llm: ChatVLLM) -> None:
    messages = await asyncio.gather(*(llm.ainvoke(f"Hello {index}") for index in range(64)))
    for message in messages:
        assert_whole(message)


# Several at once, so that they are still running when the first is left, on however busy a machine.
CROWD = 8
ENDLESS: dict[str, Any] = {"max_tokens": 2000, "extra_body": {"ignore_eos": True}}


def running(llm: ChatVLLM) -> float:
    return llm.engine.metrics()["num_requests_running"]


# On two cores vLLM may hold back the first chunk until the last token is done (benchmarks/NOTES.md): then there is
# nothing left to abort, and another attempt is made.
ATTEMPTS = 8


def generated(llm: ChatVLLM) -> float:
    """Tokens that the engine has made in all, once nothing runs."""
    wait_until(lambda: running(llm) == 0, 60, "the requests to end")
    return llm.engine.metrics()["generation_tokens"]


def is_less_than_asked_for(before: float, after: float) -> bool:
    return after - before < CROWD * ENDLESS["max_tokens"]


def test_leaving_streams_aborts_their_requests(llm: ChatVLLM) -> None:
    llm.warmup()

    def leave_early() -> bool:
        before = generated(llm)
        streams = [llm.stream("Hello", **ENDLESS) for _ in range(CROWD)]
        for stream in streams:
            next(stream)
        for stream in streams:
            stream.close()
        return is_less_than_asked_for(before, generated(llm))

    assert any(leave_early() for _ in range(ATTEMPTS))


async def test_leaving_asynchronous_streams_aborts_their_requests(llm: ChatVLLM) -> None:
    await llm.awarmup()

    async def leave_early() -> bool:
        before = await asyncio.to_thread(generated, llm)
        streams = [llm.astream("Hello", **ENDLESS) for _ in range(CROWD)]
        await asyncio.gather(*(anext(stream) for stream in streams))
        for stream in streams:
            await stream.aclose()
        return is_less_than_asked_for(before, await asyncio.to_thread(generated, llm))

    for _ in range(ATTEMPTS):
        if await leave_early():
            return
    pytest.fail(f"every stream of {ATTEMPTS} attempts was generated to its end")


async def test_cancelling_a_call_aborts_the_request(llm: ChatVLLM) -> None:
    await llm.awarmup()

    async def cancel_early() -> bool:
        before = await asyncio.to_thread(generated, llm)
        task = asyncio.create_task(llm.ainvoke("Hello", n=CROWD, temperature=1.0, **ENDLESS))
        await asyncio.sleep(0)
        await asyncio.to_thread(wait_until, lambda: running(llm) > 0 or task.done(), 60, "the request to run")
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return task.cancelled() and is_less_than_asked_for(before, await asyncio.to_thread(generated, llm))

    for _ in range(ATTEMPTS):
        if await cancel_early():
            return
    pytest.fail(f"every request of {ATTEMPTS} attempts was generated to its end")


# ---- one engine


def test_both_classes_share_one_engine(llm: ChatVLLM, tiny_chat: dict[str, Any]) -> None:
    llm.warmup()
    text_llm = VLLM(**tiny_chat)
    before = llm.engine.status()
    text_llm.invoke("Hello", max_tokens=2)
    after = text_llm.engine.status()
    assert (after.server_pid, after.starts) == (before.server_pid, before.starts)
